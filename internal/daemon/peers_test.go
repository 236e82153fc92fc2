package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

func TestAServerTakesTheDatastoreOfItsCluster(t *testing.T) {
	p := paths.Paths{Data: t.TempDir()}
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte("postgres://u:secret@db:5432/k1s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	embedded := join.Datastore{Engine: config.EmbeddedEtcd}
	postgres := join.Datastore{Engine: config.Postgres, Endpoint: "postgres://u:secret@db:5432/k1s", CA: []byte("ca")}
	for name, tc := range map[string]struct {
		ours   config.Datastore
		theirs join.Datastore
		want   config.Datastore
		says   string
	}{
		"nothing said, etcd":     {config.Datastore{Endpoint: "sqlite"}, embedded, config.Datastore{Endpoint: "etcd"}, ""},
		"etcd said":              {config.Datastore{Endpoint: "etcd"}, embedded, config.Datastore{Endpoint: "etcd"}, ""},
		"nothing said, a URL":    {config.Datastore{Endpoint: "sqlite"}, postgres, config.Datastore{EndpointFile: p.DatastorePKI("endpoint"), CAFile: p.DatastorePKI("ca.crt")}, ""},
		"the same URL in a file": {config.Datastore{Endpoint: "sqlite", EndpointFile: file}, postgres, config.Datastore{Endpoint: "postgres://u:secret@db:5432/k1s", EndpointFile: file}, ""},
		"the same URL":           {config.Datastore{Endpoint: "postgres://u:secret@db:5432/k1s"}, postgres, config.Datastore{Endpoint: "postgres://u:secret@db:5432/k1s"}, ""},
		"another URL":            {config.Datastore{Endpoint: "postgres://u:secret@other:5432/k1s"}, postgres, config.Datastore{}, "spec.datastore.endpoint"},
		"a database, and etcd":   {config.Datastore{Endpoint: "nats://n"}, embedded, config.Datastore{}, "is NATS here and etcd in the cluster"},
		"etcd, and a database":   {config.Datastore{Endpoint: "etcd"}, postgres, config.Datastore{}, "is etcd here and PostgreSQL in the cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config.Default()
			c.Spec.Datastore = tc.ours
			got, err := withDatastore(c, p, tc.theirs)
			if tc.says != "" {
				if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "secret") {
					t.Errorf("got %v, want %q", err, tc.says)
				}
				return
			}
			if err != nil || got.Spec.Datastore != tc.want {
				t.Errorf("got %+v, %v", got.Spec.Datastore, err)
			}
		})
	}
}

// It was removed, and the others have moved the datastore since. What it is configured for k1s has written when it was one of them.
func TestAServerThatJoinsAgainTakesTheDatastoreOfNow(t *testing.T) {
	for name, tc := range map[string]struct {
		env  []string
		ours config.Datastore
		says string
	}{
		"from etcd":       {nil, config.Datastore{Endpoint: "etcd"}, ""},
		"from a database": {nil, config.Datastore{Endpoint: movedTo}, ""},
		"its own word":    {[]string{"K1S_DATASTORE_ENDPOINT=" + movedTo}, config.Datastore{Endpoint: "etcd"}, "spec.datastore.endpoint is PostgreSQL here and MySQL in the cluster"},
	} {
		d, in := configuredBy(t, "", tc.env...)
		m := &move{d: d, from: in}
		if err := m.writeDropIn(dropIn(tc.ours, "k1s when this server joined its cluster")); err != nil {
			t.Fatal(err)
		}
		now, _, err := d.configured()
		if err != nil {
			t.Fatal(err)
		}
		now, err = d.joinsAgain(now)
		if err == nil {
			now, err = withDatastore(now, in.Paths, join.Datastore{Engine: config.MySQL, Endpoint: "mysql://k1s@tcp(db:3306)/k1s"})
		}
		if tc.says == "" && (err != nil || now.Spec.Datastore != config.Datastore{EndpointFile: in.Paths.DatastorePKI("endpoint")}) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %+v, %v", name, now.Spec.Datastore, err)
		}
	}
}

