package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cli/clustercmd"
	"k1s.io/k1s/internal/cli/configcmd"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/version"
)

// New builds the command tree.
func New(deps Deps) *cobra.Command {
	root := &cobra.Command{
		Use:   "k1s",
		Short: "A real Kubernetes node, or a whole cluster, in one file",
		Long: "k1s turns this machine into a Kubernetes node, and makes throw-away clusters on it: offline, in\n" +
			"seconds, without Docker, packages or a registry.\n\n" +
			"A cluster to play with:   k1s cluster create\n" +
			"A node of this machine:   k1s server",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          knownCommand,
	}
	// Not cobra's own --version: to shape what that prints takes text/template, whose use would keep every
	// exported method of the whole program in it.
	asked := root.Flags().BoolP("version", "v", false, "version for k1s")
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		if *asked {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "k1s %s\n", version.K1s)
			return err
		}
		return cmd.Help()
	}
	root.SetIn(deps.Streams.In)
	root.SetOut(deps.Streams.Out)
	root.SetErr(deps.Streams.ErrOut)
	root.SetFlagErrorFunc(wrongFlag)
	root.CompletionOptions.HiddenDefaultCmd = false

	group := func(id, title string, cmds ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: title})
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("cluster", "A cluster on this machine, in namespaces of its own:", clustercmd.New(deps.Streams, clusterDeps(deps)))
	group("node", "This machine as a node:",
		newServerCmd(deps, runServer), newAgentCmd(deps, runServer), newTokenCmd(deps), newNodeCmd(deps), newStatusCmd(deps, runStatus), newLogsCmd(deps, runLogs), newStopCmd(deps, runStop),
		newRestartCmd(deps, runRestart), newUpgradeCmd(deps, runUpgrade), newCheckCmd(deps, runCheck), newResetCmd(deps, runReset),
		configcmd.New(deps.Streams, configcmd.Deps{
			DefaultFile: deps.Paths().ConfigFile(), Environ: deps.Environ, OtherEnv: otherEnv(),
			Disable: disableNames(), Components: components.Names(),
		}),
		newKubeconfigCmd(deps), newCertsCmd(deps, runCerts), newEncryptionCmd(deps), newDatastoreCmd(deps), newEtcdCmd(deps), newBackupCmd(deps), newImageCmd(deps))
	group("tools", "Tools that come with it:", newToolCmds(deps)...)
	root.AddCommand(newVersionCmd(deps, runVersion))
	root.InitDefaultCompletionCmd()
	wrongArgs(root)
	return root
}

// wrongArgs makes what cobra says about arguments a usage error, for every command; one with sub-commands takes
// nothing but those.
func wrongArgs(cmd *cobra.Command) {
	if cmd.HasSubCommands() {
		cmd.Args = knownCommand
		if cmd.RunE == nil && cmd.Run == nil { // without it cobra does not look at Args
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err != nil && errs.KindOf(err) == errs.Failure {
				return usage(cmd, err)
			}
			return err
		}
	}
	for _, sub := range cmd.Commands() {
		wrongArgs(sub)
	}
}
