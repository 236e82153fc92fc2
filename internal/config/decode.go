package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Bounds of what is read, far above any real configuration. They keep a wrong file (a log, an image)
// and a malicious one (aliases of aliases) from taking memory and time.
const (
	maxFileBytes = 1 << 20
	maxNodes     = 20_000 // values after aliases are followed
	maxDepth     = 50
	maxProblems  = 100 // that are reported of one file
)

// decoder applies one YAML document to a Config that holds the weaker sources already.
type decoder struct {
	file     string
	origins  Origins
	problems []Problem
	nodes    int
	tooBig   bool
	header   string // how a document of another kind starts; "" for a configuration file
}

// decodeFile applies the document in data to cfg. Values that are wrong stay as they were. name is what
// problems call the file.
func decodeFile(name string, data []byte, cfg *Config, origins Origins) []Problem {
	d := &decoder{file: name, origins: origins}
	if root := d.parse(data); root != nil {
		d.document(root, cfg)
	}
	if n := len(d.problems); n > maxProblems {
		d.problems = append(d.problems[:maxProblems], Problem{
			Message: fmt.Sprintf("%d more problems are not shown", n-maxProblems), Origin: d.problems[maxProblems-1].Origin,
		})
	}
	return d.problems
}

func (d *decoder) at(line, column int) Origin {
	return Origin{Kind: FromFile, Name: d.file, Line: line, Column: column}
}

func (d *decoder) report(n *yaml.Node, path, hint, format string, args ...any) {
	p := Problem{Path: path, Message: fmt.Sprintf(format, args...), Hint: hint, Origin: d.at(0, 0)}
	if n != nil {
		p.Origin = d.at(n.Line, n.Column)
	}
	d.problems = append(d.problems, p)
}

var (
	// syntaxLine finds the line in the parser's messages, "yaml: line 3: did not find …"; without one the
	// first line is meant.
	syntaxLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)
	// countsFromZero are the messages whose line is one too small (go.yaml.in/yaml/v3 3.0.4).
	countsFromZero = regexp.MustCompile(`^did not find expected (<document start>|node content|',' or|key|'-' indicator)`)
	unknownAnchor  = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

// parse is the root of the only document in data, nil if it is empty or if a problem was reported.
func (d *decoder) parse(data []byte) *yaml.Node {
	if len(data) > maxFileBytes {
		d.report(nil, "", "is it the right file?", "is larger than %d KiB", maxFileBytes>>10)
		return nil
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		d.report(nil, "", "save it as UTF-8", "is UTF-16 text")
		return nil
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // Windows editors write this mark; it means nothing
	if !d.plainText(data) {
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		d.syntax(data, err)
		return nil
	}
	var more yaml.Node
	switch err := dec.Decode(&more); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntax(data, err)
		return nil
	default:
		hint := "put further settings in files of their own in config.d"
		if d.header != "" {
			hint = ""
		}
		d.report(&more, "", hint, "a second document starts here; a file holds one")
		return nil
	}
	if len(doc.Content) != 1 {
		return nil
	}
	return doc.Content[0]
}

// plainText reports the first byte that is no UTF-8 text or that YAML forbids. The parser would refuse
// both too, but without a place.
func (d *decoder) plainText(data []byte) bool {
	line, column := 1, 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			d.problems = append(d.problems, Problem{Message: fmt.Sprintf("byte 0x%02x is not UTF-8 text", data[i]), Hint: "save the file as UTF-8", Origin: d.at(line, column)})
			return false
		case r < 0x20 && r != '\t' && r != '\n' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85, r == 0xfeff, r == 0xfffe, r == 0xffff:
			d.problems = append(d.problems, Problem{Message: fmt.Sprintf("the control character %U is not allowed in YAML", r), Hint: `is it the right file? In a "…" string write it as an escape`, Origin: d.at(line, column)})
			return false
		}
		if column++; r == '\n' {
			line, column = line+1, 1
		}
		i += size
	}
	return true
}

