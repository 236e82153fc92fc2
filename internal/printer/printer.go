// Package printer shows results: as an aligned table for people, as JSON or YAML for programs. It is
// used by every command that shows something. A leaf.
package printer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/errs"
)

// Format is the value of -o.
type Format string

// The formats.
const (
	Table Format = "table"
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Set, String and Type make Format a flag value.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Table, Wide, JSON, YAML:
		*f = Format(s)
		return nil
	}
	return errs.New(errs.Usage, "must be table, wide, json or yaml")
}

func (f *Format) String() string { return string(*f) }

// Type is the word shown in --help.
func (f *Format) Type() string { return "table|wide|json|yaml" }

// Print writes v as JSON or YAML, or calls table for the other formats.
func Print(w io.Writer, f Format, v any, table func(io.Writer) error) error {
	switch f {
	case JSON:
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case YAML:
		// By way of JSON, so that both formats have the same field names.
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("printing YAML: %w", err)
		}
		var n yaml.Node
		if err := yaml.Unmarshal(b, &n); err != nil {
			return fmt.Errorf("printing YAML: %w", err)
		}
		blockStyle(&n)
		enc := yaml.NewEncoder(w)
		enc.SetIndent(2)
		if err := enc.Encode(&n); err != nil {
			return fmt.Errorf("printing YAML: %w", err)
		}
		return enc.Close()
	default:
		return table(w)
	}
}

func blockStyle(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// Columns writes an aligned table: a header and rows of the same length.
func Columns(w io.Writer, header []string, rows [][]string) error {
	var table bytes.Buffer
	tw := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	line := func(cells []string) { fmt.Fprintln(tw, strings.Join(cells, "\t")) }
	line(header)
	for _, r := range rows {
		clean := make([]string, len(r))
		for i, c := range r {
			clean[i] = strings.Map(oneLine, c)
		}
		line(clean)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for l := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(l, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func oneLine(r rune) rune {
	if r == '\n' || r == '\t' || r == '\r' {
		return ' '
	}
	return r
}

// Age is a duration as people read it: 4s, 3m10s, 2h5m, 3d4h.
func Age(d time.Duration) string {
	d = max(d, 0)
	s := int(d.Seconds())
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd%dh", s/86400, s/3600%24)
	}
}
