package components

import (
	"cmp"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/timers"
)

// Users of the control plane, as numbers from spec.users.first on. Like kubeadm's rootless control plane there is one a component,
// and a group of those who read the key of service accounts. The others need root: containerd, kubelet, kube-proxy, flannel and
// network policies make cgroups, mounts, namespaces, routes and rules, and what shares their process is with them.
const (
	sharedKeys = iota
	groupedUser
	apiserverUser
	controllerManagerUser
	schedulerUser
	kineUser
	etcdUser
	addonManagerUser
	// UserCount is how many numbers there are.
	UserCount
)

var userNumbers = map[string]int{
	controlPlane:              groupedUser,
	"kube-apiserver":          apiserverUser,
	"kube-controller-manager": controllerManagerUser,
	"kube-scheduler":          schedulerUser,
	"kine":                    kineUser,
	"etcd":                    etcdUser,
	"addon-manager":           addonManagerUser,
}

func reads(files ...string) []component.Access {
	var out []component.Access
	for _, f := range files {
		out = append(out, component.Access{Path: f, Way: component.Reads})
	}
	return out
}

func owns(dir string) component.Access  { return component.Access{Path: dir, Way: component.Owns} }
func views(dir string) component.Access { return component.Access{Path: dir, Way: component.Views} }

// clientFiles are the kubeconfig of a component and the key it names.
func clientFiles(in component.Input, name string) []component.Access {
	return reads(in.Paths.Kubeconfig(name), in.Paths.PKI(strings.TrimPrefix(name, "kube-")+"-client.key"))
}

// databaseFiles are the files with which a database of others is reached: ours, as a server got them that joined, and those of the
// user, with what the database's URL names.
func databaseFiles(in component.Input) (ours []component.Access, given []string) {
	d := in.Config.Spec.Datastore
	for _, f := range append([]string{d.CAFile, d.CertFile, d.KeyFile}, urlFiles(d.Endpoint.Reveal())...) {
		switch {
		case f == "":
		case strings.HasPrefix(f, in.Paths.Data+"/"):
			ours = append(ours, reads(f)...)
		default:
			given = append(given, f)
		}
	}
	return ours, given
}

// fileParameters are those by which URLs of databases name files, for PostgreSQL (libpq) and NATS (kine).
var fileParameters = []string{"sslcert", "sslkey", "sslrootcert", "passfile", "credsFile"}

// urlFiles are the files that parameters of a database's URL name.
func urlFiles(text string) []string {
	_, query, _ := strings.Cut(text, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil // whoever uses it says so
	}
	var out []string
	for _, name := range fileParameters {
		if v := values.Get(name); path.IsAbs(v) {
			out = append(out, v)
		}
	}
	return out
}

