package upgrade

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/mod/semver"

	"k1s.io/k1s/internal/errs"
)

// Program is one k1s: a file, and what it says of itself.
type Program struct {
	// Version is that of k1s, Kubernetes that of what it carries; both as v1.2.3.
	Version    string `json:"version"`
	Kubernetes string `json:"kubernetes"`
	Commit     string `json:"commit,omitempty"`
	// Payload is the hash of what it carries.
	Payload string `json:"payload"`
	// Platform is what it was built for, as linux/amd64.
	Platform string `json:"platform,omitempty"`
	// Digest is the SHA-256 of the file in hexadecimal digits, and Bytes its size.
	Digest string `json:"digest"`
	Bytes  int64  `json:"bytes"`
}

// String names it for a person.
func (p Program) String() string {
	return fmt.Sprintf("k1s %s with Kubernetes %s", p.Version, p.Kubernetes)
}

// Around is what a node stands among: versions of Kubernetes, by the names of nodes.
type Around struct {
	// Server tells that the node has an API server.
	Server bool
	// API is the version of the API server that answers an agent; "" is unknown.
	API string
	// Kubelets are those of the other nodes that run one, and Servers those of them that are servers; only a server knows them.
	Kubelets map[string]string
	Servers  map[string]string
}

// oldestKubelet is how many minor versions a kubelet may be behind an API server, and serversApart how many API servers of one cluster may be
// apart: https://kubernetes.io/releases/version-skew-policy/.
const (
	oldestKubelet = 3
	serversApart  = 1
)

// Check tells why a node must not go from one program to another; nil when it may. older allows one that is older, within what the state
// of a cluster bears.
func Check(from, to Program, a Around, older bool) error {
	if to.Platform != from.Platform {
		return errs.New(errs.Invalid, "it is built for %s, and this machine is %s", to.Platform, from.Platform)
	}
	if to.Payload == "" {
		return errs.Hint(errs.New(errs.Invalid, "it carries no programs"), "name a k1s as it was released, or as make build leaves it")
	}
	for _, v := range []string{to.Version, to.Kubernetes} {
		if !semver.IsValid(v) {
			return errs.New(errs.Invalid, "it says that its version is %q, which is none", v)
		}
	}
	if err := inOrder(from, to, a.Server, older); err != nil {
		return err
	}
	if !a.Server {
		if a.API != "" && minors(to.Kubernetes, a.API) > 0 {
			return errs.Hint(errs.New(errs.Invalid, "it brings a kubelet %s, and the cluster's API server is %s: a kubelet must not be newer", to.Kubernetes, a.API), "upgrade the servers first")
		}
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(a.Servers)) {
		if n := minors(to.Kubernetes, a.Servers[name]); n > serversApart || n < -serversApart {
			return errs.Hint(errs.New(errs.Invalid, "it brings an API server %s, and that of server %s is %s: API servers of one cluster must not be more than one minor version apart", to.Kubernetes, name, a.Servers[name]),
				"bring all servers to one version first")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Kubelets)) {
		switch n := minors(to.Kubernetes, a.Kubelets[name]); {
		case n > oldestKubelet:
			return errs.Hint(errs.New(errs.Invalid, "it brings an API server %s, and the kubelet of node %s is %s: it must not be more than three minor versions behind", to.Kubernetes, name, a.Kubelets[name]),
				"upgrade that node first")
		case n < 0 && !isServer(a, name):
			return errs.New(errs.Invalid, "it brings an API server %s, and the kubelet of node %s is %s: a kubelet must not be newer", to.Kubernetes, name, a.Kubelets[name])
		}
	}
	return nil
}

func isServer(a Around, name string) bool {
	_, ok := a.Servers[name]
	return ok
}

// inOrder looks at the way from one version to another.
func inOrder(from, to Program, server, older bool) error {
	steps := minors(to.Kubernetes, from.Kubernetes)
	switch {
	case steps > 1:
		return errs.Hint(errs.New(errs.Invalid, "it brings Kubernetes %s, and this node runs %s: Kubernetes goes up one minor version at a time", to.Kubernetes, from.Kubernetes),
			"upgrade to a k1s with Kubernetes %s first", next(from.Kubernetes))
	case steps < 0 && server:
		return errs.Hint(errs.New(errs.Invalid, "it brings Kubernetes %s, and this server runs %s: what a newer API server has written an older one may not be able to read", to.Kubernetes, from.Kubernetes),
			"go back with a backup of that time, see: k1s backup restore --help")
	}
	compared := semver.Compare(to.Kubernetes, from.Kubernetes)
	if compared == 0 {
		compared = semver.Compare(to.Version, from.Version)
	}
	if compared < 0 && !older {
		return errs.Hint(errs.New(errs.Invalid, "it is %s, which is older than the %s that runs", to, from), "if that is what you want, add --allow-older")
	}
	return nil
}

// minors is how many minor versions a is after b; of different major versions, very many.
func minors(a, b string) int {
	var a1, a2, b1, b2 int
	if n, _ := fmt.Sscanf(semver.MajorMinor(a), "v%d.%d", &a1, &a2); n != 2 {
		return 0
	}
	if n, _ := fmt.Sscanf(semver.MajorMinor(b), "v%d.%d", &b1, &b2); n != 2 {
		return 0
	}
	return (a1-b1)*1000 + a2 - b2
}

// next is the minor version after that of v, as v1.37.
func next(v string) string {
	var major, minor int
	if n, _ := fmt.Sscanf(semver.MajorMinor(v), "v%d.%d", &major, &minor); n != 2 {
		return v
	}
	return fmt.Sprintf("v%d.%d", major, minor+1)
}
