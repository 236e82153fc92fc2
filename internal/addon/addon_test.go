package addon_test

import (
	"strings"
	"testing"

	"k1s.io/k1s/internal/addon"
	"k1s.io/k1s/internal/errs"
)

const hello = `# a comment is no document
apiVersion: k1s.io/v1alpha1
kind: Addon
name: hello
summary: greets
parameters:
  - {name: Name, doc: whom}
  - {name: Loud, doc: whether it shouts, type: bool, default: "false"}
images: ['{{ .Name }}:1']
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: hello
data:
  text: {{ quote .Name }}{{ if .Loud }}
  loud: "yes"{{ end }}
`

func mustParse(t *testing.T, text string) addon.Addon {
	t.Helper()
	a, err := addon.Parse("hello.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRenderFillsInParametersAndDefaults(t *testing.T) {
	got, err := addon.Render(mustParse(t, hello), map[string]string{"Name": `a "quoted": name`})
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(got, "---\n")
	want := `apiVersion: v1
kind: ConfigMap
metadata:
  name: hello
data:
  text: "a \"quoted\": name"
`
	if body != want {
		t.Errorf("rendered\n%s\nwant\n%s", body, want)
	}
	h, err := addon.ParseHeader("rendered", []byte(got[:len(got)-len(body)]))
	if err != nil {
		t.Fatal(err)
	}
	if h.Images[0] != `a "quoted": name:1` || *h.Parameters[1].Default != "false" {
		t.Errorf("the header has images %q and default %q, want the values in force", h.Images, *h.Parameters[1].Default)
	}
}

func TestRenderKnowsTrueFromFalse(t *testing.T) {
	a := mustParse(t, hello)
	for value, want := range map[string]bool{"true": true, "false": false} {
		got, err := addon.Render(a, map[string]string{"Name": "x", "Loud": value})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(got, "loud: ") != want {
			t.Errorf("Loud=%s rendered\n%s", value, got)
		}
	}
}

func TestRenderFollowsConditionsAndTrimsWhereADashSaysSo(t *testing.T) {
	const frame = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: hello\ndata:\n  text: x\n"
	for name, c := range map[string]struct{ text, loud, quiet string }{
		"two branches":         {"{{ if .Loud }}  a: a\n{{ else }}  b: b\n{{ end }}", "  a: a\n", "  b: b\n"},
		"the opposite":         {"{{ if not .Loud }}  a: a\n{{ end }}", "", "  a: a\n"},
		"nested":               {"{{ if .Name }}{{ if .Loud }}  a: a\n{{ else }}  b: b\n{{ end }}{{ else }}  c: c\n{{ end }}", "  a: a\n", "  b: b\n"},
		"an empty string":      {"{{ if .Empty }}  a: a\n{{ end }}{{ if not .Empty }}  b: b\n{{ end }}", "  b: b\n", "  b: b\n"},
		"trimmed before":       {"  a: a\n  {{- if .Loud }}\n  b: b\n  {{- end }}\n", "  a: a\n  b: b\n", "  a: a\n"},
		"trimmed behind":       {"{{ if .Loud -}}\n\n\n# a\n{{ end -}}\n\n", "# a\n", ""},
		"a truth value":        {"  a: {{ .Loud }} {{ quote .Loud }}\n", "  a: true \"true\"\n", "  a: false \"false\"\n"},
		"braces that are none": {"  a: '{ } }} {'\n", "  a: '{ } }} {'\n", "  a: '{ } }} {'\n"},
		"without spaces":       {"  a: {{.Name}}{{if .Loud}}!{{end}}\n", "  a: n!\n", "  a: n\n"},
		"text beside a dash":   {"  a: -{{ .Name }}-\n", "  a: -n-\n", "  a: -n-\n"},
	} {
		t.Run(name, func(t *testing.T) {
			head := strings.SplitAfter(hello, "---\n")[0]
			head = strings.Replace(head, "images:", "  - {name: Empty, doc: nothing, default: ''}\nimages:", 1)
			// A comment keeps what is tested from the end of the YAML, where every space would do.
			a := mustParse(t, head+frame+c.text+"# end\n")
			for loud, want := range map[string]string{"true": c.loud, "false": c.quiet} {
				got, err := addon.Render(a, map[string]string{"Name": "n", "Loud": loud})
				if _, body, _ := strings.Cut(got, "---\n"); err != nil || body != frame+want+"# end\n" {
					t.Errorf("Loud=%s: %v, rendered\n%s\nwant\n%s", loud, err, body, frame+want+"# end\n")
				}
			}
		})
	}
}

func TestRenderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		params map[string]string
		want   string
	}{
		"a missing parameter":          {hello, nil, "missing parameters: Name"},
		"an unknown parameter":         {hello, map[string]string{"Name": "x", "Nam": "y"}, "no parameters Nam"},
		"a line break":                 {hello, map[string]string{"Name": "x\nkind: Secret"}, "line break"},
		"a bool that is none":          {hello, map[string]string{"Name": "x", "Loud": "si"}, `"si" is neither true nor false`},
		"a placeholder nobody knows":   {hello + "  more: {{ .Nmae }}\n", map[string]string{"Name": "x"}, `"Nmae"`},
		"a template that is none":      {hello + "  more: {{ .Name\n", map[string]string{"Name": "x"}, "hello.yaml:18"},
		"an unknown one not shown":     {hello + "{{ if .Loud }}{{ .Nmae }}{{ end }}\n", map[string]string{"Name": "x"}, `hello.yaml:18: there is no parameter "Nmae"`},
		"an unknown function":          {hello + "  more: {{ title .Name }}\n", map[string]string{"Name": "x"}, "hello.yaml:18: {{ title .Name }} is not understood"},
		"a name without its dot":       {hello + "  more: {{ Name }}\n", map[string]string{"Name": "x"}, "{{ Name }} is not understood"},
		"a path into a parameter":      {hello + "  more: {{ .Name.First }}\n", map[string]string{"Name": "x"}, `no parameter "Name.First"`},
		"nothing":                      {hello + "  more: {{ }}\n", map[string]string{"Name": "x"}, "is not understood"},
		"an if without an end":         {hello + "{{ if .Loud }}\n\n", map[string]string{"Name": "x"}, "hello.yaml:18: {{ if .Loud }} has no {{ end }}"},
		"an end without an if":         {hello + "\n{{ end }}\n", map[string]string{"Name": "x"}, "hello.yaml:19: {{ end }} without"},
		"an else too many":             {hello + "{{ if .Loud }}\n{{ else }}{{ else }}{{ end }}\n", map[string]string{"Name": "x"}, "hello.yaml:19: a second {{ else }}"},
		"a placeholder over two lines": {hello + "  more: {{ quote\n .Name }}\n", map[string]string{"Name": "x"}, "hello.yaml:18: {{ without }} on the same line"},
		"an unknown one in an image":   {strings.Replace(hello, "{{ .Name }}:1", "{{ .Nmae }}:1", 1), map[string]string{"Name": "x"}, `hello.yaml: images:1: there is no parameter "Nmae"`},
		"what renders to bad YAML":     {hello + "\tmore: 1\n", map[string]string{"Name": "x"}, "no YAML"},
		"an object without a name":     {hello + "---\napiVersion: v1\nkind: Secret\n", map[string]string{"Name": "x"}, "document 2"},
		"what renders to nothing":      {strings.SplitAfter(hello, "---\n")[0] + "{{ if .Loud }}x{{ end }}", map[string]string{"Name": "x"}, "renders to nothing"},
		"a document that is no object": {hello + "---\n- 1\n", map[string]string{"Name": "x"}, "no YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := addon.Render(mustParse(t, c.text), c.params)
			if !errs.Is(err, errs.Invalid) && err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	change := func(old, new string) string { return strings.Replace(hello, old, new, 1) }
	for name, c := range map[string]struct{ text, want string }{
		"another kind":               {change("kind: Addon", "kind: Chart"), "not k1s.io/v1alpha1 Addon"},
		"an unknown field":           {change("summary:", "sumary:"), "sumary"},
		"a bad name":                 {change("name: hello", "name: Hello"), "no add-on name"},
		"no summary":                 {change("greets", "''"), "no summary"},
		"a lower-case parameter":     {change("name: Name", "name: name"), "capital"},
		"a parameter twice":          {change("name: Loud", "name: Name"), "twice"},
		"an unknown type":            {change("bool", "int"), "neither string nor bool"},
		"a default of a wrong type":  {change(`"false"`, `"maybe"`), "maybe"},
		"no manifests":               {strings.SplitAfter(hello, "---\n")[0], "no manifests"},
		"an incomplete ready object": {change("images:", "ready: [{kind: Pod}]\nimages:"), "entry 1 of ready"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := addon.Parse("hello.yaml", []byte(c.text))
			if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "hello.yaml") {
				t.Errorf("got %v, want an error of kind Invalid with the file and %q", err, c.want)
			}
		})
	}
}
