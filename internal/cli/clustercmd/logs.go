package clustercmd

import (
	"fmt"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
)

// newLogsCmd collects what tells how a cluster fares.
func newLogsCmd(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "logs", Short: "Export the logs of a cluster", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLogsExportCmd(e))
	return cmd
}

func newLogsExportCmd(e env) *cobra.Command {
	return &cobra.Command{
		Use: "export [CLUSTER] DIR", Short: "Write all that a report about a cluster needs into a new directory",
		Long: "Writes the logs of nodes, components and pods, the state of every node, the objects and events of the cluster and\n" +
			"its configuration into a directory that is new or empty. Passwords, tokens and keys are left out; look at what pods\n" +
			"have logged before you pass it on. Works as far as it can for a cluster that is stopped or broken.",
		Example: "  k1s cluster logs export dev dev-logs && tar czf dev-logs.tar.gz dev-logs",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return usage("say where to: [CLUSTER] DIR")
			}
			name, _ := clusterAndNode(args)
			return cluster.ValidateName(name)
		},
		ValidArgsFunction: completeName(e),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, dir := clusterAndNode(args)
			missing, err := e.manager(false).ExportLogs(cmd.Context(), name, dir)
			if err != nil {
				return err
			}
			for _, m := range missing {
				fmt.Fprintln(e.streams.ErrOut, "not there: "+m)
			}
			return e.tell(nil, "the logs of cluster "+name+" are in "+dir)
		},
	}
}
