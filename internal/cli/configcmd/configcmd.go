// Package configcmd is `k1s config`: print, check and explain the configuration. It needs no daemon and
// no root. What a configuration is lives in package config; this package only shows it.
package configcmd

import (
	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
)

// Deps are what the commands know from the outside.
type Deps struct {
	// DefaultFile is the configuration file where no other is named.
	DefaultFile string
	// Environ is the environment, most often os.Environ.
	Environ func() []string
	// OtherEnv are K1S_* variables that are no settings.
	OtherEnv []string
	// Disable and Components are the names only the rest of the program knows, see config.Known.
	Disable, Components []string
}

func (d Deps) known() config.Known {
	return config.Known{Disable: d.Disable, Components: d.Components}
}

// New is the command `config` with its children.
func New(streams iostreams.Streams, deps Deps) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print, check and explain the configuration",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPrintCmd(streams, deps), newValidateCmd(streams, deps), newExplainCmd(streams))
	return cmd
}

// sources reads what flags and environment tell to.
func sources(streams iostreams.Streams, deps Deps, flags *config.Flags) config.Sources {
	var environ []string
	if deps.Environ != nil {
		environ = deps.Environ()
	}
	src := flags.Sources(environ)
	src.OtherEnv = deps.OtherEnv
	src.Stdin = streams.In
	return src
}

func checkOutput(output string, allowed ...string) error {
	for _, a := range allowed {
		if output == a {
			return nil
		}
	}
	return errs.Hint(errs.New(errs.Usage, "unknown output format %q", output), "use -o %s", joinOr(allowed))
}

func joinOr(list []string) string {
	s := list[0]
	for _, e := range list[1:] {
		s += " or -o " + e
	}
	return s
}
