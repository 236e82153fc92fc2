package clustercmd

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
)

// kindCluster is the kind of a clusterFile.
const kindCluster = "Cluster"

// clusterFile describes a whole cluster. Its fields are those of `k1s cluster create`; entries of lists have the form
// of the flag. Paths are relative to the file.
type clusterFile struct {
	APIVersion    string     `json:"-" yaml:"apiVersion"`
	Kind          string     `json:"-" yaml:"kind"`
	Name          string     `json:"name,omitempty" yaml:"name,omitempty"`
	Servers       group      `json:"servers" yaml:"servers,omitempty"`
	Agents        group      `json:"agents" yaml:"agents,omitempty"`
	Spec          *yaml.Node `json:"spec,omitempty" yaml:"spec,omitempty"` // of every node's configuration
	Set           []string   `json:"set,omitempty" yaml:"set,omitempty"`
	Args          []string   `json:"args,omitempty" yaml:"args,omitempty"`
	Labels        []string   `json:"labels,omitempty" yaml:"labels,omitempty"`
	Taints        []string   `json:"taints,omitempty" yaml:"taints,omitempty"`
	Env           []string   `json:"env,omitempty" yaml:"env,omitempty"`
	Volumes       []string   `json:"volumes,omitempty" yaml:"volumes,omitempty"`
	ImageBundles  []string   `json:"imageBundles,omitempty" yaml:"imageBundles,omitempty"`
	Registries    *yaml.Node `json:"registries,omitempty" yaml:"registries,omitempty"` // a file's name, or its content
	Registry      []string   `json:"registry,omitempty" yaml:"registry,omitempty"`
	Publish       []string   `json:"publish,omitempty" yaml:"publish,omitempty"`
	Reach         []string   `json:"reach,omitempty" yaml:"reach,omitempty"`
	Egress        bool       `json:"egress" yaml:"egress,omitempty"`
	APIPort       int        `json:"apiPort" yaml:"apiPort,omitempty"`
	Subnet        string     `json:"subnet,omitempty" yaml:"subnet,omitempty"`
	Image         string     `json:"image,omitempty" yaml:"image,omitempty"`
	Version       string     `json:"version,omitempty" yaml:"version,omitempty"`
	Wait          string     `json:"wait,omitempty" yaml:"wait,omitempty"` // "0s" is not at all
	Kubeconfig    bool       `json:"kubeconfig" yaml:"kubeconfig" default:"true"`
	SwitchContext bool       `json:"switchContext" yaml:"switchContext" default:"true"`
}

// group are the nodes of a role.
type group struct {
	Count int        `json:"count" yaml:"count"`
	Spec  *yaml.Node `json:"spec,omitempty" yaml:"spec,omitempty"` // over that of every node
}

// written is a clusterFile with where it was written.
type written struct {
	clusterFile
	name    string // as messages call it
	dir     string // what paths are relative to
	origins config.Origins
}

// readConfig reads --config: a cluster file, or the text of a configuration for every node.
func readConfig(path string, in io.Reader) (*written, string, error) {
	var (
		raw []byte
		err error
	)
	w := &written{name: path}
	if path == "-" {
		w.name = "standard input"
		raw, err = io.ReadAll(io.LimitReader(in, maxFile+1))
		w.dir = "."
	} else {
		raw, err = readFile(path)
		w.dir = filepath.Dir(path)
	}
	if err != nil {
		return nil, "", errs.New(errs.Invalid, "reading --config: %w", err)
	}
	if len(strings.TrimSpace(string(raw))) == 0 {
		return nil, "", errs.New(errs.Invalid, "%s is empty", w.name)
	}
	if config.KindOf(raw) == config.Kind {
		return nil, string(raw), nil
	}
	var problems []config.Problem
	w.origins, problems = config.DecodeDocument(w.name, raw, kindCluster, &w.clusterFile)
	for i, p := range problems {
		if p.Path == "kind" && p.Hint == "" {
			problems[i].Hint = fmt.Sprintf("a file for --config is of kind %s, or of kind %s: a configuration for every node", kindCluster, config.Kind)
		}
	}
	return w, "", config.Invalid(problems)
}

// maxFile is more than any file of ours has.
const maxFile = 1 << 20

func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() || st.Size() > maxFile {
		return nil, fmt.Errorf("%s is no file of that kind", path)
	}
	return os.ReadFile(path)
}

// problem says what is wrong with a field, and where that is written.
func (w *written) problem(path string, err error) error {
	hint, _ := errs.HintOf(err)
	return config.Invalid([]config.Problem{{Path: path, Message: err.Error(), Hint: hint, Origin: w.origins.Of(path), Err: err}})
}

// each hands the entries of a list to parse, which says what is wrong with one.
func (w *written) each(path string, list []string, parse func(string) error) error {
	for i, s := range list {
		if err := parse(s); err != nil {
			return w.problem(fmt.Sprintf("%s[%d]", path, i), err)
		}
	}
	return nil
}
