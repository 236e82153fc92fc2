package config

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// referenceFile is generated from the struct tags.
const referenceFile = "../../docs/config-reference.md"

func TestTheReferenceIsUpToDate(t *testing.T) {
	want := reference()
	if *update {
		if err := os.WriteFile(referenceFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/config-reference.md is out of date, run: go test ./internal/config -update")
	}
}

func reference() []byte {
	var b bytes.Buffer
	b.WriteString("# Configuration reference\n\n")
	b.WriteString("Generated from `internal/config` by `go test ./internal/config -update`; do not edit. How to use it: [how-to/configure.md](how-to/configure.md).\n\n")
	b.WriteString("Every file starts with `apiVersion: " + APIVersion + "` and `kind: " + Kind + "`; the fields below stand under `spec:`.\n")
	table := false
	row := func(f Field) {
		flagCell, env, def := "", "", ""
		if f.Flag != "" {
			flagCell, env = "`--"+f.Flag+"`", "`"+f.Env+"`"
		}
		if f.Default != "" {
			def = "`" + f.Default + "`"
		}
		doc := strings.ReplaceAll(f.Doc, "|", "\\|")
		if len(f.Enum) > 0 {
			doc += "; one of `" + strings.Join(f.Enum, "`, `") + "`"
		}
		if f.Example != "" {
			doc += "; e.g. `" + f.Example + "`"
		}
		if !table {
			b.WriteString("\n| Field | Type | Default | Flag | Variable | Meaning |\n|---|---|---|---|---|---|\n")
			table = true
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", strings.TrimPrefix(f.Path, "spec."), f.Type, def, flagCell, env, doc)
	}
	b.WriteString("\n## Directly below spec\n")
	for _, f := range Fields() {
		if section(f.Path) == "general" && !f.Section || strings.Contains(f.Path, "<name>") {
			row(f)
		}
	}
	for _, s := range Fields() {
		if !s.Section {
			continue
		}
		table = false
		fmt.Fprintf(&b, "\n## %s: %s\n", strings.TrimPrefix(s.Path, "spec."), s.Doc)
		for _, f := range Fields() {
			if strings.HasPrefix(f.Path, s.Path+".") && !f.Section {
				row(f)
			}
		}
	}
	for _, at := range slices.Sorted(maps.Keys(upstreams)) {
		u := upstreams[at]
		name, url, _ := strings.Cut(u.kind, ", ")
		fmt.Fprintf(&b, "\n## Fields of %s that cannot be set\n\n`%s` takes the fields of [%s](%s) except these:\n\n| Field | Why, or where instead |\n|---|---|\n",
			strings.TrimPrefix(at, "spec."), at, name, url)
		for _, name := range slices.Sorted(maps.Keys(u.owned)) {
			fmt.Fprintf(&b, "| `%s` | %s |\n", name, u.owned[name])
		}
	}
	return b.Bytes()
}