func TestWhatAServerIsToldOfTheMembers(t *testing.T) {
	all := []etcdapi.Member{
		{ID: 1, Name: "server-0", PeerURLs: []string{"https://10.0.0.1:2380"}},
		{ID: 2, PeerURLs: []string{"https://10.0.0.2:2380"}, IsLearner: true}, // it has not started
	}
	got := initialCluster(all, join.Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"})
	if got != "server-0=https://10.0.0.1:2380,server-1-0a1b2c3d=https://10.0.0.2:2380" {
		t.Error(got)
	}
	for member, want := range map[string]string{"server-1-0a1b2c3d": "server-1", "server-0": "server-0", "a-b": "a-b", "": "", "web-frankfur": "web-frankfur", "web-0A1B2C3D": "web-0A1B2C3D"} {
		if got := nodeOfMember(member); got != want {
			t.Errorf("%q is on %q, want %q", member, got, want)
		}
	}
}

func TestAServerRemembersTheOthers(t *testing.T) {
	p := paths.Paths{Data: t.TempDir()}
	none, err := readPeers(p)
	if err != nil || none.Several || none.Joined != nil {
		t.Fatalf("%+v, %v", none, err)
	}
	want := peers{
		Several: true, Joined: &joinedCluster{Servers: []string{"10.0.0.1:6443"}, Settings: config.Shared(config.Default())},
		Etcd: &etcdPart{Member: join.Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}, InitialCluster: "a=b"},
	}
	if err := want.keep(p); err != nil {
		t.Fatal(err)
	}
	got, err := readPeers(p)
	if err != nil {
		t.Fatal(err)
	}
	in := component.Input{Config: config.Default(), Paths: p}
	if err := got.into(&in); err != nil || !in.Several || in.Etcd.Name != "server-1-0a1b2c3d" || in.Etcd.InitialCluster != "a=b" {
		t.Errorf("%+v, %v", in.Etcd, err)
	}
	// What reads the datastore's URL from a file has it beside the file's name by now.
	in.Config.Spec.Datastore = config.Datastore{EndpointFile: filepath.Join(p.Data, "dsn")}
	if err := os.WriteFile(in.Config.Spec.Datastore.EndpointFile, []byte("postgres://k1s:p@10.0.0.9/k1s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := resolveDatastore(&in.Config); err != nil {
		t.Fatal(err)
	}
	if err := got.into(&in); err != nil || in.Config.Spec.Datastore.Endpoint.Reveal() != "postgres://k1s:p@10.0.0.9/k1s" {
		t.Errorf("a URL in a file: %v", err)
	}
	// A server whose own configuration says otherwise than its cluster does not start.
	in.Config.Spec.Network.PodCIDR = "10.50.0.0/16"
	if err := got.into(&in); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "spec.network.podCIDR") {
		t.Errorf("another network: %v", err)
	}
	if err := os.WriteFile(p.Server(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readPeers(p); err == nil || !strings.Contains(err.Error(), "the others") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestNobodyAsksForAVoteWhereThereIsNone(t *testing.T) {
	in := component.Input{Config: config.Default()}
	s := peers{Etcd: &etcdPart{Learner: true, Answered: true}}
	for endpoint, want := range map[config.DSN]bool{"etcd": true, movedTo: false} {
		if in.Config.Spec.Datastore.Endpoint = endpoint; s.copies(in) != want {
			t.Errorf("%s: it asks: %v", endpoint, !want)
		}
	}
	if in.Config.Spec.Datastore.Endpoint = "etcd"; (peers{}).copies(in) || (peers{Etcd: &etcdPart{}}).copies(in) {
		t.Error("one that has a vote asks for it")
	}
}

func TestDataOfARemovedServerIsPutAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := archive(dir, time.Now()); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := archive(dir, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "etcd-removed-20260102T030405Z" }) || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestWhoIsAMember(t *testing.T) {
	b := join.Binding{Node: "server-1", IP: netip.MustParseAddr("10.0.0.2")}
	for name, tc := range map[string]struct {
		m    etcdapi.Member
		want bool
	}{
		"by its name, at an old address": {etcdapi.Member{Name: "server-1-0a1b2c3d", PeerURLs: []string{"https://10.0.0.99:2380"}}, true},
		"the first server":               {etcdapi.Member{Name: "server-1", PeerURLs: []string{"https://10.0.0.2:2380"}}, true},
		"never started, at its address":  {etcdapi.Member{PeerURLs: []string{"https://10.0.0.2:2380"}, IsLearner: true}, true},
		"never started, elsewhere":       {etcdapi.Member{PeerURLs: []string{"https://10.0.0.3:2380"}, IsLearner: true}, false},
		"another one at its old address": {etcdapi.Member{Name: "server-2-0a1b2c3d", PeerURLs: []string{"https://10.0.0.2:2380"}}, false},
		"a longer name":                  {etcdapi.Member{Name: "server-10-0a1b2c3d", PeerURLs: []string{"https://10.0.0.20:2380"}}, false},
	} {
		if got := isMember(tc.m, b, []join.Binding{b}); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	// Of a damaged record only the name is known.
	if !isMember(etcdapi.Member{Name: "server-1-0a1b2c3d", PeerURLs: []string{"https://10.0.0.2:2380"}}, join.Binding{Node: "server-1"}, nil) ||
		isMember(etcdapi.Member{PeerURLs: []string{"https://10.0.0.2:2380"}}, join.Binding{Node: "server-1"}, nil) {
		t.Error("a damaged record")
	}
	// The first server is called as a member of the node "web" could be.
	web, first := join.Binding{Node: "web"}, join.Binding{Node: "web-0a1b2c3d"}
	if m := (etcdapi.Member{Name: "web-0a1b2c3d"}); isMember(m, web, []join.Binding{web, first}) || !isMember(m, first, []join.Binding{web, first}) {
		t.Error("a node with the name of another one's member")
	}
}

func TestAServerOfSeveralDoesNotStartWithNothing(t *testing.T) {
	p := paths.Paths{Data: t.TempDir()}
	in := component.Input{Config: config.Default(), Paths: p, Several: true}
	if err := mayStartEtcd(in); err != nil {
		t.Errorf("with SQLite: %v", err)
	}
	in.Config.Spec.Datastore.Endpoint = "etcd"
	if err := mayStartEtcd(in); err == nil || !strings.Contains(err.Error(), "its etcd has no data") {
		t.Errorf("without data: %v", err)
	}
	alone, joins := in, in
	alone.Several = false
	joins.Etcd.Name = "server-1-0a1b2c3d"
	if err := mayStartEtcd(alone); err != nil {
		t.Errorf("alone: %v", err)
	}
	if err := mayStartEtcd(joins); err != nil {
		t.Errorf("one that joins: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(p.Etcd(), "member", "snap"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Etcd(), "member", "snap", "db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mayStartEtcd(in); err != nil {
		t.Errorf("with data: %v", err)
	}
}

// Who joins, who has joined, and who does not.
func TestWhetherAServerAsksTheOthers(t *testing.T) {
	own := paths.Paths{Data: t.TempDir()}
	_, err := pki.Ensure(t.Context(), pki.Request{Paths: own, NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ReadCA(own)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := token.New(token.Server, ca)
	if err != nil {
		t.Fatal(err)
	}
	theirs := ours
	theirs.Pin = strings.Repeat("A", 43)
	for name, tc := range map[string]struct {
		paths paths.Paths
		kept  peers
		join  config.Join
		says  string // "" does not ask, and starts
	}{
		"a first one":                             {paths.Paths{Data: t.TempDir()}, peers{}, config.Join{}, ""},
		"the first one, configured like all":      {own, peers{}, config.Join{Server: "127.0.0.1:1", Token: config.Secret(ours.Text())}, ""},
		"… and the token is gone":                 {own, peers{}, config.Join{Server: "127.0.0.1:1", TokenFile: "/nowhere"}, ""},
		"one of another cluster":                  {own, peers{}, config.Join{Server: "127.0.0.1:1", Token: config.Secret(theirs.Text())}, "a cluster of its own"},
		"the first one, removed":                  {own, peers{Several: true, Removed: true}, config.Join{}, "was removed from its cluster"},
		"the first one, removed, without a token": {own, peers{Several: true, Removed: true}, config.Join{Server: "127.0.0.1:1"}, "needs a token"},
		"one that has joined":                     {own, peers{Several: true, Joined: &joinedCluster{}}, config.Join{Server: "127.0.0.1:1"}, ""},
		"one that was cut off":                    {own, peers{Several: true, Joined: &joinedCluster{Pending: true}}, config.Join{}, "has begun to join"},
		"a new one without a token":               {paths.Paths{Data: t.TempDir()}, peers{}, config.Join{Server: "127.0.0.1:1"}, "needs a token"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(tc.paths.Server()); err != nil {
				t.Fatal(err)
			}
			if err := tc.kept.keep(tc.paths); err != nil {
				t.Fatal(err)
			}
			in := component.Input{Config: config.Default(), Paths: tc.paths}
			in.Config.Spec.Join = tc.join
			d := &Daemon{log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}
			a, err := d.joinServers(t.Context(), &in)
			if a != nil {
				t.Error("it has asked")
			}
			if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
	// A first server that was removed asks when it is told where.
	if err := (peers{Several: true, Removed: true}).keep(own); err != nil {
		t.Fatal(err)
	}
	in := component.Input{Config: config.Default(), Paths: own}
	in.Config.Spec.Join = config.Join{Server: "127.0.0.1:1", Token: config.Secret(ours.Text())}
	d := &Daemon{log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := d.joinServers(ctx, &in); !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("a first one that was removed, with a token: %v", err)
	}
}

// seats is join.Members that refuses everybody.
type seats struct{ refuse error }

func (s seats) Join(context.Context, join.Member) (join.Membership, error) {
	return join.Membership{}, s.refuse
}
func (s seats) Promote(context.Context, join.Member) error { return s.refuse }

// One of the servers may be away for good, or its address somebody else's by now.
func TestWhatAServerDecidesCountsMoreThanThatAnotherOneIsAway(t *testing.T) {
	shared := newObjects()
	a := newServer(t, shared, "server-0", "127.0.0.1", nil)
	keys, err := pki.ReadBundle(a.in.Paths)
	if err != nil {
		t.Fatal(err)
	}
	b := newServer(t, shared, "server-1", "127.0.0.2", keys)
	cert, err := tls.LoadX509KeyPair(pki.CertFile(a.in.Paths, pki.APIServer), pki.KeyFile(a.in.Paths, pki.APIServer))
	if err != nil {
		t.Fatal(err)
	}
	serve := func(refuse error, certs []tls.Certificate) string {
		srv := httptest.NewUnstartedServer((&join.Server{Store: clusterStore{api: a.api}, Members: seats{refuse}, Log: a.log, Now: time.Now, Admitting: &a.admitting}).Handler())
		srv.TLS = &tls.Config{Certificates: certs}
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // handshakes are refused on purpose
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	}
	own := []tls.Certificate{cert}
	const away = "127.0.0.1:1" // nobody is there
	stranger := serve(nil, nil)
	gone, moved := serve(errs.New(errs.NotFound, "no member any more"), own), serve(errs.New(errs.Invalid, "it is at another address"), own)
	waits := serve(errs.New(errs.NotRunning, "another server is joining in this moment"), own)
	for name, c := range map[string]struct {
		servers []string
		is      func(error) bool
		hint    string
	}{
		"one is away, the other decides":        {[]string{away, gone}, func(err error) bool { return errs.Is(err, errs.NotFound) }, ""},
		"at one's address is somebody else":     {[]string{stranger, gone}, func(err error) bool { return errs.Is(err, errs.NotFound) }, ""},
		"the first that decides counts":         {[]string{away, gone, moved}, func(err error) bool { return errs.Is(err, errs.NotFound) }, ""},
		"one is away, the other has to do more": {[]string{away, waits}, func(err error) bool { return !final(err) }, ""},
		"one is away, at the other's is none":   {[]string{away, stranger}, func(err error) bool { return errors.As(err, new(*join.Unreachable)) }, ""},
		"it has moved before it was a member":   {[]string{moved}, func(err error) bool { return errs.Is(err, errs.Invalid) }, "k1s node remove server-1"},
	} {
		s := peers{Several: true, Joined: &joinedCluster{Servers: c.servers}, Etcd: &etcdPart{Member: join.Member{Name: "server-1-0a1b2c3d", PeerURL: "https://127.0.0.2:2380"}, Learner: true}}
		_, err := b.askMember(t.Context(), b.in, s, true)
		if hint, _ := errs.HintOf(err); err == nil || !c.is(err) || !strings.Contains(hint, c.hint) {
			t.Errorf("%s: %v (hint %q)", name, err, hint)
		}
	}
}

func TestAMachineThatWaitsIsToldForWhat(t *testing.T) {
	for name, c := range map[string]struct {
		err      error
		severity health.Severity
		remedy   string
	}{
		"nobody answers":                   {errors.New("connection refused"), health.Error, "check that the servers run"},
		"another one joins":                {errs.New(errs.NotRunning, "another server is joining in this moment"), health.Warning, "nothing has to be done here"},
		"its address is another member's":  {errs.Hint(errs.New(errs.NotRunning, "the address is that of server-2"), "start that server"), health.Warning, "start that server"},
		"a server cannot decide, says how": {errs.Hint(errors.New("a secret is damaged"), "run: k1s node remove server-3"), health.Error, "run: k1s node remove server-3"},
	} {
		p := waitingProblem(&join.Unreachable{Server: "10.0.0.1:6443", Err: c.err})
		if p.Code != health.ServersAway || p.Severity != c.severity || !strings.Contains(p.Remedy, c.remedy) || !strings.Contains(p.Text, "10.0.0.1:6443") {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
