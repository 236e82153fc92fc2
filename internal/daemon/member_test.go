package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// agentInput is an agent on an empty machine.
func agentInput(t *testing.T) component.Input {
	t.Helper()
	dir := t.TempDir()
	c := config.Default()
	c.Spec.Role, c.Spec.Join.Server = config.Agent, "https://127.0.0.1:1" // nobody is there
	return component.Input{
		Config: c, Paths: paths.Paths{Data: dir + "/data", Run: dir + "/run", Config: dir + "/etc"},
		Facts: component.Facts{NodeName: "agent-0", NodeIP: netip.MustParseAddr("10.0.0.30")},
	}
}

// welcomed is what a machine has asked for and what a cluster whose pods are in 10.60.0.0/16 has answered, at a time, with certificates that
// last an hour.
func welcomed(t *testing.T, in component.Input, at time.Time) membership {
	t.Helper()
	server := paths.Paths{Data: t.TempDir()}
	_, err := pki.Ensure(t.Context(), pki.Request{
		Paths: server, NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), NoWorker: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.OpenAuthority(server)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Identity(in.Paths); err != nil {
		t.Fatal(err)
	}
	leaves := pki.JoinedLeaves(in.Facts.NodeName, in.Facts.NodeIP)
	requests, err := pki.NewRequests(leaves)
	if err != nil {
		t.Fatal(err)
	}
	signed := map[string][]byte{}
	for _, l := range leaves {
		l.Lifetime = time.Hour
		if signed[l.Name], err = ca.Sign(l, requests.CSRs[l.Name], at); err != nil {
			t.Fatal(err)
		}
	}
	theirs := config.Default()
	theirs.Spec.Network.PodCIDR = "10.60.0.0/16"
	return membership{
		requests: requests, welcome: &join.Welcome{CA: ca.PEM(), Certificates: signed},
		kept: kept{Server: "10.0.0.1:6443", Servers: []string{"10.0.0.1:6443"}, Settings: config.Shared(theirs)},
	}
}

// joined makes it one that has joined that cluster.
func joined(t *testing.T, in component.Input, at time.Time) {
	t.Helper()
	m := welcomed(t, in, at)
	if err := m.requests.Install(t.Context(), in.Paths, m.welcome.CA, m.welcome.Certificates); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(m.kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.Paths.Agent(), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func agentDaemon() *Daemon {
	return &Daemon{log: slog.New(slog.NewTextHandler(io.Discard, nil)), board: health.NewBoard(time.Now), started: time.Now()}
}

func TestANodeThatHasJoinedStartsWithoutAServer(t *testing.T) {
	in := agentInput(t)
	in.Config.Spec.Join = config.Join{TokenFile: "/nowhere"} // needed once, and gone since
	joined(t, in, time.Now())
	d := agentDaemon()
	m, err := d.join(t.Context(), &in)
	if err != nil {
		t.Fatal(err)
	}
	if in.Config.Spec.Network.PodCIDR != "10.60.0.0/16" || in.Server != "10.0.0.1:6443" {
		t.Errorf("it has pods in %s, its server is %s", in.Config.Spec.Network.PodCIDR, in.Server)
	}
	conflist := components.Conflist(in) // pods start without a server
	if err := errors.Join(os.MkdirAll(in.Paths.CNIConf(), 0o755), os.WriteFile(conflist, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	report, err := m.settle(t.Context(), d.log, in)
	if !exists(conflist) {
		t.Error("the pod network is forgotten by a node that is the same as before")
	}
	if err != nil || report.RenewAt.IsZero() || report.CAExpires.IsZero() {
		t.Errorf("%+v, %v", report, err)
	}
	c, err := kubeconfig.Load(in.Paths.Kubeconfig("kubelet"))
	if err != nil || c.Server != "https://127.0.0.1:6443" || c.TLSServerName != "kubernetes" {
		t.Errorf("the kubelet's kubeconfig: %+v, %v", c, err)
	}
	if _, err := os.Stat(in.Paths.AdminKubeconfig()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an agent has an administrator's kubeconfig: %v", err)
	}
}

// The machine is another Node from then on, with other addresses of pods.
func TestWhoJoinsAnewForgetsThePodNetworkOfBefore(t *testing.T) {
	cluster := paths.Paths{Data: t.TempDir()}
	_, err := pki.Ensure(t.Context(), pki.Request{
		Paths: cluster, NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Etcd: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := pki.ReadBundle(cluster)
	if err != nil {
		t.Fatal(err)
	}
	d := agentDaemon()
	agent := func(in component.Input) error {
		m := welcomed(t, in, time.Now())
		_, err := m.settle(t.Context(), d.log, in)
		return err
	}
	server := func(in component.Input) error {
		in.Config.Spec.Role = config.Server
		a := &arrival{d: d, peers: peers{Several: true, Joined: &joinedCluster{Pending: true}}, keys: join.Bootstrap{Keys: keys, Datastore: join.Datastore{Engine: config.EmbeddedEtcd}}}
		return a.settle(t.Context(), &in)
	}
	for name, c := range map[string]struct {
		settle  func(component.Input) error
		backend string
		want    bool
	}{
		"an agent": {agent, "host-gw", false}, "an agent whose network is not ours": {agent, "none", true},
		"a server": {server, "host-gw", false}, "a server whose network is not ours": {server, "none", true},
	} {
		t.Run(name, func(t *testing.T) {
			in := agentInput(t)
			in.Config.Spec.Network.Backend = c.backend
			ours, theirs, state := components.Conflist(in), filepath.Join(in.Paths.CNIConf(), "00-theirs.conflist"), filepath.Join(in.Paths.CNIState(), "last")
			for _, f := range []string{ours, theirs, state} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, nil, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.settle(in); err != nil {
				t.Fatal(err)
			}
			if exists(ours) != c.want || !exists(theirs) || !exists(state) {
				t.Errorf("its configuration is there: %t, others': %t, addresses: %t", exists(ours), exists(theirs), exists(state))
			}
			// It may have had none.
			if err := errors.Join(removeIfThere(ours), removeIfThere(in.Paths.Agent()), c.settle(in)); err != nil {
				t.Errorf("without one: %v", err)
			}
		})
	}
}

func TestANodeWithAnotherAddressStartsWithoutAServer(t *testing.T) {
	in := agentInput(t)
	joined(t, in, time.Now())
	in.Facts.NodeIP = netip.MustParseAddr("10.0.0.77")
	if _, err := agentDaemon().join(t.Context(), &in); err != nil {
		t.Fatal(err)
	}
	due := pki.DueOf(in.Paths, pki.JoinedLeaves(in.Facts.NodeName, in.Facts.NodeIP), time.Now())
	if len(due.Changes) != 1 || due.Changes[0].Name != pki.KubeletServing {
		t.Errorf("due %+v", due)
	}
}

func TestSettingsThatHaveChangedAreKeptForTheNextStartAndTold(t *testing.T) {
	in := agentInput(t)
	joined(t, in, time.Now())
	d := agentDaemon()
	if _, err := d.join(t.Context(), &in); err != nil {
		t.Fatal(err)
	}
	now := in.Config
	now.Spec.Network.Backend = "vxlan"
	if err := d.noteSettings(in, join.Welcome{Servers: []string{"10.0.0.2:6443"}, Settings: config.Shared(now)}); err != nil {
		t.Fatal(err)
	}
	problems := d.board.List()
	if len(problems) != 1 || problems[0].Code != health.SettingsChanged || !strings.Contains(problems[0].Text, `spec.network.backend is "host-gw" here and "vxlan" there`) {
		t.Errorf("problems %+v", problems)
	}
	again := agentInput(t)
	again.Paths = in.Paths
	if _, err := d.join(t.Context(), &again); err != nil || again.Config.Spec.Network.Backend != "vxlan" {
		t.Errorf("the next start: %v, backend %s", err, again.Config.Spec.Network.Backend)
	}
}

func TestSettingsNoNodeCanHaveAreRefused(t *testing.T) {
	in := agentInput(t)
	joined(t, in, time.Now())
	settings := config.Shared(config.Default())
	settings["spec.network.podCIDR"] = []byte(`"nonsense"`)
	b, err := json.Marshal(kept{Server: "10.0.0.1:6443", Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.Paths.Agent(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := agentDaemon().join(t.Context(), &in); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("%v", err)
	}
}

func TestANodeWhoseCertificatesHaveEndedAsksForNewOnesAndSaysSo(t *testing.T) {
	for name, at := range map[string]time.Time{"ended": time.Now().Add(-70 * time.Minute), "of a clock that was ahead": time.Now().Add(60 * 24 * time.Hour)} {
		t.Run(name, func(t *testing.T) {
			in := agentInput(t)
			joined(t, in, at)
			d := agentDaemon()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := d.join(ctx, &in); !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("%v", err)
			}
			problems := d.board.List()
			if len(problems) != 1 || problems[0].Code != health.ServersAway || !strings.Contains(problems[0].String(), "127.0.0.1:1") {
				t.Errorf("problems %+v", problems)
			}
			if !strings.Contains(d.doing, "joining the cluster: server 127.0.0.1:1") {
				t.Errorf("doing %q", d.doing)
			}
		})
	}
}

func TestAnAgentThatCannotEverJoinSaysWhy(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		t.Helper()
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(f, mode); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for name, tc := range map[string]struct {
		join config.Join
		want string
	}{
		"no server":       {config.Join{}, "spec.join.server is empty"},
		"no URL":          {config.Join{Server: "ftp://x"}, "has to be https"},
		"no token":        {config.Join{Server: "127.0.0.1:1"}, "neither a token"},
		"no such file":    {config.Join{Server: "127.0.0.1:1", TokenFile: "/nowhere"}, "spec.join.tokenFile"},
		"open to all":     {config.Join{Server: "127.0.0.1:1", TokenFile: file("open", "x", 0o644)}, "can be read by everybody"},
		"two tokens":      {config.Join{Server: "127.0.0.1:1", Token: "x", TokenFile: file("second", "x", 0o600)}, "two tokens"},
		"no token in it":  {config.Join{Server: "127.0.0.1:1", TokenFile: file("empty", "\n", 0o600)}, "it is empty"},
		"something else":  {config.Join{Server: "127.0.0.1:1", Token: "K10secret::server:x"}, "no token of k1s"},
		"a damaged token": {config.Join{Server: "127.0.0.1:1", Token: "k1s1.agent.0123456789.short.x"}, "was it cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			in := agentInput(t)
			in.Config.Spec.Join = tc.join
			_, err := agentDaemon().join(t.Context(), &in)
			if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if text := tc.join.Token.Reveal(); err != nil && len(text) > 1 && strings.Contains(err.Error(), text) {
				t.Errorf("the token is in the error: %v", err)
			}
		})
	}
}

func TestSettingsOtherThanTheClustersAreNamedBeforeAnythingIsMade(t *testing.T) {
	in := agentInput(t)
	joined(t, in, time.Now())
	in.Config.Spec.Network.PodCIDR = "10.99.0.0/16"
	if _, err := agentDaemon().join(t.Context(), &in); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "spec.network.podCIDR") {
		t.Errorf("%v", err)
	}
}

func TestADamagedMemoryOfTheClusterIsToldWithARemedy(t *testing.T) {
	in := agentInput(t)
	joined(t, in, time.Now())
	if err := os.WriteFile(in.Paths.Agent(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := agentDaemon().join(t.Context(), &in)
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(hint, in.Paths.Agent()) {
		t.Errorf("%v (%s)", err, hint)
	}
}

func TestAServerIsNotMadeAnAgentNorAnAgentAServer(t *testing.T) {
	agent := agentInput(t)
	if err := sameRole(agent); err != nil {
		t.Errorf("an empty machine: %v", err)
	}
	joined(t, agent, time.Now())
	if err := sameRole(agent); err != nil {
		t.Errorf("an agent: %v", err)
	}
	agent.Config.Spec.Role = config.Server
	if err := sameRole(agent); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "is an agent") {
		t.Errorf("an agent as a server: %v", err)
	}
	server := agentInput(t)
	server.Config.Spec.Role = config.Server
	_, err := pki.Ensure(t.Context(), pki.Request{
		Paths: server.Paths, NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), NoWorker: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sameRole(server); err != nil {
		t.Errorf("a server: %v", err)
	}
	server.Config.Spec.Role = config.Agent
	if err := sameRole(server); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "is a server") {
		t.Errorf("a server as an agent: %v", err)
	}
}
