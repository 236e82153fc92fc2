package configcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
)

type validateOptions struct {
	streams   iostreams.Streams
	files     []string // each checked by itself; none: the configuration in effect
	known     config.Known
	effective func() config.Sources
}

func newValidateCmd(streams iostreams.Streams, deps Deps) *cobra.Command {
	opts := validateOptions{streams: streams, known: deps.known()}
	cmd := &cobra.Command{
		Use:   "validate [FILE...]",
		Short: "Check configuration files, or the configuration in effect",
		Long: `Check each FILE by itself ("-" is standard input), or without FILE the configuration in effect.
All problems are listed with file and line. The exit code is 2 if there are any.`,
		Example: `  k1s config validate
  k1s config validate /etc/k1s/config.d/*.yaml`,
	}
	flags := config.RegisterFlags(cmd.Flags(), deps.DefaultFile)
	opts.effective = func() config.Sources { return sources(streams, deps, flags) }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		given := flags.Given()
		if cmd.Flags().Changed("config") {
			given = append(given, "--config")
		}
		if len(args) > 0 && len(given) > 0 {
			return errs.Hint(errs.New(errs.Usage, "cannot use %s together with FILE: files are checked by themselves", strings.Join(given, ", ")),
				"leave out one of them")
		}
		opts.files = args
		return runValidate(cmd.Context(), opts)
	}
	return cmd
}

func runValidate(ctx context.Context, opts validateOptions) error {
	if len(opts.files) == 0 {
		return validateEffective(opts)
	}
	var problems []config.Problem
	for _, file := range opts.files {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		_, err := config.Effective(config.Sources{File: file, FileMustExist: true, Stdin: opts.streams.In}, opts.known)
		var invalid *config.InvalidError
		switch {
		case errors.As(err, &invalid):
			problems = append(problems, invalid.Problems...)
		case err != nil:
			return err
		default:
			if _, err := fmt.Fprintf(opts.streams.Out, "%s: ok\n", file); err != nil {
				return err
			}
		}
	}
	return config.Invalid(problems)
}

func validateEffective(opts validateOptions) error {
	loaded, err := config.Effective(opts.effective(), opts.known)
	warn(opts.streams, loaded.Warnings)
	if err != nil {
		return err
	}
	_, err = io.WriteString(opts.streams.Out, "ok: "+strings.Join(describeSources(loaded), ", ")+"\n")
	return err
}

// describeSources says what the configuration was made of.
func describeSources(l config.Loaded) []string {
	list := append([]string(nil), l.Files...)
	if len(list) == 0 {
		list = append(list, "defaults (no configuration file)")
	}
	return append(list, l.Origins.Names(config.FromEnvironment, config.FromFlag)...)
}