// syntax reports what the parser said. Tabs get a message of their own: they are the usual reason and
// cannot be seen.
func (d *decoder) syntax(data []byte, err error) {
	m := syntaxLine.FindStringSubmatch(err.Error())
	message := err.Error()[len(m[0]):]
	line, err2 := strconv.Atoi(m[1])
	if countsFromZero.MatchString(message) || err2 != nil {
		line++
	}
	if anchor := unknownAnchor.FindStringSubmatch(message); anchor != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+anchor[1]))
		line = 1 + bytes.Count(before, []byte("\n"))
	}
	line = min(line, 1+bytes.Count(bytes.TrimRight(data, " \t\r\n"), []byte("\n"))) // the end of the file is no line
	for i, l := range bytes.Split(data, []byte("\n")) {
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if tab := bytes.IndexByte(indent, '\t'); tab >= 0 && i <= line {
			d.problems = append(d.problems, Problem{Message: "the line is indented with a tab", Hint: "YAML is indented with spaces", Origin: d.at(i+1, tab+1), Err: err})
			return
		}
	}
	d.problems = append(d.problems, Problem{Message: "is not YAML: " + message, Origin: d.at(line, 0), Err: err})
}

// enter follows aliases and counts; false when the document is too large or too deep to go on.
func (d *decoder) enter(n *yaml.Node, depth int) (*yaml.Node, bool) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.nodes++
	switch {
	case d.tooBig:
		return n, false
	case depth > maxDepth:
		d.tooBig = true
		d.report(n, "", "", "values are nested more than %d deep", maxDepth)
		return n, false
	case d.nodes > maxNodes:
		d.tooBig = true
		d.report(n, "", "is it the right file?", "holds more than %d values (aliases count each time)", maxNodes)
		return n, false
	}
	return n, true
}

// document checks the header and applies spec.
func (d *decoder) document(root *yaml.Node, cfg *Config) {
	if isNull(root) {
		return
	}
	if root.Kind != yaml.MappingNode {
		d.report(root, "", header, "holds %s; a configuration file starts with apiVersion and kind", describe(root))
		return
	}
	seen := map[string]bool{}
	d.entries(root, "", 0, func(key, value *yaml.Node) {
		seen[key.Value] = true
		switch key.Value {
		case "apiVersion":
			d.headerField(value, key.Value, APIVersion)
		case "kind":
			d.headerField(value, key.Value, Kind)
		case "spec":
			d.value(value, "spec", reflect.ValueOf(&cfg.Spec).Elem(), reflect.StructField{}, 1)
		default:
			d.unknown(key, "", []string{"apiVersion", "kind", "spec"})
		}
	})
	if d.tooBig {
		return
	}
	for _, name := range []string{"apiVersion", "kind"} {
		if !seen[name] {
			d.report(root, name, header, "is missing")
		}
	}
}

const header = "start the file with\n      apiVersion: " + APIVersion + "\n      kind: " + Kind

func (d *decoder) headerField(n *yaml.Node, name, want string) {
	n, ok := d.enter(n, 1)
	if !ok {
		return
	}
	if n.Kind != yaml.ScalarNode || n.Value != want {
		d.report(n, name, "", "is %s, and must be %q", describe(n), want)
	}
}

// entries calls each for every entry of a mapping, without the keys that are no text or come twice.
func (d *decoder) entries(n *yaml.Node, path string, depth int, each func(key, value *yaml.Node)) {
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, ok := d.enter(n.Content[i], depth+1)
		if !ok {
			return
		}
		switch {
		case key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge":
			d.report(key, path, "write the fields out", "merge keys (<<) are not supported")
			continue
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			d.report(key, path, "put the key in quotes", "a key is %s, and must be a string", describe(key))
			continue
		case lines[key.Value] != 0:
			d.report(n.Content[i], keyIn(path, key.Value), "", "is set twice, first in line %d", lines[key.Value])
			continue
		}
		lines[key.Value] = n.Content[i].Line
		each(key, n.Content[i+1])
		if d.tooBig {
			return
		}
	}
}

func keyIn(path, key string) string {
	if path == "" {
		return key
	}
	return keyPath(path, key)
}

