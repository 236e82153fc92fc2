package cli

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/upgrade"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// What people read of a node, line by line: everything they are told must be in one of these.
func TestStatusAsText(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	ready := func(name, unit string, pid int) control.Component {
		return control.Component{Name: name, Unit: unit, State: "ready", Since: ago(26 * time.Hour), PID: pid, Log: "/var/lib/k1s/log/" + unit + ".log"}
	}
	well := control.Status{
		State: control.Running, Since: ago(26*time.Hour + 5*time.Minute), PID: 812, Version: "v0.1.0", Kubernetes: "v1.36.3",
		Cluster: "k1s", Server: "https://192.0.2.1:6443",
		Node:       &control.Node{Name: "one", IP: "192.0.2.1", Ready: true, Pods: control.Pods{Total: 3, Ready: 3}},
		DNS:        &control.DNS{Address: "10.43.0.10", Answers: true},
		Tunnels:    &control.Tunnels{Nodes: []control.TunnelNode{{Name: "two"}}},
		Components: []control.Component{ready("kube-apiserver", "control-plane", 830), ready("kubelet", "node", 840)},
		Addons:     []control.Addon{{Name: "coredns", State: "applied", Packaged: true}},
	}
	crashing := ready("kube-scheduler", "control-plane", 0)
	crashing.State, crashing.Since, crashing.Restarts, crashing.LastExit = "backoff", ago(4*time.Second), 5, "exit code 1"
	crashing.Note = "exit code 1, starts again in 16s:\nunknown flag: --nonsense"
	waiting := ready("kubelet", "node", 0)
	waiting.State, waiting.Since, waiting.Note = "waiting", ago(72*time.Second), "for containerd to be ready: dial /run/k1s/containerd.sock: no such file"
	ill := control.Status{
		State: control.Degraded, Doing: "waiting for the node to be Ready", Since: ago(73 * time.Second), PID: 812, Version: "v0.1.0", Kubernetes: "v1.36.3",
		Cluster: "k1s", Server: "https://192.0.2.1:6443",
		Upgrade: &upgrade.State{Phase: upgrade.Trying, From: upgrade.Program{Version: "v0.1.0", Kubernetes: "v1.36.3"}, To: upgrade.Program{Version: "v0.2.0", Kubernetes: "v1.37.0"}},
		Node: &control.Node{Name: "one", IP: "192.0.2.1", Reason: "container runtime is down",
			Pods: control.Pods{Total: 12, Ready: 10, NotReady: []string{"kube-system/coredns-0", "default/web-1"}}},
		DNS:        &control.DNS{Address: "10.43.0.10", Reason: "no answer in 2s"},
		Tunnels:    &control.Tunnels{Servers: []control.TunnelServer{{Server: "192.0.2.1:6443", Connected: true}, {Server: "192.0.2.2:6443"}}},
		Components: []control.Component{ready("kine", "control-plane", 830), crashing, waiting},
		Addons:     []control.Addon{{Name: "coredns", State: "applied", Packaged: true}, {Name: "mine", State: "failed", Note: "mine.yaml:3: unknown field"}},
		Problems: []health.Problem{
			{Code: health.ComponentCrashloop, Severity: health.Error, Component: "kube-scheduler", Text: "it ended 5 times in a row", Remedy: "run: k1s logs kube-scheduler"},
			{Code: health.CgroupV1, Severity: health.Warning, Text: "this machine uses cgroup v1", Remedy: "boot with systemd.unified_cgroup_hierarchy=1"},
			{Code: health.Swap, Severity: health.Info, Text: "swap is on"},
		},
	}
	starting := control.Status{
		State: control.Starting, Doing: "unpacking", Since: ago(time.Second), PID: 812, Version: "v0.1.0", Kubernetes: "v1.36.3",
		Cluster: "k1s", Server: "https://192.0.2.1:6443", Components: []control.Component{{Name: "kine", State: "waiting", Since: ago(time.Second), Note: "for certificates"}},
	}
	separate := well
	apiserver := ready("kube-apiserver", "control-plane", 830)
	apiserver.UID = 61101
	separate.Components = []control.Component{apiserver, ready("kubelet", "node", 840)}
	for name, show := range map[string]struct {
		status control.Status
		wide   bool
	}{"well": {status: well}, "ill": {status: ill}, "ill-wide": {status: ill, wide: true}, "users-wide": {status: separate, wide: true}, "starting": {status: starting}} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if err := printStatus(&out, show.status, show.wide, now); err != nil {
				t.Fatal(err)
			}
			golden(t, "status-"+name+".txt", out.String())
		})
	}
}

// golden compares a text with the file of that name in testdata, or writes it there with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}
