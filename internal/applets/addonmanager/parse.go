package addonmanager

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"k1s.io/k1s/internal/addon"
	"k1s.io/k1s/internal/errs"
)

// object is one thing a stack wants to be there.
type object struct {
	*unstructured.Unstructured
	where string // file:line of its document
}

// ref names an object without its version: the same object may be written in several.
type ref struct {
	Group     string `json:"group,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (r ref) String() string {
	kind := r.Kind
	if r.Group != "" {
		kind += "." + r.Group
	}
	if r.Namespace == "" {
		return kind + " " + r.Name
	}
	return kind + " " + r.Namespace + "/" + r.Name
}

func (o object) ref() ref {
	gvk := o.GroupVersionKind()
	return ref{gvk.Group, gvk.Kind, o.GetNamespace(), o.GetName()}
}

// stack is a source that could be read.
type stack struct {
	id      stackID
	hash    string
	objects []object
	ready   []addon.Object // from an add-on's header
}

// parse reads all documents of a source. All problems are reported, each with file and line; with any,
// nothing of the stack is to be applied or pruned, because what it wants is not known. Errors are of kind
// errs.Invalid.
func parse(s source) (stack, error) {
	if s.err != nil {
		return stack{}, s.err
	}
	out := stack{id: s.id, hash: s.hash}
	var problems []error
	for _, f := range s.files {
		for _, doc := range split(string(f.content)) {
			where := fmt.Sprintf("%s:%d", f.name, doc.line)
			obj, err := decode(f.name, doc)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			if obj == nil {
				continue
			}
			if obj.GetAPIVersion() == addon.APIVersion && obj.GetKind() == addon.Kind {
				h, err := addon.ParseHeader(where, []byte(doc.text))
				problems = append(problems, err)
				out.ready = append(out.ready, h.Ready...)
				continue
			}
			objs, err := flatten(obj, where)
			problems = append(problems, err)
			out.objects = append(out.objects, objs...)
		}
	}
	problems = append(problems, finish(out.objects)...)
	if err := errors.Join(problems...); err != nil {
		return stack{}, errs.As(errs.Invalid, err)
	}
	return out, nil
}

// finish completes namespaces, refuses what cannot be applied, and finds objects that are there twice.
func finish(objects []object) []error {
	var problems []error
	seen := map[ref]string{}
	for _, o := range objects {
		switch {
		case o.GetAPIVersion() == "" || o.GetKind() == "":
			problems = append(problems, fmt.Errorf("%s: there is no apiVersion and kind: this is no Kubernetes object", o.where))
			continue
		case o.GetName() == "":
			problems = append(problems, fmt.Errorf("%s: %s has no metadata.name", o.where, o.GetKind()))
			continue
		}
		if _, err := schema.ParseGroupVersion(o.GetAPIVersion()); err != nil {
			problems = append(problems, fmt.Errorf("%s: apiVersion %q is not VERSION or GROUP/VERSION", o.where, o.GetAPIVersion()))
			continue
		}
		if k, ok := builtin[o.GroupVersionKind()]; ok {
			switch {
			case k.namespaced && o.GetNamespace() == "":
				o.SetNamespace(metav1Default)
			case !k.namespaced:
				o.SetNamespace("")
			}
		}
		// Apply is told what is wanted; what only the server writes is no part of it.
		o.SetManagedFields(nil)
		o.SetResourceVersion("")
		o.SetUID("")
		unstructured.RemoveNestedField(o.Object, "metadata", "creationTimestamp")
		unstructured.RemoveNestedField(o.Object, "metadata", "generation")
		unstructured.RemoveNestedField(o.Object, "status")
		if first, ok := seen[o.ref()]; ok {
			problems = append(problems, fmt.Errorf("%s: %s is already in %s", o.where, o.ref(), first))
			continue
		}
		seen[o.ref()] = o.where
	}
	return problems
}

const metav1Default = "default"

// document is one part of a YAML stream.
type document struct {
	line int // of the file where it begins, from 1: its first line with content
	off  int // lines before its text
	text string
}

// split cuts a YAML stream at its separators. Documents without content are left out.
func split(text string) []document {
	var out []document
	var b strings.Builder
	start, first, n := 0, 0, 0
	flush := func() {
		if first > 0 {
			out = append(out, document{line: first, off: start, text: b.String()})
		}
		b.Reset()
		start, first = n, 0
	}
	for l := range strings.Lines(text) {
		n++
		if addon.IsSeparator(l) {
			flush()
			continue
		}
		if t := strings.TrimSpace(l); first == 0 && t != "" && !strings.HasPrefix(t, "#") && !strings.HasPrefix(t, "%") && t != "..." {
			first = n
		}
		b.WriteString(l)
	}
	flush()
	return out
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

// decode reads a document as kubectl does, but refuses keys that are there twice. nil is an empty document.
func decode(file string, d document) (*unstructured.Unstructured, error) {
	js, err := yaml.YAMLToJSONStrict([]byte(d.text))
	if err != nil {
		return nil, yamlError(file, d, err)
	}
	var v any
	if err := utiljson.Unmarshal(js, &v); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", file, d.line, err)
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return &unstructured.Unstructured{Object: v}, checkTypes(v, fmt.Sprintf("%s:%d", file, d.line))
	default:
		return nil, fmt.Errorf("%s:%d: a document has to be an object with apiVersion and kind, this is a %T", file, d.line, v)
	}
}

// yamlError puts the file's line numbers in place of the document's.
func yamlError(file string, d document, err error) error {
	msg := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	msg = strings.TrimPrefix(msg, "yaml: ")
	msg = strings.TrimPrefix(msg, "unmarshal errors:\n  ")
	line := d.line
	if m := yamlLine.FindStringSubmatchIndex(msg); m != nil {
		if n, e := strconv.Atoi(msg[m[2]:m[3]]); e == nil {
			line = d.off + n
		}
		msg = strings.TrimPrefix(msg[:m[0]]+msg[m[1]:], ": ")
	}
	return fmt.Errorf("%s:%d: %s", file, line, strings.TrimSpace(msg))
}

// checkTypes makes sure of the types the accessors of unstructured objects rely on.
func checkTypes(v map[string]any, where string) error {
	for _, k := range []string{"apiVersion", "kind"} {
		if x, ok := v[k]; ok {
			if _, ok := x.(string); !ok {
				return fmt.Errorf("%s: %s is no string", where, k)
			}
		}
	}
	m, ok := v["metadata"]
	if !ok {
		return nil
	}
	meta, ok := m.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: metadata is no map", where)
	}
	for _, k := range []string{"name", "namespace"} {
		if x, ok := meta[k]; ok {
			if _, ok := x.(string); !ok {
				return fmt.Errorf("%s: metadata.%s is no string: quote it", where, k)
			}
		}
	}
	for _, k := range []string{"labels", "annotations"} {
		m, ok := meta[k].(map[string]any)
		if meta[k] != nil && !ok {
			return fmt.Errorf("%s: metadata.%s is no map", where, k)
		}
		for name, x := range m {
			if _, ok := x.(string); !ok {
				return fmt.Errorf("%s: metadata.%s: the value of %s is no string: quote it", where, k, name)
			}
		}
	}
	return nil
}

// flatten takes lists apart.
func flatten(u *unstructured.Unstructured, where string) ([]object, error) {
	items, ok := u.Object["items"].([]any)
	if !ok || !strings.HasSuffix(u.GetKind(), "List") {
		return []object{{u, where}}, nil
	}
	var out []object
	var problems []error
	for i, item := range items {
		at := fmt.Sprintf("%s (item %d)", where, i+1)
		m, ok := item.(map[string]any)
		if !ok {
			problems = append(problems, fmt.Errorf("%s: is no object", at))
			continue
		}
		if err := checkTypes(m, at); err != nil {
			problems = append(problems, err)
			continue
		}
		objs, err := flatten(&unstructured.Unstructured{Object: m}, at)
		problems = append(problems, err)
		out = append(out, objs...)
	}
	return out, errors.Join(problems...)
}