// argumentFiles are what the user's own arguments for a component name, as oidc-ca-file: whatever looks like a file.
func argumentFiles(in component.Input, name string) []string {
	var out []string
	for flag, v := range in.Config.Spec.Components[name].Args {
		if path.IsAbs(v) && (strings.HasSuffix(flag, "-file") || flag == "config" || strings.HasSuffix(flag, "-config") || strings.HasSuffix(flag, "kubeconfig")) {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

// users says of every unit as whom it runs, and what of the node's files is its user's. It changes nothing where nobody has asked for
// users, and takes back where that was so before.
func users(in component.Input, units []component.Unit) error {
	u := in.Config.Spec.Users
	if !in.Config.Spec.ControlPlane() || !u.Separate && len(in.Former) == 0 {
		return nil
	}
	if u.Separate && in.Config.Spec.Isolation == Fused {
		return errs.Hint(errs.New(errs.Invalid, "spec.users.separate cannot be had with spec.isolation none: the kubelet is in the same process, and needs root"),
			"set spec.isolation to grouped or component")
	}
	a := accounts{in: in, of: map[string]*component.User{}}
	for i := range units {
		if number, ok := userNumbers[units[i].Name]; ok && u.Separate {
			id := u.First + number
			units[i].User = &component.User{UID: id, GID: id}
			units[i].Env["HOME"] = "/"
			if units[i].Name == controlPlane { // as cmd/k1s-kube does it for its own process
				units[i].TimerSlack = timers.Default.Slack
			}
		}
		for _, c := range units[i].Components {
			a.of[c.Name] = units[i].User
		}
		a.all = append(a.all, units[i].Components...)
	}
	for i := range units {
		a.give(&units[i])
	}
	// What one unit may pass through is not closed again by another one's start.
	for _, u := range units {
		for i, d := range u.Dirs {
			if p, ok := a.passage(d.Path); ok {
				u.Dirs[i].Mode = p.Mode
			}
		}
	}
	return nil
}

// accounts are the users of a plan.
type accounts struct {
	in  component.Input
	of  map[string]*component.User // by component; nil for root
	all []component.Component
}

// give decides what a unit's grants are.
func (a accounts) give(u *component.Unit) {
	if !slices.ContainsFunc(u.Components, func(c component.Component) bool { return userNumbers[c.Name] != 0 }) {
		return
	}
	own := component.User{}
	if u.User != nil {
		own = *u.User
		port := a.in.Config.Spec.API.Port
		u.User.BindLowPorts = port < 1024 && slices.ContainsFunc(u.Components, func(c component.Component) bool { return c.Name == "kube-apiserver" })
	}
	add := func(g component.Grant) {
		if !slices.ContainsFunc(u.Grants, func(h component.Grant) bool { return h.Path == g.Path }) {
			u.Grants = append(u.Grants, g)
		}
	}
	for _, f := range u.Files {
		add(component.Grant{Path: f.Path, UID: own.UID, GID: own.GID, Mode: f.Mode})
	}
	for _, c := range u.Components {
		access := c.Spec.Access
		if c.Name == "kube-apiserver" && !a.in.Config.Spec.Users.Separate {
			access = append(slices.Clone(access), formerAccess(a.in)...)
		}
		for _, x := range access {
			switch x.Way {
			case component.Reads:
				if u.User != nil && a.shared(x) {
					shared := a.in.Config.Spec.Users.First + sharedKeys
					add(component.Grant{Path: x.Path, GID: shared, Mode: 0o640})
					if !slices.Contains(u.User.Groups, shared) {
						u.User.Groups = append(u.User.Groups, shared)
					}
					continue
				}
				add(component.Grant{Path: x.Path, UID: own.UID, GID: own.GID, Mode: 0o600})
			case component.Owns:
				add(component.Grant{Path: x.Path, UID: own.UID, GID: own.GID, Mode: 0o700, Tree: true})
			case component.Views:
				g := component.Grant{Path: x.Path, UID: component.KeepOwner, GID: own.GID, Mode: 0o700, Tree: true}
				if u.User != nil {
					g.Mode = fs.ModeSetgid | 0o770 // what is put there gets its group
				} else {
					for _, first := range a.in.Former {
						g.Former = append(g.Former, first+groupedUser, first+userNumbers[c.Name])
					}
				}
				add(g)
			case component.Serves:
				g := component.Grant{Path: x.Path, UID: own.UID, GID: own.GID, Mode: 0o700, Tree: true}
				if caller := a.caller(x); u.User != nil && caller != nil && caller.UID != own.UID {
					g.GID, g.Mode = caller.GID, fs.ModeSetgid|0o750 // what it makes there gets the group of who calls
				}
				add(g)
			}
		}
	}
	for _, g := range slices.Clone(u.Grants) {
		for dir := path.Dir(g.Path); strings.HasPrefix(dir, a.in.Paths.Data+"/"); dir = path.Dir(dir) {
			if p, ok := a.passage(dir); ok {
				add(p)
			}
		}
	}
	slices.SortFunc(u.Grants, func(a, b component.Grant) int { return cmp.Compare(a.Path, b.Path) })
}

// formerAccess is what components have had access to that are not part of every node, or only as users: what it was given to is taken
// back although nobody here uses it now.
func formerAccess(in component.Input) []component.Access {
	p := in.Paths
	return append(reads(p.PKI("etcd", "server.key"), p.PKI("etcd", "peer.key"), p.PKI("apiserver-etcd-client.key"), p.Datastore()),
		owns(path.Dir(p.AuditLogApart())), owns(p.DB()), owns(p.Etcd()), owns(p.DatastorePKI("")), owns(p.Of("kine")), owns(p.Of("etcd")))
}

// shared tells that a file is read by components of several users.
func (a accounts) shared(x component.Access) bool {
	var by []int
	for _, c := range a.all {
		if u := a.of[c.Name]; u != nil && slices.Contains(c.Spec.Access, x) {
			by = append(by, u.UID)
		}
	}
	slices.Sort(by)
	return len(slices.Compact(by)) > 1
}

// caller is who calls what is served in a directory; nil for nobody who is not root.
func (a accounts) caller(x component.Access) *component.User {
	for _, c := range a.all {
		if slices.Contains(c.Spec.Access, component.Access{Path: x.Path, Way: component.Calls}) {
			if u := a.of[c.Name]; u != nil {
				return &component.User{UID: u.UID, GID: u.GID}
			}
		}
	}
	return nil
}

// passage is how a directory of ours with files of several users is: they pass through it, and cannot list it.
func (a accounts) passage(dir string) (component.Grant, bool) {
	p := a.in.Paths
	open, closed := map[string]component.Grant{}, map[string]component.Grant{}
	for _, d := range []string{path.Dir(p.Kubeconfig("x")), path.Dir(p.EncryptionConfig()), path.Dir(p.Rendered("x"))} {
		open[d], closed[d] = component.Grant{Path: d, Mode: 0o711}, component.Grant{Path: d, Mode: 0o700}
	}
	for _, d := range []string{p.PKI(), p.PKI("etcd")} { // certificates are for everybody
		open[d] = component.Grant{Path: d, Mode: 0o755}
		closed[d] = open[d]
	}
	if d := p.DatastorePKI(""); dir == d || strings.HasPrefix(dir, d+"/") { // who lists certificates comes here too
		open[dir], closed[dir] = component.Grant{Path: dir, Mode: 0o755}, component.Grant{Path: dir, Mode: 0o700}
	}
	open[p.Logs()], closed[p.Logs()] = component.Grant{Path: p.Logs(), Mode: 0o751}, component.Grant{Path: p.Logs(), Mode: 0o750}
	by := closed
	if a.in.Config.Spec.Users.Separate {
		by = open
	}
	g, ok := by[dir]
	return g, ok
}

// Given are the files of users that components read which are not root, by component.
func Given(units []component.Unit) map[string][]string {
	out := map[string][]string{}
	for _, u := range units {
		for _, c := range u.Components {
			if u.User != nil && len(c.Spec.Given) > 0 {
				out[c.Name] = c.Spec.Given
			}
		}
	}
	return out
}

// GroupOf is the group as which a component calls sockets of ours, 0 for root's.
func GroupOf(units []component.Unit, name string) int {
	for _, u := range units {
		if u.User != nil && slices.ContainsFunc(u.Components, func(c component.Component) bool { return c.Name == name }) {
			return u.User.GID
		}
	}
	return 0
}
