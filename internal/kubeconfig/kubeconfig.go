// Package kubeconfig writes client configurations for the Kubernetes API: one file each for our
// components, and one entry in the user's own file, which is edited and never replaced. It talks to no
// API and imports no client library. Used by the daemon, the cluster providers and `k1s kubeconfig`.
package kubeconfig

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
)

// Config is one way to reach one cluster.
type Config struct {
	// Name is what cluster, context and user are called.
	Name string
	// Server is the API's address, e.g. https://127.0.0.1:6443.
	Server string
	// CA, Cert and Key are PEM and are embedded.
	CA, Cert, Key []byte
	// CAFile, CertFile and KeyFile are referenced instead where set: clients read them again when they
	// change, so components use these.
	CAFile, CertFile, KeyFile string
	// TLSServerName is what the server's certificate is checked for, where Server does not tell.
	TLSServerName string
	// Namespace is the context's default.
	Namespace string
}

// The shape of a file. Only what we write; foreign files are edited as YAML nodes.
type file struct {
	APIVersion     string         `yaml:"apiVersion"`
	Kind           string         `yaml:"kind"`
	CurrentContext string         `yaml:"current-context"`
	Clusters       []namedCluster `yaml:"clusters"`
	Contexts       []namedContext `yaml:"contexts"`
	Users          []namedUser    `yaml:"users"`
}

type namedCluster struct {
	Name    string      `yaml:"name"`
	Cluster clusterBody `yaml:"cluster"`
}

type clusterBody struct {
	Server        string      `yaml:"server"`
	TLSServerName string      `yaml:"tls-server-name,omitempty"`
	CA            string      `yaml:"certificate-authority,omitempty"`
	CAData        string      `yaml:"certificate-authority-data,omitempty"`
	Extensions    []extension `yaml:"extensions,omitempty"`
}

type namedContext struct {
	Name    string      `yaml:"name"`
	Context contextBody `yaml:"context"`
}

type contextBody struct {
	Cluster    string      `yaml:"cluster"`
	User       string      `yaml:"user"`
	Namespace  string      `yaml:"namespace,omitempty"`
	Extensions []extension `yaml:"extensions,omitempty"`
}

type namedUser struct {
	Name string   `yaml:"name"`
	User userBody `yaml:"user"`
}

type userBody struct {
	Cert       string      `yaml:"client-certificate,omitempty"`
	CertData   string      `yaml:"client-certificate-data,omitempty"`
	Key        string      `yaml:"client-key,omitempty"`
	KeyData    string      `yaml:"client-key-data,omitempty"`
	Extensions []extension `yaml:"extensions,omitempty"`
}

// extension is how an entry is marked as ours; clients carry it along without looking at it.
type extension struct {
	Name      string `yaml:"name"`
	Extension origin `yaml:"extension"`
}

// originName is the extension's name.
const originName = "k1s.io/origin"

type origin struct {
	Cluster string `yaml:"cluster"`
	// Previous is the current context before ours became it; it comes back when ours is removed.
	Previous string `yaml:"previous,omitempty"`
}

func (c Config) file(marks []extension) (file, error) {
	switch {
	case c.Name == "":
		return file{}, errors.New("building a kubeconfig: the cluster has no name")
	case c.Server == "":
		return file{}, fmt.Errorf("building the kubeconfig of %q: there is no server address", c.Name)
	}
	b64 := base64.StdEncoding.EncodeToString
	return file{
		APIVersion: "v1", Kind: "Config", CurrentContext: c.Name,
		Clusters: []namedCluster{{c.Name, clusterBody{Server: c.Server, TLSServerName: c.TLSServerName, CA: c.CAFile, CAData: b64(c.CA), Extensions: marks}}},
		Contexts: []namedContext{{c.Name, contextBody{Cluster: c.Name, User: c.Name, Namespace: c.Namespace, Extensions: marks}}},
		Users:    []namedUser{{c.Name, userBody{Cert: c.CertFile, CertData: b64(c.Cert), Key: c.KeyFile, KeyData: b64(c.Key), Extensions: marks}}},
	}, nil
}

// Build renders a file with this one entry.
func Build(c Config) ([]byte, error) {
	f, err := c.file(nil)
	if err != nil {
		return nil, err
	}
	return encode(f)
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding a kubeconfig: %w", err)
	}
	return b.Bytes(), nil
}

// WriteFile writes c to a file of our own with mode 0600, atomically, making its directory. A file that
// has this content already is left alone, so nobody who watches it is woken.
func WriteFile(path string, c Config) error {
	b, err := Build(c)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 == 0 {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing kubeconfig: %w", err)
	}
	return durable.WriteFile(path, b, 0o600)
}

