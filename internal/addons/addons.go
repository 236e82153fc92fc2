// Package addons holds the add-ons k1s brings with it, one YAML file each, and renders them for a
// node. It applies nothing: the daemon writes what it renders into a directory the add-on manager
// watches. Used by the daemon and, for the names, by the CLI.
package addons

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k1s.io/k1s/internal/addon"
	"k1s.io/k1s/internal/errs"
)

//go:embed *.yaml
var files embed.FS

// Packaged are all of them, sorted by name.
func Packaged() []addon.Addon { return slices.Clone(packaged()) }

// What is embedded is tested, so reading it cannot fail.
var packaged = sync.OnceValue(func() []addon.Addon {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		panic(err)
	}
	var out []addon.Addon
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			panic(err)
		}
		a, err := addon.Parse(name, text)
		if err != nil {
			panic(err)
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b addon.Addon) int { return strings.Compare(a.Name, b.Name) })
	return out
})

// Node is what the packaged add-ons have to know.
type Node struct {
	// ClusterDNS is the address of the DNS service.
	ClusterDNS string
	// ClusterDomain is the cluster's DNS domain, e.g. cluster.local.
	ClusterDomain string
	// HasUpstreamDNS tells that the resolver file pods inherit names a server they can reach. Without one
	// the DNS server answers for the cluster only and denies all other names at once.
	HasUpstreamDNS bool
	// PodsProgram is the program packaged pods run, on every node, e.g.
	// /var/lib/k1s/payload/current/k1s-pods.
	PodsProgram string
	// PayloadID changes when that program does; the pods are rolled then.
	PayloadID string
	// BaseImage is what packaged pods are started from; it is made on every node and never pulled.
	BaseImage string
	// StorageDir is where volumes are kept, on every node.
	StorageDir string
}

func (n Node) params() map[string]string {
	return map[string]string{
		"ClusterDNS":     n.ClusterDNS,
		"ClusterDomain":  n.ClusterDomain,
		"HasUpstreamDNS": strconv.FormatBool(n.HasUpstreamDNS),
		"PodsProgram":    n.PodsProgram,
		"PayloadID":      n.PayloadID,
		"BaseImage":      n.BaseImage,
		"StorageDir":     n.StorageDir,
	}
}

// Render returns the packaged add-ons for a node by file name (NAME.yaml), without the disabled ones.
// Disabling what is not optional, what is not there, or what another one needs is an error of kind
// errs.Invalid.
func Render(n Node, disable []string) (map[string]string, error) {
	all := packaged()
	enabled := map[string]bool{}
	for _, a := range all {
		enabled[a.Name] = true
	}
	var problems []error
	for _, name := range disable {
		i := slices.IndexFunc(all, func(a addon.Addon) bool { return a.Name == name })
		switch {
		case i < 0:
			problems = append(problems, errs.New(errs.Invalid, "cannot disable %q: there is no such packaged component", name))
		case !all[i].Optional:
			problems = append(problems, errs.New(errs.Invalid, "cannot disable %q: a node does not work without it", name))
		}
		enabled[name] = false
	}
	out := map[string]string{}
	given := n.params()
	for _, a := range all {
		if !enabled[a.Name] {
			continue
		}
		for _, d := range a.DependsOn {
			if !enabled[d] {
				problems = append(problems, errs.New(errs.Invalid, "cannot disable %q: %s needs it", d, a.Name))
			}
		}
		params := map[string]string{}
		for _, p := range a.Parameters {
			// Empty is not given: no parameter of ours has a meaning when empty.
			if v := given[p.Name]; v != "" {
				params[p.Name] = v
			}
		}
		text, err := addon.Render(a, params)
		if err != nil {
			problems = append(problems, err)
		}
		out[a.Name+".yaml"] = text
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("rendering packaged components: %w", err)
	}
	return out, nil
}
