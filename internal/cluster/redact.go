package cluster

import (
	"bytes"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/config"
)

// redacted stands where a secret was.
const redacted = "[redacted]"

// Public is a status without secrets, to be shown and passed on: passwords in variables and in the configuration of nodes
// are left out.
func (st Status) Public() Status {
	s := &st.Spec
	s.Env = slices.Clone(s.Env)
	for i := range s.Env {
		s.Env[i].Value = publicValue(s.Env[i].Name, s.Env[i].Value)
	}
	s.Nodes, s.Like = slices.Clone(s.Nodes), slices.Clone(s.Like)
	for _, nodes := range [][]NodeSpec{s.Nodes, s.Like} {
		for i := range nodes {
			nodes[i].Config = PublicConfig(nodes[i].Config)
		}
	}
	return st
}

// secretName are names of variables and of keys whose values nobody should see.
var secretName = regexp.MustCompile(`(?i)passw|secret|token|credential|api_?key|private_?key`)

func publicValue(name, value string) string {
	if secretName.MatchString(name) {
		return redacted
	}
	if u, err := url.Parse(value); err == nil && u.User != nil {
		if _, has := u.User.Password(); has {
			u.User = url.UserPassword(u.User.Username(), "xxxxx")
			return strings.Replace(u.String(), "xxxxx", redacted, 1)
		}
	}
	return value
}

// PublicConfig is a YAML file (a node's configuration, registries) with the values of what sounds like a secret, and the
// passwords in URLs, left out. One that cannot be read is left out altogether.
func PublicConfig(text string) string {
	if strings.TrimSpace(text) == "" {
		return text
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return redacted + "\n"
	}
	changed := false
	hide(&doc, &changed)
	if !changed {
		return text
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return redacted + "\n"
	}
	return b.String()
}

func hide(n *yaml.Node, changed *bool) {
	if n.Kind != yaml.MappingNode {
		for _, c := range n.Content {
			hide(c, changed)
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if value.Kind != yaml.ScalarNode {
			hide(value, changed)
			continue
		}
		if strings.HasSuffix(key.Value, "File") || strings.HasSuffix(key.Value, "_file") { // the name of a file is none
			continue
		}
		public := publicValue(key.Value, value.Value)
		if dsn := config.DSN(value.Value); key.Value == "endpoint" && public == value.Value && dsn.HasPassword() {
			public = dsn.String()
		}
		if public != value.Value {
			value.SetString(public)
			*changed = true
		}
	}
}

// The forms of secrets that may be in a log, with what is kept of them.
var secretForms = []struct {
	form *regexp.Regexp
	keep string
}{
	{regexp.MustCompile(`(?s)-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END [A-Z ]*PRIVATE KEY-----`), redacted},
	{regexp.MustCompile(`\b(k1s\d+)\.[A-Za-z0-9._-]{20,}`), "$1." + redacted}, // a token to join with
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`), redacted},
	{regexp.MustCompile(`(?i)(authorization:\s*(?:basic|bearer)\s+)\S+`), "${1}" + redacted},
	{regexp.MustCompile(`([a-z][a-z0-9+.-]*://[^\s/:@"']*):[^\s/@"']+@`), "$1:" + redacted + "@"},
	{regexp.MustCompile(`(?i)((?:client-key-data|certificate-key|passwd|password|secret|token|api_?key)[_0-9]*["']?\s*[:=]\s*)["']?[^\s"',}]{6,}["']?`), "${1}" + redacted},
}

// Redact takes the secrets out of a text: those it is told, and what looks like one.
func Redact(text []byte, known []string) []byte {
	for _, k := range known {
		if len(k) >= 6 { // shorter ones are part of too many words
			text = bytes.ReplaceAll(text, []byte(k), []byte(redacted))
		}
	}
	for _, s := range secretForms {
		text = s.form.ReplaceAll(text, []byte(s.keep))
	}
	return text
}
