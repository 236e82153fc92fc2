package components

import (
	"path"
	"strings"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/migration"
)

// Root is below what the API server keeps its objects.
func Root(in component.Input) string {
	if prefix := in.Config.Spec.Components["kube-apiserver"].Args["etcd-prefix"]; prefix != "" {
		return "/" + strings.Trim(prefix, "/")
	}
	return "/registry"
}

// Served is the datastore of a node as its API server reaches it.
func Served(in component.Input) migration.Store {
	d := in.Config.Spec.Datastore
	switch Engine(in) {
	case config.EmbeddedEtcd:
		return migration.Store{
			Endpoints: []string{"https://" + local(etcdClientPort)}, CAFile: in.Paths.PKI("etcd", "ca.crt"),
			CertFile: in.Paths.PKI("apiserver-etcd-client.crt"), KeyFile: in.Paths.PKI("apiserver-etcd-client.key"),
		}
	case config.ExternalEtcd:
		return migration.Store{Endpoints: d.Endpoint.URLs(), CAFile: d.CAFile, CertFile: d.CertFile, KeyFile: d.KeyFile}
	default:
		return migration.Store{Endpoints: []string{"unix://" + in.Paths.KineSocket()}, ThroughKine: true}
	}
}

// Private is the datastore of a node as somebody opens it who is alone with it, with sockets named after it and the files
// that takes. A database's URL is not in it: it has to be in the file that migration names, below the same directory.
func Private(in component.Input, name string) (migration.Store, []component.File, error) {
	d := in.Config.Spec.Datastore
	socket := func(what string) string { return "unix://" + in.Paths.Moving(name+what+".sock") }
	switch Engine(in) {
	case config.ExternalEtcd:
		return Served(in), nil, nil
	case config.EmbeddedEtcd:
		file, err := yamlFile(in.Paths.Moving(name+".yaml"), merge(etcdMember(in), map[string]any{
			"listen-client-urls": socket(""),
			"listen-peer-urls":   socket("-peer"), // nobody is to come
		}))
		return migration.Store{Etcd: file.Path, EtcdDir: in.Paths.Etcd(), Endpoints: []string{socket("")}}, []component.File{file}, err
	}
	var f flags
	if !Engine(in).External() {
		// Faster, and safe on its disk when it is closed, which is before anybody relies on it.
		f.add("endpoint", sqlite(in, "NORMAL"))
	} else {
		f.add("endpoint-file", in.Paths.Moving(name+".dsn"))
		f.add("ca-file", d.CAFile)
		f.add("cert-file", d.CertFile)
		f.add("key-file", d.KeyFile)
	}
	return migration.Store{Kine: f, Endpoints: []string{socket("")}, ThroughKine: true}, nil, nil
}

// LocalDir is the directory of a datastore on this server, "" for one elsewhere.
func LocalDir(in component.Input) string {
	switch Engine(in) {
	case config.SQLite:
		return in.Paths.DB()
	case config.EmbeddedEtcd:
		return in.Paths.Etcd()
	}
	return ""
}

// WithoutControlPlane are the units that run on while the datastore has nobody who uses it.
func WithoutControlPlane(plan []component.Unit) []component.Unit {
	var out []component.Unit
	for _, u := range plan {
		keep := true
		for _, c := range u.Components {
			switch c.Name {
			case "kube-apiserver", "kine", "etcd":
				keep = false
			}
		}
		if keep {
			out = append(out, u)
		}
	}
	return out
}

// DatabaseFile is the file whose size tells that of a datastore on this server.
func DatabaseFile(in component.Input) string {
	switch Engine(in) {
	case config.SQLite:
		return path.Join(in.Paths.DB(), "state.db")
	case config.EmbeddedEtcd:
		return path.Join(in.Paths.Etcd(), "member", "snap", "db")
	}
	return ""
}
