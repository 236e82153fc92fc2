package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// Shared are the values of the fields all nodes of a cluster have to agree about, as JSON, by path ("spec.cluster.name").
func Shared(c Config) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	eachShared(&c, func(path string, v reflect.Value) {
		b, err := json.Marshal(v.Interface())
		if err != nil { // strings and numbers
			panic("config: " + path + ": " + err.Error())
		}
		out[path] = b
	})
	return out
}

// Chosen are those of Shared whose value is not the default: what a node says itself instead of taking it from its cluster.
func Chosen(c Config) map[string]json.RawMessage {
	out, defaults := Shared(c), Shared(Default())
	maps.DeleteFunc(out, func(path string, v json.RawMessage) bool { return bytes.Equal(v, defaults[path]) })
	return out
}

// Agree compares what a node says itself, see Chosen, with what its cluster has, see Shared. The error, of kind
// errs.Invalid, names every field that differs. Fields that only one of them knows are left out: their versions may differ.
func Agree(chosen, shared map[string]json.RawMessage) error {
	var differ []string
	for _, path := range slices.Sorted(maps.Keys(chosen)) {
		if theirs, ok := shared[path]; ok && !bytes.Equal(chosen[path], theirs) {
			differ = append(differ, fmt.Sprintf("%s is %s here and %s in the cluster", path, chosen[path], theirs))
		}
	}
	if len(differ) > 0 {
		return errs.Hint(errs.New(errs.Invalid, "this node's configuration is not that of its cluster: %s", strings.Join(differ, "; ")),
			"leave these out: a node takes them from its cluster")
	}
	return nil
}

// Adopt gives c the values of the cluster it is to be a node of. What c says itself has to be the default, or the same; see
// Agree. Fields that this version does not know are left out: servers may be newer.
func Adopt(c *Config, shared map[string]json.RawMessage) error {
	if err := Agree(Chosen(*c), shared); err != nil {
		return err
	}
	var bad error
	eachShared(c, func(path string, v reflect.Value) {
		theirs, ok := shared[path]
		if !ok {
			return
		}
		if err := json.Unmarshal(theirs, v.Addr().Interface()); err != nil {
			bad = errs.New(errs.Invalid, "the cluster's %s cannot be read: %w", path, err)
		}
	})
	return bad
}

// eachShared calls fn with every field that is marked as shared.
func eachShared(c *Config, fn func(path string, v reflect.Value)) {
	var walk func(parent string, v reflect.Value)
	walk = func(parent string, v reflect.Value) {
		for i := range v.NumField() {
			sf := v.Type().Field(i)
			path := parent + "." + jsonName(sf)
			if sf.Tag.Get("shared") == "true" {
				fn(path, v.Field(i))
			} else if sf.Type.Kind() == reflect.Struct {
				walk(path, v.Field(i))
			}
		}
	}
	walk("spec", reflect.ValueOf(&c.Spec).Elem())
}
