// Package cli is the command line: one file a command, one folder a noun. Commands parse and print;
// what they do is done by the packages below. Results go to standard output, everything else to
// standard error.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/paths"
)

// Deps are what commands get from the program: everything a test replaces.
type Deps struct {
	Streams iostreams.Streams
	Environ func() []string
	// Executable is the path of this program, which carries the payload.
	Executable func() (string, error)
	Paths      func() paths.Paths
}

// SystemDeps are those of the real program. K1S_DATA_DIR, K1S_RUN_DIR, K1S_CONFIG_DIR and
// K1S_KUBELET_DIR move the roots.
func SystemDeps() Deps {
	return Deps{
		Streams:    iostreams.System(),
		Environ:    os.Environ,
		Executable: os.Executable,
		Paths: func() paths.Paths {
			p := paths.Default()
			for env, dir := range map[string]*string{
				envDataDir: &p.Data, envRunDir: &p.Run, envConfigDir: &p.Config, envKubeletDir: &p.Kubelet,
			} {
				if v := os.Getenv(env); v != "" {
					*dir = v
				}
			}
			return p
		},
	}
}

// Environment variables that are not settings of the configuration.
const (
	envDataDir    = "K1S_DATA_DIR"
	envRunDir     = "K1S_RUN_DIR"
	envConfigDir  = "K1S_CONFIG_DIR"
	envKubeletDir = "K1S_KUBELET_DIR"
	envCgroupRoot = "K1S_CGROUP_ROOT"
	envPayload    = "K1S_PAYLOAD"
	envClusters   = "K1S_CLUSTERS_DIR"
	envSandbox    = "K1S_SANDBOX"

	envClusterName = "K1S_CLUSTER_NAME" // a setting, and in a sandbox that of its cluster
)

func otherEnv() []string {
	return []string{envDataDir, envRunDir, envConfigDir, envKubeletDir, envCgroupRoot, envPayload, envClusters, envSandbox, envMoveTo, envBackupPassphrase}
}

// Run executes a command line, argv[0] included, and returns the exit code. Errors are printed with what
// to do about them. Called through a link named like one of the tools, it is that tool.
func Run(ctx context.Context, deps Deps, argv []string) int {
	root := New(deps)
	args := argv[1:]
	if name, ok := calledAs(argv[0]); ok {
		args = append([]string{name}, args...)
	}
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return errs.Report(deps.Streams.ErrOut, inSandbox(deps, err))
}

// inSandbox replaces the remedy for a node that does not run where somebody else starts it: in a cluster's
// node.
func inSandbox(deps Deps, err error) error {
	if cluster := sandbox(deps); cluster != "" && errs.Is(err, errs.NotRunning) {
		return errs.Hint(err, "run, outside of this node: k1s cluster start %s", cluster)
	}
	return err
}

// sandbox is the cluster this program runs in a node of; "" outside of any.
func sandbox(deps Deps) string {
	if lookup(deps.Environ(), envSandbox) == "" {
		return ""
	}
	return lookup(deps.Environ(), envClusterName)
}

// usage marks errors of the command line itself.
func usage(cmd *cobra.Command, err error) error {
	return errs.Hint(errs.As(errs.Usage, err), "see: %s --help", cmd.CommandPath())
}

// goFunc is how package strconv begins what it says about a flag's value.
var goFunc = regexp.MustCompile(`strconv\.\w+: parsing ("[^"]*"): `)

// wrongFlag is an error about a flag as the user reads it. Behind a word that is no command, that word is what is wrong: the flag would be its.
func wrongFlag(cmd *cobra.Command, err error) error {
	if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 {
		return knownCommand(cmd, words)
	}
	return usage(cmd, errors.New(goFunc.ReplaceAllString(err.Error(), "")))
}

// knownCommand refuses what is no command, with the nearest ones.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := errs.New(errs.Usage, "unknown command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return errs.Hint(err, "did you mean: %s %s", cmd.CommandPath(), strings.Join(near, ", "))
	}
	return usage(cmd, err)
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(cmd, fmt.Errorf("%s takes no argument, got %q", cmd.CommandPath(), args[0]))
	}
	return nil
}

func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usage(cmd, fmt.Errorf("%s takes %s, got %d arguments", cmd.CommandPath(), what, len(args)))
		}
		return nil
	}
}
