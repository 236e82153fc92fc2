package config

import (
	"fmt"
	"slices"
	"strings"
)

// OriginKind says which of the four sources a value comes from.
type OriginKind string

// The sources, weakest first.
const (
	FromDefault     OriginKind = "default"
	FromFile        OriginKind = "file"
	FromEnvironment OriginKind = "environment"
	FromFlag        OriginKind = "flag"
)

// Origin is where a value was written. The zero value is the default.
type Origin struct {
	Kind   OriginKind `json:"kind"`
	Name   string     `json:"name,omitempty"`   // path of the file, name of the variable, or flag with its dashes
	Line   int        `json:"line,omitempty"`   // in a file, from 1; 0 if the whole file is meant
	Column int        `json:"column,omitempty"` // in a file, from 1
}

// String is the form people know: /etc/k1s/config.yaml:7:3, K1S_API_PORT, --api-port, default.
func (o Origin) String() string {
	switch {
	case o.Name == "":
		return string(FromDefault)
	case o.Line > 0 && o.Column > 0:
		return fmt.Sprintf("%s:%d:%d", o.Name, o.Line, o.Column)
	case o.Line > 0:
		return fmt.Sprintf("%s:%d", o.Name, o.Line)
	default:
		return o.Name
	}
}

// Origins tells for each path that was set where that happened. Paths look like spec.api.port,
// spec.api.sans[1] and spec.node.labels["example.com/rack"].
type Origins map[string]Origin

// Of is the origin of the value at path, or of what encloses it.
func (o Origins) Of(path string) Origin {
	for path != "" {
		if found, ok := o[path]; ok {
			return found
		}
		path = parentPath(path)
	}
	return Origin{Kind: FromDefault}
}

// set records that the value at path was written at origin, in place of whatever was there. Elements
// of a replaced list or map are forgotten unless keep is true (maps are merged).
func (o Origins) set(path string, origin Origin, keep bool) {
	if !keep {
		o.forget(path)
	}
	o[path] = origin
}

// forget drops path and everything below it.
func (o Origins) forget(path string) {
	if _, ok := o[path]; !ok {
		return // an element is never recorded without what holds it
	}
	for p := range o {
		if rest, ok := strings.CutPrefix(p, path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			delete(o, p)
		}
	}
}

// keyPath is the path of a key in the map at parent. Keys that are not plain words are quoted.
func keyPath(parent, key string) string {
	plain := key != ""
	for _, c := range key {
		if !(c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
			plain = false
			break
		}
	}
	if plain {
		return parent + "." + key
	}
	return fmt.Sprintf("%s[%q]", parent, key)
}

func indexPath(parent string, i int) string { return fmt.Sprintf("%s[%d]", parent, i) }

// parentPath takes the last part off; "" when there is nothing left.
func parentPath(path string) string {
	if strings.HasSuffix(path, `"]`) { // the quoted key may hold dots and brackets
		if i := strings.LastIndex(path, `["`); i >= 0 {
			return path[:i]
		}
	}
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}

// shorten keeps what a user wrote quotable in one line of a message.
func shorten(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// Names are the files, variables and flags of the given kinds that anything comes from, sorted.
func (o Origins) Names(kinds ...OriginKind) []string {
	var list []string
	for _, origin := range o {
		if slices.Contains(kinds, origin.Kind) && !slices.Contains(list, origin.Name) {
			list = append(list, origin.Name)
		}
	}
	slices.Sort(list)
	return list
}
