package config

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Inline is what stands under `spec` of a configuration file, as a part of another document.
type Inline struct {
	File string // the document's name, for messages
	Spec *yaml.Node
}

func (in Inline) apply(cfg *Config, origins Origins) []Problem {
	d := &decoder{file: in.File, origins: origins}
	d.value(in.Spec, "spec", reflect.ValueOf(&cfg.Spec).Elem(), reflect.StructField{}, 1)
	return d.problems
}

// KindOf is the kind of the document in data; "" where it says none or cannot be read.
func KindOf(data []byte) string {
	var head struct {
		Kind string `yaml:"kind"`
	}
	_ = yaml.Unmarshal(data, &head) // whoever decodes it says what is wrong
	return head.Kind
}

// DecodeDocument reads a document of ours that is no configuration of a node into v, a pointer to a struct whose fields
// carry the tags of Spec. A field of type *yaml.Node takes whatever stands there. name is what problems call the file.
// The problems are as exact as those of a configuration file: every wrong or unknown field with file, line and the
// nearest right name. The origins tell where each field was written.
func DecodeDocument(name string, data []byte, kind string, v any) (Origins, []Problem) {
	d := &decoder{file: name, origins: Origins{}, header: "start the file with\n      apiVersion: " + APIVersion + "\n      kind: " + kind}
	root := d.parse(data)
	if root == nil || isNull(root) {
		if len(d.problems) == 0 {
			d.report(nil, "", d.header, "is empty")
		}
		return d.origins, d.problems
	}
	if root.Kind != yaml.MappingNode {
		d.report(root, "", d.header, "holds %s; it starts with apiVersion and kind", describe(root))
		return d.origins, d.problems
	}
	into := reflect.ValueOf(v).Elem()
	setDefaults(into)
	names, index := []string{"apiVersion", "kind"}, map[string]int{}
	for i := range into.NumField() {
		name := jsonName(into.Type().Field(i))
		names, index[name] = append(names, name), i
	}
	seen := map[string]bool{}
	d.entries(root, "", 0, func(key, value *yaml.Node) {
		seen[key.Value] = true
		i, ok := index[key.Value]
		switch {
		case key.Value == "apiVersion":
			d.headerField(value, key.Value, APIVersion)
		case key.Value == "kind":
			d.headerField(value, key.Value, kind)
		case ok:
			d.value(value, key.Value, into.Field(i), into.Type().Field(i), 1)
		default:
			d.unknown(key, "", names)
		}
	})
	for _, name := range []string{"apiVersion", "kind"} {
		if !seen[name] && !d.tooBig {
			d.report(root, name, d.header, "is missing")
		}
	}
	return d.origins, d.problems
}

// MergeSpec puts one `spec` over another: maps are merged, everything else is replaced, an explicit null stays one. Either
// may be nil; neither is changed.
func MergeSpec(under, over *yaml.Node) *yaml.Node {
	for over != nil && over.Kind == yaml.AliasNode {
		over = over.Alias
	}
	for under != nil && under.Kind == yaml.AliasNode {
		under = under.Alias
	}
	switch {
	case over == nil:
		return under
	case under == nil || under.Kind != yaml.MappingNode || over.Kind != yaml.MappingNode:
		return over
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: append([]*yaml.Node(nil), under.Content...)}
	for i := 0; i+1 < len(over.Content); i += 2 {
		key, value := over.Content[i], over.Content[i+1]
		found := false
		for j := 0; j+1 < len(out.Content); j += 2 {
			if found = out.Content[j].Value == key.Value; found {
				out.Content[j+1] = MergeSpec(out.Content[j+1], value)
				break
			}
		}
		if !found {
			out.Content = append(out.Content, key, value)
		}
	}
	return out
}

// File is a configuration file with a `spec` in it; "" for none.
func File(spec *yaml.Node) (string, error) {
	if spec == nil || spec.Kind != yaml.MappingNode || len(spec.Content) == 0 {
		return "", nil
	}
	scalar := func(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }
	doc := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{
		scalar("apiVersion"), scalar(APIVersion), scalar("kind"), scalar(Kind), scalar("spec"), withoutAnchors(spec),
	}}
	var b strings.Builder
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return "", err
	}
	return b.String(), enc.Close()
}

// withoutAnchors writes out what aliases stand for, whose anchors may be elsewhere in the document, one key a line.
func withoutAnchors(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	out := *n
	if out.Anchor, out.Content = "", nil; out.Kind != yaml.ScalarNode {
		out.Style &^= yaml.FlowStyle
	}
	for _, c := range n.Content {
		out.Content = append(out.Content, withoutAnchors(c))
	}
	return &out
}
