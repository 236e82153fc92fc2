package cli

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/wait"
)

// clusterUpgrading is a server that tells, one after the other, how far an upgrade of the cluster is.
type clusterUpgrading struct {
	control.Backend
	mu    sync.Mutex // guards what follows
	asked []control.ClusterUpgradeRequest
	tells []control.ClusterUpgrade // the last one again and again
}

func (b *clusterUpgrading) ClusterUpgrade(context.Context) (control.ClusterUpgrade, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.tells[0]
	if len(b.tells) > 1 {
		b.tells = b.tells[1:]
	}
	return u, nil
}

func (b *clusterUpgrading) UpgradeCluster(ctx context.Context, r control.ClusterUpgradeRequest) (control.ClusterUpgrade, error) {
	b.mu.Lock()
	b.asked = append(b.asked, r)
	b.mu.Unlock()
	return b.ClusterUpgrade(ctx)
}

// runs runs a command beside it.
func (b *clusterUpgrading) runs(t *testing.T, command func(context.Context, Deps) error) (out, said string, err error) {
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
	p := paths.Paths{Data: dir, Run: dir, Config: dir}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, slog.New(slog.DiscardHandler), p.ControlSocket(), b) }()
	var printed, told bytes.Buffer
	deps := Deps{Streams: iostreams.Streams{In: strings.NewReader(""), Out: &printed, ErrOut: &told}, Paths: func() paths.Paths { return p }}
	werr := wait.Until(t.Context(), 10*time.Millisecond, "the socket", func(ctx context.Context) error {
		if err = command(ctx, deps); errs.Is(err, errs.NotRunning) {
			return err
		}
		return nil
	})
	stop()
	if serr := <-served; serr != nil || werr != nil {
		t.Fatal(serr, werr)
	}
	return printed.String(), told.String(), err
}

func clusterAt(stage string, steps ...string) control.ClusterUpgrade {
	u := control.ClusterUpgrade{
		ID: "id", Stage: stage, Leader: "server-0", To: upgrade.Program{Version: "v0.2.0", Kubernetes: "v1.37.0", Digest: strings.Repeat("b2", 32)},
		From: upgrade.Program{Version: "v0.1.0", Kubernetes: "v1.36.3", Digest: strings.Repeat("a1", 32)}, Timeout: time.Minute, Drain: 2 * time.Minute, Parallel: 3,
	}
	for i, s := range steps {
		u.Nodes = append(u.Nodes, control.ClusterUpgradeNode{Name: []string{"server-0", "agent-0", "agent-1"}[i], Server: i == 0, Step: s, Kubernetes: "v1.36.3"})
	}
	return u
}

func TestAnUpgradeOfTheClusterIsFollowedToItsEnd(t *testing.T) {
	going := clusterAt("going", "upgraded", "draining", "waiting")
	going.Waits = []string{"agent-0 is emptied: evicting pod default/web"}
	b := &clusterUpgrading{tells: []control.ClusterUpgrade{clusterAt("going", "asking", "waiting", "waiting"), going, clusterAt("complete", "upgraded", "upgraded", "upgraded")}}
	out, said, err := b.runs(t, func(ctx context.Context, d Deps) error {
		return runUpgrade(ctx, upgradeOptions{deps: d, format: printer.Table, file: "new", cluster: true, yes: true, timeout: time.Minute, drain: time.Minute, parallel: 2})
	})
	if err != nil || !strings.HasPrefix(out, "The cluster was upgraded to k1s v0.2.0 with Kubernetes v1.37.0") || !strings.Contains(out, "agent-1   agent   upgraded") {
		t.Errorf("%q, %v", out, err)
	}
	if want := "server-0 is asked what it runs\nserver-0 upgraded\nagent-0 is emptied\n  agent-0 is emptied: evicting pod default/web\nagent-0 upgraded\nagent-1 upgraded\n"; said != want {
		t.Errorf("said\n%s\nwant\n%s", said, want)
	}
	if len(b.asked) != 1 || b.asked[0].DryRun || b.asked[0].Parallel != 2 || b.asked[0].Drain != time.Minute || !strings.HasPrefix(b.asked[0].File, "/") {
		t.Errorf("%+v", b.asked)
	}
}

func TestAnUpgradeOfTheClusterThatHaltsSaysWhere(t *testing.T) {
	halted := clusterAt("halted", "upgraded", "failed", "waiting")
	halted.Nodes[1].Error, halted.Nodes[1].Hint = "it is a mount of its own", "mount it elsewhere"
	b := &clusterUpgrading{tells: []control.ClusterUpgrade{clusterAt("going", "upgraded", "waiting", "waiting"), halted}}
	out, _, err := b.runs(t, func(ctx context.Context, d Deps) error {
		return runClusterUpgrade(ctx, clusterUpgradeOptions{deps: d, format: printer.Table, action: control.ResumeUpgrade, follow: true})
	})
	hint, _ := errs.HintOf(err)
	if err == nil || err.Error() != "the upgrade of the cluster has halted: agent-0: it is a mount of its own" || hint != "mount it elsewhere; then: k1s upgrade resume; or leave it as it is: k1s upgrade abort" {
		t.Errorf("%v, %q", err, hint)
	}
	if !strings.Contains(out, "has halted. Go on: k1s upgrade resume") || !strings.Contains(out, "it is a mount of its own; mount it elsewhere") {
		t.Errorf("%q", out)
	}
	if len(b.asked) != 1 || b.asked[0].Action != control.ResumeUpgrade {
		t.Errorf("%+v", b.asked)
	}
}

func TestThePlanForAClusterIsShown(t *testing.T) {
	plan := clusterAt("going", "waiting", "waiting", "waiting")
	plan.Warnings = []string{"with one server the API does not answer for a second"}
	b := &clusterUpgrading{tells: []control.ClusterUpgrade{plan}}
	out, said, err := b.runs(t, func(ctx context.Context, d Deps) error {
		return runUpgrade(ctx, upgradeOptions{deps: d, format: printer.Table, file: "new", cluster: true, dryRun: true, timeout: time.Minute, drain: time.Minute, parallel: 3})
	})
	const want = `      K1S     KUBERNETES  SHA-256
now   v0.1.0  v1.36.3     a1a1a1a1a1a1
then  v0.2.0  v1.37.0     b2b2b2b2b2b2

servers, one at a time: server-0
then agents, 3 at a time: agent-0, agent-1
on each: it gets no new pods, and its pods leave it, within 2m0s, as far as their disruption budgets let them;
  the program is tried for at most 1m0s, and takes its place or is taken back; the node gets pods again
at the first node that fails: halt, and wait for k1s upgrade resume or k1s upgrade abort
note: with one server the API does not answer for a second
`
	if err != nil || out != want || said != "" || len(b.asked) != 1 || !b.asked[0].DryRun {
		t.Errorf("%q, %v:\n%s\nwant\n%s", said, err, out, want)
	}
}

func TestHowFarTheClusterIs(t *testing.T) {
	for stage, want := range map[string]string{
		"": "the cluster was never upgraded as a whole", "going": "The cluster is being upgraded to k1s v0.2.0", "aborting": "is being called off", "aborted": "was called off",
	} {
		b := &clusterUpgrading{tells: []control.ClusterUpgrade{clusterAt(stage, "waiting")}}
		out, _, err := b.runs(t, func(ctx context.Context, d Deps) error {
			return runClusterUpgrade(ctx, clusterUpgradeOptions{deps: d, format: printer.Table})
		})
		if err != nil || !strings.Contains(out, want) || len(b.asked) != 0 {
			t.Errorf("%q: %q, %v", stage, out, err)
		}
	}
}
