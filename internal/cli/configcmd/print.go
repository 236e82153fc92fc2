package configcmd

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/iostreams"
)

type printOptions struct {
	streams  iostreams.Streams
	output   string
	defaults bool
	origin   bool
	known    config.Known
	sources  func() config.Sources
}

func newPrintCmd(streams iostreams.Streams, deps Deps) *cobra.Command {
	opts := printOptions{streams: streams, known: deps.known()}
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print the configuration in effect",
		Long: `Print the configuration in effect: defaults, file, drop-ins, environment and flags together.
The output is a configuration file.`,
		Example: `  k1s config print --origin
  k1s config print --defaults > config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(opts.output, "yaml", "json"); err != nil {
				return err
			}
			return runPrint(cmd.Context(), opts)
		},
	}
	flags := config.RegisterFlags(cmd.Flags(), deps.DefaultFile)
	cmd.Flags().StringVarP(&opts.output, "output", "o", "yaml", "yaml or json")
	cmd.Flags().BoolVar(&opts.defaults, "defaults", false, "print the defaults, whatever is configured")
	cmd.Flags().BoolVar(&opts.origin, "origin", false, "tell where each value comes from")
	opts.sources = func() config.Sources {
		if opts.defaults {
			return config.Sources{}
		}
		return sources(streams, deps, flags)
	}
	return cmd
}

func runPrint(_ context.Context, opts printOptions) error {
	loaded, err := config.Effective(opts.sources(), opts.known)
	if err != nil {
		return err
	}
	warn(opts.streams, loaded.Warnings)
	if opts.output == "yaml" {
		var origins config.Origins
		if opts.origin {
			origins = loaded.Origins
		}
		text, err := config.YAML(loaded.Config, origins)
		if err != nil {
			return err
		}
		_, err = opts.streams.Out.Write(text)
		return err
	}
	var v any = loaded.Config
	if opts.origin {
		v = struct {
			Config  config.Config  `json:"config"`
			Origins config.Origins `json:"origins"` // of what is not default
		}{loaded.Config, loaded.Origins}
	}
	return writeJSON(opts.streams, v)
}

func writeJSON(streams iostreams.Streams, v any) error {
	enc := json.NewEncoder(streams.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func warn(streams iostreams.Streams, warnings []string) {
	for _, w := range warnings {
		_, _ = fmt.Fprintln(streams.ErrOut, "warning:", w)
	}
}