// unknown reports a key that is no field, with the most helpful guess.
func (d *decoder) unknown(key *yaml.Node, path string, names []string) {
	var hint string
	if near := nearest(key.Value, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	} else if d.header == "" {
		for _, f := range Fields() {
			if strings.EqualFold(f.Name(), key.Value) {
				hint = fmt.Sprintf("did you mean %s?", f.Path)
				break
			}
		}
	}
	if hint == "" {
		where := "the file"
		if path != "" {
			where = path
		}
		hint = fmt.Sprintf("%s has: %s", where, strings.Join(names, ", "))
	}
	d.report(key, path, hint, "unknown field %q", shorten(key.Value))
}

// value applies n to v, the field sf at path.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value, sf reflect.StructField, depth int) {
	origin := d.at(n.Line, n.Column)
	n, ok := d.enter(n, depth)
	if !ok {
		return
	}
	if isNull(n) {
		resetField(v, sf)
		d.origins.forget(path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer: // *yaml.Node: whoever asked for it reads it
		v.Set(reflect.ValueOf(n))
		d.origins.set(path, origin, false)
	case reflect.Struct:
		d.structValue(n, path, v, depth)
	case reflect.Map:
		d.mapValue(n, path, v, sf, depth)
		d.origins.set(path, origin, true)
	case reflect.Slice:
		d.listValue(n, path, v, depth, origin)
	default:
		if text, ok := d.scalar(n, path, v.Kind(), sf); ok {
			if err := setText(v, []string{text}, sf.Tag.Get("enum")); err != nil {
				d.report(n, path, hintOf(err), "%v", err)
				return
			}
			d.origins.set(path, origin, false)
		}
	}
}

func (d *decoder) structValue(n *yaml.Node, path string, v reflect.Value, depth int) {
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, path, "a section with fields of its own")
		return
	}
	var names []string
	index := map[string]int{}
	for i := range v.NumField() {
		name := jsonName(v.Type().Field(i))
		names = append(names, name)
		index[name] = i
	}
	d.entries(n, path, depth, func(key, value *yaml.Node) {
		i, ok := index[key.Value]
		if !ok {
			d.unknown(key, path, names)
			return
		}
		d.value(value, path+"."+key.Value, v.Field(i), v.Type().Field(i), depth+1)
	})
}

// mapValue merges n into v: keys of weaker sources stay, a null takes one away.
func (d *decoder) mapValue(n *yaml.Node, path string, v reflect.Value, sf reflect.StructField, depth int) {
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, path, "a map, one key: value a line")
		return
	}
	merged := reflect.MakeMap(v.Type()) // never write to a map that another Config may share
	for it := v.MapRange(); it.Next(); {
		merged.SetMapIndex(it.Key(), it.Value())
	}
	elemType := v.Type().Elem()
	d.entries(n, path, depth, func(key, value *yaml.Node) {
		k, at := reflect.ValueOf(key.Value), keyPath(path, key.Value)
		target, ok := d.enter(value, depth+1)
		if !ok {
			return
		}
		if isNull(target) {
			merged.SetMapIndex(k, reflect.Value{})
			d.origins.forget(at)
			return
		}
		if elemType.Kind() == reflect.Interface {
			var old any
			if v := merged.MapIndex(k); v.IsValid() {
				old = v.Interface()
			}
			if x, ok := d.free(value, at, old, depth+1); ok {
				merged.SetMapIndex(k, reflect.ValueOf(x))
			}
			return
		}
		elem := reflect.New(elemType).Elem()
		if old := merged.MapIndex(k); old.IsValid() {
			elem.Set(old)
		}
		before := len(d.problems)
		d.value(value, at, elem, sf, depth+1)
		if len(d.problems) == before {
			merged.SetMapIndex(k, elem)
			d.origins.set(at, d.at(value.Line, value.Column), elemType.Kind() == reflect.Struct)
		}
	})
	if merged.Len() == 0 {
		v.SetZero()
		return
	}
	v.Set(merged)
}

