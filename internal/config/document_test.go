package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type thing struct {
	Name  string     `json:"name,omitempty"`
	Many  []string   `json:"many,omitempty"`
	On    bool       `json:"on" default:"true"`
	Group thingGroup `json:"group"`
	Spec  *yaml.Node `json:"spec,omitempty"`
}

type thingGroup struct {
	Count int `json:"count"`
}

const thingHead = "apiVersion: k1s.io/v1alpha1\nkind: Thing\n"

func TestDocumentsOfOtherKindsAreReadAsStrictly(t *testing.T) {
	var got thing
	origins, problems := DecodeDocument("f", []byte(thingHead+"name: a\nmany: [b,\n  c]\ngroup: {count: 3}\nspec: {isolation: none}\n"), "Thing", &got)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got.Name != "a" || !slices.Equal(got.Many, []string{"b", "c"}) || !got.On || got.Group.Count != 3 || got.Spec == nil {
		t.Errorf("got %+v", got)
	}
	if o := origins.Of("many[1]"); o.Line != 5 {
		t.Errorf("many[1] is said to be from %s", o)
	}
	for text, want := range map[string]string{
		"":                                "f: is empty",
		"kind: Thing\n":                   "f:1:1: apiVersion: is missing",
		thingHead + "nmae: a\n":           `f:3:1: unknown field "nmae" [did you mean "name"?]`,
		thingHead + "group: {cuont: 1}\n": `f:3:9: group: unknown field "cuont" [did you mean "count"?]`,
		thingHead + "group: {count: a}\n": "f:3:16: group.count: is \"a\", and must be a number",
		thingHead + "network: {}\n":       `f:3:1: unknown field "network" [the file has: apiVersion, kind, name, many, on, group, spec]`,
		thingHead + "many: a\n":           "f:3:7: many: is \"a\", and must be a list",
		"apiVersion: v1\nkind: Thing\n":   `f:1:13: apiVersion: is "v1", and must be "k1s.io/v1alpha1"`,
		"- a\n":                           "f:1:1: holds a list",
		thingHead + "---\na: b\n":         "a second document",
	} {
		_, problems := DecodeDocument("f", []byte(text), "Thing", &thing{})
		var all []string
		for _, p := range problems {
			all = append(all, p.String()+" ["+p.Hint+"]")
		}
		if !strings.Contains(strings.Join(all, "\n"), want) {
			t.Errorf("%q: got %q, want %q", text, all, want)
		}
	}
}

func node(t *testing.T, text string) *yaml.Node {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Content[0]
}

func TestSpecsInOtherDocumentsAreCheckedWhereTheyStand(t *testing.T) {
	doc := node(t, "a: 1\n\nspec:\n  isolaton: none\n  api: {port: 99999}\n")
	_, err := Effective(Sources{Inline: []Inline{{File: "c.yaml", Spec: doc.Content[3]}}}, Known{})
	if err == nil || !strings.Contains(err.Error(), `c.yaml:4:3: spec: unknown field "isolaton"`) || !strings.Contains(err.Error(), "c.yaml:5:15: spec.api.port") {
		t.Errorf("got %v", err)
	}
}

func TestSpecsAreMergedIntoAFileThatLoadsBack(t *testing.T) {
	doc := node(t, "x: &x {max: 1}\nunder: {kubelet: *x, disable: [coredns], noWorker: true}\nover: {kubelet: {min: 2}, disable: [local-path], noWorker: null, isolation: none}\n")
	merged := MergeSpec(doc.Content[3], doc.Content[5])
	text, err := File(merged)
	if err != nil {
		t.Fatal(err)
	}
	cfg, _, problems := decodeText(text)
	if len(problems) > 0 {
		t.Fatalf("%v in\n%s", problems, text)
	}
	want := map[string]any{"max": 1, "min": 2}
	if !reflect.DeepEqual(cfg.Spec.Kubelet, want) || !slices.Equal(cfg.Spec.Disable, []string{"local-path"}) || cfg.Spec.NoWorker || cfg.Spec.Isolation != "none" {
		t.Errorf("got %+v from\n%s", cfg.Spec, text)
	}
	if MergeSpec(nil, merged) != merged || MergeSpec(merged, nil) != merged {
		t.Error("nothing over a spec, or under one, is not that spec")
	}
	if text, err := File(nil); err != nil || text != "" {
		t.Errorf("no spec: %q, %v", text, err)
	}
}
