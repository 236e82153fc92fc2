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
		"a template that is none":      {hello + "  more: {{ .Name\n", map[string]string{"Name": "x"}, "hello.yaml:19"},
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
