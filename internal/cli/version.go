package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/version"
)

type versionOptions struct {
	deps       Deps
	components bool
	format     printer.Format
}

func newVersionCmd(deps Deps, runF func(context.Context, versionOptions) error) *cobra.Command {
	o := versionOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show what this is, and with --components everything it carries",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().BoolVar(&o.components, "components", false, "list everything carried, with version and licence")
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

// versionInfo is the answer in JSON and YAML.
type versionInfo struct {
	Version    string             `json:"version"`
	Commit     string             `json:"commit,omitempty"`
	Kubernetes string             `json:"kubernetes"`
	Payload    string             `json:"payload,omitempty"`
	Components []versionComponent `json:"components,omitempty"`
}

type versionComponent struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	License string `json:"license"`
}

func runVersion(_ context.Context, o versionOptions) error {
	v := versionInfo{Version: version.K1s, Commit: version.Commit, Kubernetes: version.Kubernetes}
	exe, err := o.deps.Executable()
	if err != nil {
		return err
	}
	p, err := payload.Open(exe)
	if err == nil {
		v.Payload = p.ID
	}
	if o.components {
		if err != nil {
			return err
		}
		raw, err := payload.ReadFile(p, "components.json")
		if err != nil {
			return fmt.Errorf("reading the list of components: %w", err)
		}
		if err := json.Unmarshal(raw, &v.Components); err != nil {
			return fmt.Errorf("reading the list of components: %w", err)
		}
	}
	return printer.Print(o.deps.Streams.Out, o.format, v, func(w io.Writer) error {
		fmt.Fprintf(w, "k1s %s\nKubernetes %s\n", v.Version, v.Kubernetes)
		if v.Commit != "" {
			fmt.Fprintf(w, "commit %s\n", v.Commit)
		}
		if v.Payload != "" {
			fmt.Fprintf(w, "payload %s\n", v.Payload)
		}
		if !o.components {
			return nil
		}
		fmt.Fprintln(w)
		rows := make([][]string, 0, len(v.Components))
		for _, c := range v.Components {
			rows = append(rows, []string{c.Name, c.Version, c.License})
		}
		return printer.Columns(w, []string{"COMPONENT", "VERSION", "LICENCE"}, rows)
	})
}
