package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/upgrade"
)

// upgrading is a node that is upgraded, and what it is asked.
type upgrading struct {
	p     paths.Paths
	state upgrade.State
	same  bool
	ends  func(upgrade.State) upgrade.State // how; nil for not

	mu   sync.Mutex // guards what follows
	asks []control.UpgradeRequest
	left int // of how many times it is told that it is tried
}

func (u *upgrading) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var answer any
	if r.URL.Path == "/v1/upgrade" {
		var req control.UpgradeRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			panic(err)
		}
		u.asks = append(u.asks, req)
		s := u.state
		s.Phase, s.Timeout = upgrade.Trying, req.Timeout
		s.Guard = upgrade.Process(platform.Identify(os.Getpid()))
		if !req.DryRun && !u.same {
			u.keep(s)
		}
		answer = control.Upgrade{State: s, Same: u.same}
	} else {
		s := u.state
		s.Phase, s.Guard = upgrade.Trying, upgrade.Process(platform.Identify(os.Getpid()))
		st := control.Status{State: control.Running, Upgrade: &s, Components: []control.Component{{Name: "kubelet", State: "starting"}}}
		if u.left--; u.left < 0 {
			u.keep(u.ends(s))
			st.Upgrade, st.Components[0].State = nil, "ready"
		}
		answer = st
	}
	_ = json.NewEncoder(w).Encode(answer) // to a test
}

func (u *upgrading) keep(s upgrade.State) {
	if err := os.WriteFile(u.p.Upgrade(), s.Marshal(), 0o600); err != nil {
		panic(err)
	}
}

// runs runs the command with that node, and returns what it prints and says.
func (u *upgrading) runs(t *testing.T, o upgradeOptions) (out, said string, err error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "u") // short: of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	u.p = paths.Paths{Data: dir, Run: dir, Config: dir}
	u.state = upgrade.State{
		File: "/usr/local/bin/k1s", From: upgrade.Program{Version: "v0.1.0", Kubernetes: "v1.36.3", Digest: strings.Repeat("a1", 32)},
		To: upgrade.Program{Version: "v0.2.0", Kubernetes: "v1.37.0", Digest: strings.Repeat("b2", 32)},
	}
	l, err := net.Listen("unix", u.p.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: u, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-served
	}()
	var printed, told bytes.Buffer
	o.deps = Deps{Streams: iostreams.Streams{In: strings.NewReader(""), Out: &printed, ErrOut: &told}, Paths: func() paths.Paths { return u.p }}
	if o.timeout == 0 {
		o.timeout = time.Minute
	}
	err = runUpgrade(t.Context(), o)
	return printed.String(), told.String(), err
}

func done(s upgrade.State) upgrade.State {
	s.Phase = upgrade.Done
	return s
}

func TestAnUpgradeIsFollowedToItsEnd(t *testing.T) {
	u := &upgrading{ends: done, left: 1}
	out, said, err := u.runs(t, upgradeOptions{file: "new", yes: true, allowOlder: true})
	if err != nil || out != "" || !strings.Contains(said, "  kubelet is starting\n") || !strings.HasSuffix(said, "upgraded to k1s v0.2.0 with Kubernetes v1.37.0; the one before is kept in /usr/local/bin/k1s.old\n") {
		t.Errorf("%q, %q, %v", out, said, err)
	}
	if len(u.asks) != 1 || !filepath.IsAbs(u.asks[0].File) || !u.asks[0].AllowOlder || u.asks[0].DryRun {
		t.Errorf("%+v", u.asks)
	}
}

func TestAnUpgradeThatIsTakenBackSaysWhy(t *testing.T) {
	u := &upgrading{ends: func(s upgrade.State) upgrade.State {
		return s.Fail(errs.Hint(errs.New(errs.Timeout, "the node was not well"), "give it longer"), time.Now())
	}}
	_, said, err := u.runs(t, upgradeOptions{file: "new", yes: true})
	hint, _ := errs.HintOf(err)
	if err == nil || err.Error() != "cannot upgrade to k1s v0.2.0 with Kubernetes v1.37.0: the node was not well" || hint != "give it longer" || !strings.Contains(said, "k1s v0.1.0 with Kubernetes v1.36.3 runs the node again") {
		t.Errorf("%q, %v, %q", said, err, hint)
	}
}

func TestThePlanOfAnUpgradeIsShownBeforeItIsAskedFor(t *testing.T) {
	const plan = `      K1S     KUBERNETES  SHA-256
now   v0.1.0  v1.36.3     a1a1a1a1a1a1
then  v0.2.0  v1.37.0     b2b2b2b2b2b2

1. copy /new to /usr/local/bin/k1s.new
2. let it run this node: components that are other ones in it restart, pods run on
3. when the node has been well for 5s, put it in the place of /usr/local/bin/k1s,
   and keep that as /usr/local/bin/k1s.old
   if it is not within 1m0s, or the program ends: go on with the present one
`
	u := &upgrading{}
	out, _, err := u.runs(t, upgradeOptions{file: "/new", dryRun: true})
	if err != nil || out != plan || len(u.asks) != 1 || !u.asks[0].DryRun {
		t.Errorf("%v, %+v\n%s", err, u.asks, out)
	}
	// Without a terminal nothing is done that was not agreed to.
	u = &upgrading{}
	out, _, err = u.runs(t, upgradeOptions{file: "/new"})
	if !errs.Is(err, errs.Usage) || out != plan || len(u.asks) != 1 || !u.asks[0].DryRun {
		t.Errorf("%v, %+v\n%s", err, u.asks, out)
	}
}

func TestTheFileThatRunsIsLeftAlone(t *testing.T) {
	u := &upgrading{same: true}
	if _, said, err := u.runs(t, upgradeOptions{file: "/new", yes: true}); err != nil || said != "this node runs /new already\n" {
		t.Errorf("%q, %v", said, err)
	}
	u = &upgrading{same: true}
	if out, _, err := u.runs(t, upgradeOptions{file: "/new"}); err != nil || out != "this node runs /new already; nothing would be done\n" {
		t.Errorf("%q, %v", out, err)
	}
}