func (d *decoder) listValue(n *yaml.Node, path string, v reflect.Value, depth int, origin Origin) {
	if n.Kind != yaml.SequenceNode {
		d.wrongType(n, path, "a list, one “- value” a line")
		return
	}
	d.origins.set(path, origin, false)
	list := reflect.Zero(v.Type())
	for i, item := range n.Content {
		at := indexPath(path, i)
		target, ok := d.enter(item, depth+1)
		if !ok {
			return
		}
		if text, ok := d.scalar(target, at, v.Type().Elem().Kind(), reflect.StructField{}); ok {
			d.origins.set(at, d.at(item.Line, item.Column), false)
			list = reflect.Append(list, reflect.ValueOf(text))
		}
	}
	v.Set(list)
}

// scalar is the text of a plain value of the right type.
func (d *decoder) scalar(n *yaml.Node, path string, kind reflect.Kind, sf reflect.StructField) (string, bool) {
	tag := ""
	if n.Kind == yaml.ScalarNode {
		tag = n.ShortTag()
	}
	switch kind {
	case reflect.String:
		if tag == "!!str" || tag != "" && tag != "!!null" && tag != "!!binary" && sf.Tag.Get("scalar") == "any" {
			return n.Value, true
		}
		d.wrongType(n, path, "a string")
	case reflect.Bool:
		if tag == "!!bool" {
			return n.Value, true
		}
		d.wrongType(n, path, "true or false")
	case reflect.Int:
		if tag == "!!int" {
			return n.Value, true
		}
		d.wrongType(n, path, "a number")
	}
	return "", false
}

func (d *decoder) wrongType(n *yaml.Node, path, want string) {
	hint := ""
	if n.Kind == yaml.ScalarNode {
		quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0
		switch {
		case want == "a string" && n.ShortTag() != "!!null" && n.ShortTag() != "!!binary":
			hint = fmt.Sprintf("put it in quotes: %q", shorten(n.Value))
		case quoted && (want == "a number" || want == "true or false"):
			hint = "take the quotes away"
		}
	}
	d.report(n, path, hint, "is %s, and must be %s", describe(n), want)
}

// free turns n into maps, lists and plain values, merged over old where both are maps. Numbers become
// int, uint64 or float64, everything a JSON encoder takes.
func (d *decoder) free(n *yaml.Node, path string, old any, depth int) (any, bool) {
	origin := d.at(n.Line, n.Column)
	n, ok := d.enter(n, depth)
	if !ok {
		return nil, false
	}
	switch n.Kind {
	case yaml.MappingNode:
		d.origins.set(path, origin, true)
		m := map[string]any{}
		if o, ok := old.(map[string]any); ok {
			for k, v := range o {
				m[k] = v
			}
		}
		d.entries(n, path, depth, func(key, value *yaml.Node) {
			at := keyPath(path, key.Value)
			target, ok := d.enter(value, depth+1)
			if !ok {
				return
			}
			if isNull(target) {
				delete(m, key.Value)
				d.origins.forget(at)
				return
			}
			if v, ok := d.free(value, at, m[key.Value], depth+1); ok {
				m[key.Value] = v
			}
		})
		return m, !d.tooBig
	case yaml.SequenceNode:
		d.origins.set(path, origin, false)
		list := make([]any, 0, len(n.Content))
		for i, item := range n.Content {
			v, ok := d.free(item, indexPath(path, i), nil, depth+1)
			if d.tooBig {
				return nil, false
			}
			if ok {
				list = append(list, v)
			}
		}
		return list, true
	}
	d.origins.set(path, origin, false)
	switch n.ShortTag() {
	case "!!null":
		return nil, true
	case "!!str", "!!timestamp": // Kubernetes has no dates in YAML, only strings that look like some
		return n.Value, true
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			d.report(n, path, "", "cannot be read: %v", err)
			return nil, false
		}
		if f, ok := v.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
			d.report(n, path, "", "is %s, and must be a finite number", n.Value)
			return nil, false
		}
		return v, true
	}
	d.report(n, path, "", "has the tag %s, which is not supported", n.Tag)
	return nil, false
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe says what was found, for "is …, and must be …".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!str":
		return fmt.Sprintf("%q", shorten(n.Value))
	case "!!bool":
		return "the boolean " + shorten(n.Value)
	case "!!int", "!!float":
		return "the number " + shorten(n.Value)
	case "!!timestamp":
		return "the date " + shorten(n.Value)
	default:
		return "a value of type " + shorten(n.Tag)
	}
}
