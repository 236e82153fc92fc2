package config

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a string that shows itself to nobody by accident: printed with any verb, logged, or encoded
// as JSON, text or YAML it is "[redacted]". Only Reveal gives the value.
type Secret string

const redacted = "[redacted]"

// Reveal is the value.
func (s Secret) Reveal() string { return string(s) }

// String is "[redacted]", or "" if there is no secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format prints String for every verb, so that %x and %#v tell nothing either.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText serves encoding/json and most other encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML serves the YAML encoder.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// LogValue serves slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
