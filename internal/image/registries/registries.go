// Package registries reads the file that says where images are pulled from (registries.yaml, in the
// schema K3s users know) and renders it for containerd. Text in, text out: it opens no certificate and
// asks no registry. Used by the daemon, which writes the result, and by `k1s config validate`.
package registries

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/strictyaml"
)

// Registries is what the user wrote.
type Registries struct {
	// Mirrors are the endpoints asked instead of a registry, by registry ("docker.io", "host:5000", or "*"
	// for every registry not named).
	Mirrors map[string]Mirror `yaml:"mirrors"`
	// Configs say how to talk to a host, by the host of an endpoint.
	Configs map[string]Config `yaml:"configs"`
}

// Mirror replaces a registry.
type Mirror struct {
	// Endpoints are URLs, tried in order; a bare host means https.
	Endpoints []string `yaml:"endpoint"`
	// Rewrites change repository names: regular expression to replacement. See Hosts for what containerd
	// can do of this.
	Rewrites map[string]string `yaml:"rewrite"`
}

// Config is how to talk to one host.
type Config struct {
	Auth *Auth `yaml:"auth"`
	TLS  *TLS  `yaml:"tls"`
}

// Auth is who we are at a host.
type Auth struct {
	Username      string `yaml:"username"`
	Password      Secret `yaml:"password"`
	IdentityToken Secret `yaml:"identity_token"`
}

