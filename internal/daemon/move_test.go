package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
)

// configuredBy is a node with a configuration on the disk, and the daemon that has read it.
func configuredBy(t *testing.T, file string, env ...string) (*Daemon, component.Input) {
	t.Helper()
	p := paths.Paths{Data: t.TempDir(), Run: t.TempDir(), Config: t.TempDir()}
	if err := os.WriteFile(p.ConfigFile(), []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\n"+file), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{o: Options{Paths: p, Reload: func() (config.Config, config.Origins, error) {
		l, err := config.Load(config.Sources{File: p.ConfigFile(), DropIns: p.ConfigDropIns(), Env: env})
		return l.Config, l.Origins, err
	}}}
	now, _, err := d.configured()
	if err != nil {
		t.Fatal(err)
	}
	return d, component.Input{Config: now, Paths: p}
}

func TestWhatIsWrittenNamesTheNewDatastoreWhateverTheFilesSaid(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(secret, []byte("nats://k1s:secret@db:4222\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const file = "spec:\n  datastore:\n    endpoint: postgres://k1s:before@db:5432/k1s\n"
	for name, r := range map[string]control.DatastoreRequest{
		"a file":         {Endpoint: "sqlite"},
		"ours":           {Endpoint: "etcd"},
		"one by its URL": {Endpoint: "mysql://k1s:it's\"#{}@tcp(db:3306)/k1s"},
		"one by a file":  {EndpointFile: secret},
	} {
		t.Run(name, func(t *testing.T) {
			d, in := configuredBy(t, file)
			r.Action = migration.Migrate
			m, err := d.newMove(in, migration.State{}, r)
			if err != nil {
				t.Fatal(err)
			}
			m.id = "x"
			if err := m.Switch(t.Context()); err != nil {
				t.Fatal(err)
			}
			now, _, err := d.configured()
			want := m.to.Config.Spec.Datastore
			if err != nil || now.Spec.Datastore != want {
				t.Errorf("configured is %+v, %v, want %+v", now.Spec.Datastore, err, want)
			}
			for _, f := range []string{in.Paths.DatastoreDropIn(), in.Paths.DatastoreBefore("x")} {
				if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", f, st, err)
				}
			}

			// And back.
			last := migration.State{Phase: migration.Done, Previous: &migration.Place{}, PreviousID: "x"}
			moved := in
			moved.Config = now
			back, err := d.newMove(moved, last, control.DatastoreRequest{Action: migration.Rollback})
			if err != nil {
				t.Fatal(err)
			}
			back.id = "y"
			if err := back.Switch(t.Context()); err != nil {
				t.Fatal(err)
			}
			if again, _, err := d.configured(); err != nil || again.Spec.Datastore != in.Config.Spec.Datastore {
				t.Errorf("back at %+v, %v, want %+v", again.Spec.Datastore, err, in.Config.Spec.Datastore)
			}
			if _, err := os.Stat(in.Paths.DatastoreDropIn()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the drop-in, which was not there before: %v", err)
			}
		})
	}
}

func TestASwitchThatIsTakenBackLeavesTheConfigurationOfBefore(t *testing.T) {
	d, in := configuredBy(t, "spec:\n  datastore:\n    endpoint: postgres://k1s@db:5432/k1s\n    caFile: /etc/ca.crt\n    certFile: /etc/c.crt\n    keyFile: /etc/c.key\n")
	m, err := d.newMove(in, migration.State{}, control.DatastoreRequest{Action: migration.Migrate, Endpoint: "etcd"})
	if err != nil {
		t.Fatal(err)
	}
	m.id = "x"
	if err := m.Switch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, _, err := d.configured(); err != nil || now.Spec.Datastore != (config.Datastore{Endpoint: "etcd"}) {
		t.Errorf("switched to %+v, %v", now.Spec.Datastore, err)
	}
	if err := m.Unswitch(); err != nil {
		t.Fatal(err)
	}
	if now, _, err := d.configured(); err != nil || now.Spec.Datastore != in.Config.Spec.Datastore {
		t.Errorf("%+v, %v", now.Spec.Datastore, err)
	}
}

// It joined others once, and is the only one by now: those it asked then are gone.
func TestAServerWhoseMoveToEtcdIsTakenBackAsksNobodyForAPlace(t *testing.T) {
	p := paths.Paths{Data: t.TempDir(), Run: t.TempDir()}
	known := peers{
		Several: true, Joined: &joinedCluster{Servers: []string{"127.0.0.1:1"}}, // nobody is there
		Etcd: &etcdPart{Member: join.Member{Name: "node-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}, InitialCluster: "a=b", Answered: true},
	}
	if err := known.keep(p); err != nil {
		t.Fatal(err)
	}
	from := component.Input{Config: config.Default(), Paths: p, Facts: component.Facts{NodeName: "node"}}
	to := from
	to.Config.Spec.Datastore.Endpoint = "etcd"
	if err := leaveMembers(to); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(p.Etcd(), "left") // what a rollback to etcd would find
	if err := errors.Join(os.MkdirAll(p.Etcd(), 0o700), os.WriteFile(left, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}
	if err := d.becomeMember(t.Context(), &from); err != nil || from.Etcd.Name != "" {
		t.Errorf("%+v, %v", from.Etcd, err)
	}
	// One that has no place asks, and touches nothing that is not etcd's.
	known.Etcd = nil
	if err := known.keep(p); err != nil {
		t.Fatal(err)
	}
	if err := d.becomeMember(t.Context(), &from); err == nil {
		t.Error("it has a place from nobody")
	}
	if !exists(left) {
		t.Error("the etcd that was left is removed by a server with another datastore")
	}
	// With etcd, and no data in it, it takes a place under a new name.
	known.Etcd = &etcdPart{Answered: true}
	if err := known.keep(p); err != nil {
		t.Fatal(err)
	}
	if err := d.becomeMember(t.Context(), &to); err == nil {
		t.Error("it has a place from nobody")
	}
	if s, err := readPeers(p); err != nil || s.Etcd == nil || !strings.HasPrefix(s.Etcd.Name, "node-") {
		t.Errorf("%+v, %v", s.Etcd, err)
	}
}

func TestAMoveThatCouldNotBeConfiguredIsRefusedFirst(t *testing.T) {
	p := func(d *Daemon) string { return d.o.Paths.ConfigDropIns() }
	for name, c := range map[string]struct {
		env    []string
		before func(t *testing.T, d *Daemon, in *component.Input)
		words  string
	}{
		"a variable": {env: []string{"K1S_DATASTORE_ENDPOINT=sqlite"}, words: "K1S_DATASTORE_ENDPOINT"},
		"a drop-in behind ours": {before: func(t *testing.T, d *Daemon, _ *component.Input) {
			if err := errors.Join(os.MkdirAll(p(d), 0o700), os.WriteFile(filepath.Join(p(d), "zzz.yaml"), []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {datastore: {endpoint: sqlite}}\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}, words: "zzz.yaml"},
		"another one than is used": {before: func(_ *testing.T, _ *Daemon, in *component.Input) {
			in.Config.Spec.Datastore.Endpoint = "etcd"
		}, words: "names another datastore now"},
		"an API server of which we do not know where it writes": {before: func(_ *testing.T, _ *Daemon, in *component.Input) {
			in.Config.Spec.Components = map[string]config.ComponentArgs{"kube-apiserver": {Args: map[string]string{"etcd-servers-overrides": "/events#https://e:2379"}}}
		}, words: "etcd-servers-overrides"},
	} {
		t.Run(name, func(t *testing.T) {
			d, in := configuredBy(t, "", c.env...)
			if c.before != nil {
				c.before(t, d, &in)
			}
			_, err := d.newMove(in, migration.State{}, control.DatastoreRequest{Action: migration.Migrate, Endpoint: "postgres://k1s@db/k1s"})
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want something about %s", err, c.words)
			}
			if _, err := os.Stat(d.o.Paths.DatastoreDropIn()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the drop-in is there: %v", err)
			}
		})
	}
}

func TestADatastoreOfOursIsTheSameWhateverElseIsConfigured(t *testing.T) {
	for _, engine := range []config.DSN{"sqlite", "etcd"} {
		if a, b := place(config.Datastore{Endpoint: engine}), place(config.Datastore{Endpoint: engine, CAFile: "/ca.crt"}); a != b {
			t.Errorf("%+v and %+v", a, b)
		}
	}
	a, b := place(config.Datastore{Endpoint: "nats://k1s:secret@db:4222"}), place(config.Datastore{Endpoint: "nats://k1s:other@db:4222"})
	if a.Identity == b.Identity || strings.Contains(a.String()+a.Identity, "secret") {
		t.Errorf("%+v and %+v", a, b)
	}
}

func TestWhatIsNoDatastoreIsRefusedWithoutRepeatingIt(t *testing.T) {
	d, in := configuredBy(t, "")
	for _, r := range []control.DatastoreRequest{
		{Action: migration.Migrate}, {Action: migration.Migrate, Endpoint: "etcd", EndpointFile: "/x"}, {Action: "move", Endpoint: "etcd"},
		{Action: migration.Migrate, Endpoint: "postgers://k1s:tops3cret@db/k1s"}, {Action: migration.Migrate, EndpointFile: "/nowhere"},
		{Action: migration.Migrate, Endpoint: "https://e:2379", CAFile: "/nowhere"},
	} {
		if _, err := d.newMove(in, migration.State{}, r); err == nil || strings.Contains(err.Error(), "tops3cret") {
			t.Errorf("%s: %v", r.Action, err)
		}
	}
}

func TestADaemonGoesOnWithOrGivesUpWhatAKilledOneHadBegun(t *testing.T) {
	for name, c := range map[string]struct {
		phase migration.Phase
		now   config.DSN
		want  migration.Phase
	}{
		"while it copied":                  {migration.Copying, "sqlite", migration.Failed},
		"while the API was stopped":        {migration.Finishing, "sqlite", migration.Failed},
		"before the configuration changed": {migration.Switching, "sqlite", migration.Failed},
		"after that":                       {migration.Switching, "etcd", migration.Starting},
		"while it started":                 {migration.Starting, "etcd", migration.Starting},
		"when it was done":                 {migration.Done, "etcd", migration.Done},
	} {
		t.Run(name, func(t *testing.T) {
			d, in := configuredBy(t, "")
			d.log = slog.New(slog.DiscardHandler)
			from := place(config.Datastore{Endpoint: "sqlite"})
			if err := keepMove(in.Paths, migration.State{ID: "1", Kind: migration.Migrate, From: from, To: place(config.Datastore{Endpoint: "etcd"}), Phase: c.phase}); err != nil {
				t.Fatal(err)
			}
			in.Config.Spec.Datastore.Endpoint = c.now
			if err := errors.Join(os.MkdirAll(in.Paths.Moving(""), 0o700), os.WriteFile(in.Paths.Moving("target.dsn"), []byte("secret"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := d.prepareMove(in); err != nil {
				t.Fatal(err)
			}
			if got := d.moving.state; got.Phase != c.want || got.Phase == migration.Failed && got.Ended.IsZero() {
				t.Errorf("%+v", got)
			}
			if _, err := os.Stat(in.Paths.Moving("")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("what the killed one needed is still there: %v", err)
			}
		})
	}
	d, in := configuredBy(t, "")
	if err := errors.Join(os.MkdirAll(filepath.Dir(in.Paths.Migration()), 0o700), os.WriteFile(in.Paths.Migration(), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := d.prepareMove(in); err == nil {
		t.Error("half a file is taken for a state")
	} else if hint, _ := errs.HintOf(err); hint == "" {
		t.Errorf("no hint with %v", err)
	}
}

// The copier here is a shell, told what to say.
func TestWhatTheCopierSaysLastIsTheError(t *testing.T) {
	in := component.Input{Paths: paths.Paths{Data: t.TempDir()}, Payload: t.TempDir()}
	script := func(text string) {
		if err := os.WriteFile(filepath.Join(in.Payload, "k1s-kube"), []byte("#!/bin/sh\nread job\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	run := func(found func(migration.Event) bool) (migration.Event, []migration.Progress, error) {
		t.Helper()
		c, err := startCopier(t.Context(), in, migration.Job{Mode: migration.Copy})
		if err != nil {
			t.Fatal(err)
		}
		defer c.kill()
		var told []migration.Progress
		e, err := c.until(t.Context(), func(p migration.Progress) { told = append(told, p) }, found)
		return e, told, err
	}
	caughtUp := func(e migration.Event) bool { return e.CaughtUp }

	script(`echo '{"progress":{"doing":"copying","done":1,"all":2}}'; echo '{"caughtUp":true}'; read more`)
	if e, told, err := run(caughtUp); err != nil || !e.CaughtUp || len(told) != 1 || told[0].All != 2 {
		t.Errorf("%+v, %+v, %v", e, told, err)
	}
	script("echo 'level=info something' >&2; echo 'error: datastore-copy: it is full' >&2; echo 'hint:  make room' >&2; exit 1")
	_, _, err := run(caughtUp)
	if hint, _ := errs.HintOf(err); err == nil || err.Error() != "it is full" || hint != "make room" {
		t.Errorf("%v, hint %q", err, hint)
	}
	script("exit 0")
	if _, _, err := run(caughtUp); err == nil {
		t.Error("an end without a result is a success")
	}
	script("kill -9 $$")
	if _, _, err := run(caughtUp); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
	script("echo nonsense; read more")
	if _, _, err := run(caughtUp); err == nil {
		t.Error("nonsense is understood")
	}
	// Whoever gives up does not wait for it.
	script("trap '' TERM; while :; do sleep 1; done")
	ctx, cancel := context.WithCancel(t.Context())
	c, err := startCopier(ctx, in, migration.Job{})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := c.until(ctx, nil, caughtUp); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	c.kill()
}
