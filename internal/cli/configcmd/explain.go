package configcmd

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/iostreams"
)

type explainOptions struct {
	streams iostreams.Streams
	field   string // "" for all
	output  string
}

func newExplainCmd(streams iostreams.Streams) *cobra.Command {
	opts := explainOptions{streams: streams}
	cmd := &cobra.Command{
		Use:   "explain [FIELD]",
		Short: "Explain the fields of the configuration",
		Long: `Explain one field: its type, default, flag and variable. A section, or nothing, lists the fields below.
FIELD is a path (spec.api.port or api.port), a flag or a variable.`,
		Example: `  k1s config explain
  k1s config explain network.podCIDR`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, f := range config.Fields() {
				names = append(names, strings.TrimPrefix(f.Path, "spec.")+"\t"+f.Doc)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(opts.output, "text", "json"); err != nil {
				return err
			}
			if len(args) == 1 {
				opts.field = args[0]
			}
			return runExplain(cmd.Context(), opts)
		},
	}
	cmd.Flags().StringVarP(&opts.output, "output", "o", "text", "text or json")
	return cmd
}

func runExplain(_ context.Context, opts explainOptions) error {
	fields := config.Fields()
	if opts.field != "" && strings.Trim(opts.field, ".") != "spec" {
		field, err := config.Lookup(opts.field)
		if err != nil {
			return err
		}
		var below []config.Field
		for _, f := range fields {
			if f.Path == field.Path || strings.HasPrefix(f.Path, field.Path+".") {
				below = append(below, f)
			}
		}
		if opts.output == "json" {
			return writeJSON(opts.streams, below)
		}
		if !field.Section {
			return explainOne(opts.streams.Out, field)
		}
		fields = below
	}
	if opts.output == "json" {
		return writeJSON(opts.streams, fields)
	}
	return explainTree(opts.streams.Out, fields)
}

func explainTree(out io.Writer, fields []config.Field) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "FIELD\tTYPE\tDEFAULT\tMEANING")
	for _, f := range fields {
		name, kind := strings.TrimPrefix(f.Path, "spec."), f.Type
		if f.Section {
			kind = ""
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, kind, f.Default, f.Doc)
	}
	return w.Flush() // reports what the lines above could not write
}

func explainOne(out io.Writer, f config.Field) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s%s\n", name+":", value)
		}
	}
	line("Field", f.Path)
	line("Type", f.Type)
	line("Default", f.Default)
	line("One of", strings.Join(f.Enum, ", "))
	if f.Flag != "" {
		line("Flag", "--"+f.Flag)
	}
	line("Variable", f.Env)
	fmt.Fprintf(&b, "\n%s\n\nExample:\n", f.Doc)
	for _, l := range strings.SplitAfter(f.YAML(), "\n") {
		if l != "" {
			b.WriteString("  " + l)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}