// Files lists the user's kubeconfig files as kubectl reads them: those in KUBECONFIG, or .kube/config
// in the home directory. The first is the one to write to. Empty if there is neither.
func Files(getenv func(string) string, home string) []string {
	var files []string
	for _, f := range filepath.SplitList(getenv("KUBECONFIG")) {
		if f != "" {
			files = append(files, f)
		}
	}
	if len(files) == 0 && home != "" {
		files = []string{filepath.Join(home, ".kube", "config")}
	}
	return files
}

// Load reads the current context of a file, with the data of referenced files embedded.
func Load(path string) (Config, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, errs.As(errs.NotFound, fmt.Errorf("reading kubeconfig: %w", err))
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading kubeconfig: %w", err)
	}
	return parse(path, raw, "", filepath.Dir(path))
}

// ExportOptions change a configuration on its way out.
type ExportOptions struct {
	Server        string // another address of the API; as it is if empty
	TLSServerName string // what the certificate is checked for, where the new address is not in it
	Name          string // another name; as it is if empty
	Context       string // which context; the current one if empty
	Dir           string // what relative file names are relative to
}

// Export reduces a kubeconfig to one context with all data embedded, so that it can be carried to another
// machine.
func Export(raw []byte, o ExportOptions) ([]byte, error) {
	c, err := parse("kubeconfig", raw, o.Context, o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Name != "" {
		c.Name = o.Name
	}
	if o.Server != "" {
		c.Server = o.Server
	}
	if o.TLSServerName != "" {
		c.TLSServerName = o.TLSServerName
	}
	return Build(c)
}

func parse(path string, raw []byte, ctxName, dir string) (Config, error) {
	var f file
	if err := yaml.Unmarshal(raw, &f); err != nil {
		return Config{}, parseError(path, err)
	}
	if ctxName == "" {
		ctxName = f.CurrentContext
	}
	missing := func(what, name string) error {
		return errs.New(errs.NotFound, "reading kubeconfig %q: there is no %s %q in it", path, what, name)
	}
	for _, ctx := range f.Contexts {
		if ctx.Name != ctxName {
			continue
		}
		c := Config{Name: ctx.Name, Namespace: ctx.Context.Namespace}
		found := false
		for _, cl := range f.Clusters {
			if found = cl.Name == ctx.Context.Cluster; found {
				c.Server, c.TLSServerName = cl.Cluster.Server, cl.Cluster.TLSServerName
				var err error
				if c.CA, err = data(cl.Cluster.CAData, cl.Cluster.CA, dir); err != nil {
					return Config{}, fmt.Errorf("reading kubeconfig %q: cluster %q: %w", path, cl.Name, err)
				}
				break
			}
		}
		if !found {
			return Config{}, missing("cluster", ctx.Context.Cluster)
		}
		for _, u := range f.Users {
			if u.Name != ctx.Context.User {
				continue
			}
			var certErr, keyErr error
			c.Cert, certErr = data(u.User.CertData, u.User.Cert, dir)
			c.Key, keyErr = data(u.User.KeyData, u.User.Key, dir)
			if err := errors.Join(certErr, keyErr); err != nil {
				return Config{}, fmt.Errorf("reading kubeconfig %q: user %q: %w", path, u.Name, err)
			}
			return c, nil
		}
		return Config{}, missing("user", ctx.Context.User)
	}
	return Config{}, missing("context", ctxName)
}

// data is what is embedded, which wins as in kubectl, or what the file says.
func data(embedded, name, dir string) ([]byte, error) {
	if embedded != "" {
		return base64.StdEncoding.DecodeString(embedded)
	}
	if name == "" {
		return nil, nil
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	return os.ReadFile(name)
}

// parseError puts YAML's "line 3: …" where people look for it: after the file name.
func parseError(path string, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	msg = strings.TrimPrefix(msg, "unmarshal errors:\n  ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if line, what, ok := strings.Cut(rest, ": "); ok {
			return badFile(path, line, what)
		}
	}
	return badFile(path, "1", msg)
}

func badFile(path, line, what string) error {
	return errs.Hint(errs.New(errs.Invalid, "reading kubeconfig %s:%s: %s", path, line, what),
		"correct the file, or choose another one with the variable KUBECONFIG")
}

// WSLPath is how Windows programs reach a file inside a WSL distribution.
func WSLPath(distro, path string) string {
	return `\\wsl$\` + distro + strings.ReplaceAll(path, "/", `\`)
}
