// Package strictyaml decodes YAML files users write besides the configuration: one document, no unknown key,
// and every error with file and line. It is not for what programs write. Used by image/registries and audit.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Decode reads content into v; name is how errors call it. Empty content leaves v as it is.
func Decode(name string, content []byte, v any) error {
	dec := yaml.NewDecoder(bytes.NewReader(content))
	dec.KnownFields(true)
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return located(name, err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: only one YAML document is read, there are more", name)
	}
	return nil
}

// located turns "yaml: line 3: …" and "line 3: field x not found in type …" into "file:3: …".
func located(name string, err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return errors.New(place(name, strings.TrimPrefix(err.Error(), "yaml: ")))
	}
	var all []error
	for _, msg := range te.Errors {
		// A Go type means nothing to the user.
		if field, _, ok := strings.Cut(msg, " not found in type "); ok {
			line, key, _ := strings.Cut(field, ": field ")
			msg = fmt.Sprintf("%s: unknown key %q", line, key)
		}
		all = append(all, errors.New(place(name, msg)))
	}
	return errors.Join(all...)
}

func place(name, msg string) string {
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if line, rest, ok := strings.Cut(rest, ": "); ok {
			return name + ":" + line + ": " + rest
		}
	}
	return name + ": " + msg
}
