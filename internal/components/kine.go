package components

import (
	"net/url"
	"path"

	"k1s.io/k1s/internal/component"
)

// kine serves the etcd API over SQLite, the store of a single server, or over a database of others. SIGTERM lets
// it finish its transaction; after a kill SQLite replays its log.
var _ = register(component.Def{
	Name:    "kine",
	Summary: "etcd API over SQLite, PostgreSQL, MySQL or NATS, the cluster's database",
	Roles:   component.ControlPlane,
	Group:   controlPlane,
	When:    func(in component.Input) bool { return Engine(in).Kine() },
	Spec:    kineSpec,
	Ready:   unixReady(func(in component.Input) string { return in.Paths.KineSocket() }),
})

func kineSpec(in component.Input) (component.Spec, error) {
	if Engine(in).External() {
		return externalSpec(in), nil
	}
	var f flags
	f.add("listen", "unix://"+in.Paths.KineSocket())
	// synchronous=FULL: a write that was acknowledged survives a power cut. kine's own default (NORMAL)
	// may lose the last seconds; docs/adr/0008 has the cost.
	f.add("endpoint", sqlite(in, "FULL"))
	return component.Spec{
		Applet: "kine",
		Args:   append(f, kineCallers(in)...),
		Dirs:   []component.Dir{{Path: in.Paths.DB(), Mode: 0o700}, {Path: path.Dir(in.Paths.KineSocket()), Mode: 0o700}},
		Access: []component.Access{owns(in.Paths.DB()), {Path: path.Dir(in.Paths.KineSocket()), Way: component.Serves}},
	}, nil
}

// sqlite is the DSN of the file.
func sqlite(in component.Input, synchronous string) string {
	q := url.Values{
		"_journal_mode": {"WAL"},
		"_synchronous":  {synchronous},
		"_busy_timeout": {"30000"},
		"_txlock":       {"immediate"},
		// Compaction keeps reusing the space; rewriting the whole file at every start only makes it slow.
		"_kine_disable_startup_vacuum": {"true"},
	}
	return "sqlite://" + path.Join(in.Paths.DB(), "state.db") + "?" + q.Encode()
}

// externalSpec has no DSN in it, for that may hold a password: kine reads it from a file.
func externalSpec(in component.Input) component.Spec {
	c := in.Config.Spec.Datastore
	var f flags
	f.add("listen", "unix://"+in.Paths.KineSocket())
	f.add("endpoint-file", in.Paths.Datastore())
	f.add("status-file", in.Paths.DatastoreStatus())
	f.add("ca-file", c.CAFile)
	f.add("cert-file", c.CertFile)
	f.add("key-file", c.KeyFile)
	ours, given := databaseFiles(in)
	return component.Spec{
		Applet: "kine",
		Args:   append(f, kineCallers(in)...),
		Env:    datastoreEnv(in),
		Dirs:   []component.Dir{{Path: path.Dir(in.Paths.KineSocket()), Mode: 0o700}},
		Access: append(ours, component.Access{Path: in.Paths.Datastore(), Way: component.Reads}, component.Access{Path: path.Dir(in.Paths.KineSocket()), Way: component.Serves}),
		Given:  given,
	}
}

// kineCallers lets the API server call kine where that is another user.
func kineCallers(in component.Input) []string {
	if in.Config.Spec.Users.Separate && in.Config.Spec.Isolation == PerProcess {
		return []string{"--group-may-connect"}
	}
	return nil
}