// Secret prints as [redacted].
type Secret string

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[redacted]"
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// TLS is how a host's certificate is checked, and ours.
type TLS struct {
	CAFile             string `yaml:"ca_file"`
	CertFile           string `yaml:"cert_file"`
	KeyFile            string `yaml:"key_file"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
}

// wildcard is the mirror for every registry that is not named.
const wildcard = "*"

// Parse reads a registries file; name is how errors call it. Empty content is no registries. An unknown
// key, a wrong type or a wrong value is an error of kind errs.Invalid that names file and line.
func Parse(name string, content []byte) (Registries, error) {
	var f Registries
	if err := strictyaml.Decode(name, content, &f); err != nil {
		return Registries{}, invalid(err)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(content, &root); err != nil { // it was decoded once already
		return Registries{}, invalid(fmt.Errorf("%s: %w", name, err))
	}
	v := validator{name: name, root: &root}
	v.file(f)
	if err := errors.Join(v.problems...); err != nil {
		return Registries{}, invalid(err)
	}
	return f, nil
}

func invalid(err error) error {
	return errs.Hint(errs.As(errs.Invalid, err), "the keys are: mirrors.NAME.endpoint, mirrors.NAME.rewrite, "+
		"configs.HOST.auth.{username,password,identity_token}, configs.HOST.tls.{ca_file,cert_file,key_file,insecure_skip_verify}")
}

type validator struct {
	name     string
	root     *yaml.Node
	problems []error
}

// at finds the line of a key so that the error can name it.
func (v *validator) at(keys ...string) int {
	n := v.root
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	line := n.Line
	for _, key := range keys {
		found := false
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			break
		}
	}
	return line
}

func (v *validator) bad(keys []string, format string, args ...any) {
	v.problems = append(v.problems, fmt.Errorf("%s:%d: %s: %s", v.name, v.at(keys...), strings.Join(keys, "."), fmt.Sprintf(format, args...)))
}

func (v *validator) file(f Registries) {
	for _, name := range slices.Sorted(maps.Keys(f.Mirrors)) {
		m, keys := f.Mirrors[name], []string{"mirrors", name}
		if name != wildcard && !isHost(name) {
			v.bad(keys, "%q is not a registry; write its host, with a port where it has one", name)
		}
		for _, e := range m.Endpoints {
			if _, err := endpoint(e); err != nil {
				v.bad(append(keys, "endpoint"), "%v", err)
			}
		}
		if _, err := prefixOf(m.Rewrites); err != nil {
			v.bad(append(keys, "rewrite"), "%v", err)
		}
	}
	for _, host := range slices.Sorted(maps.Keys(f.Configs)) {
		c, keys := f.Configs[host], []string{"configs", host}
		if !isHost(host) {
			v.bad(keys, "%q is not a host; write it without a scheme and a path", host)
		}
		if a := c.Auth; a != nil {
			switch {
			case a.Password != "" && a.Username == "":
				v.bad(append(keys, "auth"), "a password needs a username")
			case a.Username != "" && a.IdentityToken != "":
				v.bad(append(keys, "auth"), "give either username and password or an identity_token")
			}
		}
		if t := c.TLS; t != nil {
			if (t.CertFile == "") != (t.KeyFile == "") {
				v.bad(append(keys, "tls"), "cert_file and key_file belong together")
			}
			for _, file := range []string{t.CAFile, t.CertFile, t.KeyFile} {
				if file != "" && !path.IsAbs(file) {
					v.bad(append(keys, "tls"), "%q must be an absolute path", file)
				}
			}
		}
	}
}

func isHost(s string) bool {
	u, err := url.Parse("https://" + s)
	return err == nil && s != "" && u.Host == s && u.User == nil && u.Hostname() != ""
}

func endpoint(s string) (*url.URL, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = "https://" + s
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		return nil, fmt.Errorf("endpoint %q is not a URL: %w", s, err)
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("endpoint %q: the scheme must be https or http", s)
	case u.Hostname() == "":
		return nil, fmt.Errorf("endpoint %q names no host", s)
	case u.User != nil:
		return nil, fmt.Errorf("endpoint %q: credentials belong into configs.%s.auth", u.Redacted(), u.Host)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("endpoint %q: a query has no meaning here", s)
	}
	return u, nil
}

// prefixOf understands the one kind of rewrite that containerd can do without knowing the word: putting
// something in front of every repository name, which is a path of the endpoint.
func prefixOf(rewrites map[string]string) (string, error) {
	for pattern, replacement := range rewrites {
		if len(rewrites) > 1 {
			return "", errors.New("containerd 2.3 cannot choose between several rewrites; give one")
		}
		whole := slices.Contains([]string{"^(.*)$", "(.*)", "^(.*)", "(.*)$", "^(.+)$", "(.+)"}, pattern)
		prefix, ok := strings.CutSuffix(replacement, "$1")
		if !whole || !ok || strings.ContainsAny(prefix, "$?#% ") || !strings.HasSuffix(prefix, "/") {
			return "", fmt.Errorf("containerd 2.3 can only put a prefix in front of every name "+
				`("^(.*)$": "prefix/$1"), not rewrite %q to %q`, pattern, replacement)
		}
		return strings.Trim(prefix, "/"), nil
	}
	return "", nil
}

// Hosts renders the content of containerd's certs.d directory: file name relative to it → content.
//
// A rewrite becomes part of the endpoint's path; one that cannot is an error of kind errs.Invalid, which
// Parse gives as well. With disableDefault nothing is pulled from a registry the file does not name: a
// mirrored registry only from its endpoints, and one that is not mentioned at all from nowhere.
func Hosts(f Registries, disableDefault bool) (map[string]string, error) {
	files := map[string]string{}
	var failed []error
	add := func(name string, m Mirror, only bool) {
		dir := directory(name)
		if name == wildcard {
			dir = "_default"
		}
		text, err := hostsFile(f, name, m, only)
		if err != nil {
			failed = append(failed, fmt.Errorf("mirrors.%s: %w", name, err))
		}
		files[dir+"/hosts.toml"] = text
	}
	for _, name := range slices.Sorted(maps.Keys(f.Mirrors)) {
		m := f.Mirrors[name]
		// Naming a registry without an endpoint says that it may be asked itself.
		add(name, m, disableDefault && (name == wildcard || len(m.Endpoints) > 0))
	}
	for host := range f.Configs {
		if _, mirrored := f.Mirrors[registry(host)]; !mirrored {
			add(registry(host), Mirror{}, false)
		}
	}
	if _, ok := f.Mirrors[wildcard]; !ok && disableDefault {
		add(wildcard, Mirror{}, true)
	}
	if err := errors.Join(failed...); err != nil {
		return nil, errs.As(errs.Invalid, err)
	}
	return files, nil
}

// The one registry whose host is not its name.
const (
	dockerName = "docker.io"
	dockerHost = "registry-1.docker.io"
)

// registry is what a host is called in image names.
func registry(host string) string {
	if host == dockerHost {
		return dockerName
	}
	return host
}

// config is what is known about the host of a registry or an endpoint.
func (f Registries) config(host string) Config {
	if c, ok := f.Configs[host]; ok {
		return c
	}
	if host == dockerName {
		return f.Configs[dockerHost]
	}
	return f.Configs[registry(host)]
}

// nowhere is a server that is never asked: it can only be pushed to, and nodes do not push. containerd
// always adds the registry itself as the last resort unless another one is named.
const nowhere = "https://disabled.invalid"

func hostsFile(f Registries, name string, m Mirror, disableDefault bool) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by k1s from registries.yaml (%s).\n", name)
	switch {
	case disableDefault:
		fmt.Fprintf(&b, "server = %s\ncapabilities = [\"push\"]\n", quote(nowhere))
	case name != wildcard:
		// Without a server containerd takes the registry itself and knows best which URL that is.
		writeTLS(&b, "", f.config(name).TLS)
	}
	prefix, err := prefixOf(m.Rewrites)
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	for _, e := range m.Endpoints {
		u, err := endpoint(e)
		if err != nil {
			return "", err
		}
		base := apiRoot(*u, prefix)
		if seen[base] { // a table may not be opened twice
			continue
		}
		seen[base] = true
		fmt.Fprintf(&b, "\n[host.%s]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n", quote(base))
		// An endpoint that says http means it: with anything about TLS containerd 2.3 would try https there.
		if u.Scheme == "https" {
			writeTLS(&b, "  ", f.config(u.Host).TLS)
		}
	}
	return b.String(), nil
}

// apiRoot is the endpoint with the path under which repositories are found. It is always written out in
// full (override_path): containerd's own rule looks at whether the path ends in /v2.
func apiRoot(u url.URL, prefix string) string {
	p := path.Clean("/" + u.Path)
	if !strings.HasSuffix(p, "/v2") && !strings.Contains(p, "/v2/") {
		p = path.Join(p, "v2")
	}
	u.Path = path.Join(p, prefix)
	return u.String()
}

func writeTLS(b *strings.Builder, indent string, t *TLS) {
	if t == nil {
		return
	}
	if t.CAFile != "" {
		fmt.Fprintf(b, "%sca = %s\n", indent, quote(t.CAFile))
	}
	if t.CertFile != "" {
		fmt.Fprintf(b, "%sclient = [[%s, %s]]\n", indent, quote(t.CertFile), quote(t.KeyFile))
	}
	if t.InsecureSkipVerify {
		fmt.Fprintf(b, "%sskip_verify = true\n", indent)
	}
}

// directory is how containerd calls a registry's directory: a port's colon is not welcome in names.
func directory(host string) string {
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		return host[:i] + "_" + host[i+1:] + "_"
	}
	return host
}

// AuthTOML renders the credentials for containerd's configuration file; "" when there are none. They
// belong there and not into hosts.toml: a header in hosts.toml is sent as it is, which the token
// services most registries use do not understand.
func AuthTOML(f Registries) string {
	var b strings.Builder
	for _, host := range slices.Sorted(maps.Keys(f.Configs)) {
		a := f.Configs[host].Auth
		if a == nil {
			continue
		}
		if host == dockerName { // containerd looks credentials up by the host it talks to
			if other, ok := f.Configs[dockerHost]; ok && other.Auth != nil {
				continue
			}
			host = dockerHost
		}
		fmt.Fprintf(&b, "[plugins.'io.containerd.cri.v1.images'.registry.configs.%s.auth]\n", quote(host))
		if a.Username != "" {
			fmt.Fprintf(&b, "  username = %s\n  password = %s\n", quote(a.Username), quote(string(a.Password)))
		}
		if a.IdentityToken != "" {
			fmt.Fprintf(&b, "  identitytoken = %s\n", quote(string(a.IdentityToken)))
		}
	}
	return b.String()
}

// quote writes a TOML basic string. Its escapes are JSON's, and DEL has to be escaped as well.
func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil { // a string always encodes
		panic(err)
	}
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}
