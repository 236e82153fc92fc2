package components

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/paths"
)

var update = flag.Bool("update", false, "write the golden files")

// input is a node whose facts are fixed; variants change what a test is about.
func input(cfg config.Config) component.Input {
	return component.Input{
		Config: cfg, Paths: paths.Default(), Payload: "/var/lib/k1s/payload/0123456789ab", PayloadID: "0123456789ab",
		Server: "203.0.113.1:6443",
		Facts: component.Facts{
			NodeName: "node-1", NodeIP: netip.MustParseAddr("198.51.100.7"), NodeInterface: "eth0", CPUs: 2, MemoryBytes: 4 << 30,
			CgroupVersion: 2, CgroupRoot: "/k1s", Systemd: true, SysResource: true, InitialNetNS: true, AppArmor: true, OverlayFS: true,
			Resolver: component.Resolver{File: "/etc/resolv.conf", HasServers: true},
		},
	}
}

// variants of what is known about the machine, chosen by the name of a case after the last dot: default.v1.
var variants = map[string]func(*component.Input){
	".v1": func(in *component.Input) {
		f := &in.Facts
		f.CgroupVersion, f.Systemd, f.SysResource, f.InitialNetNS, f.AppArmor, f.OverlayFS = 1, false, false, false, false, false
		f.OOMScore = 500
		f.Resolver = component.Resolver{Text: "nameserver 192.0.2.53\n", HasServers: true}
	},
	".former":  func(in *component.Input) { in.Former = []int{61100} },
	".sandbox": func(in *component.Input) { in.Facts.Sandbox = true },
	".several": func(in *component.Input) {
		in.Several = true
		in.Etcd = component.EtcdMember{Name: "node-1-0a1b2c3d", InitialCluster: "node-0=https://198.51.100.6:2380,node-1-0a1b2c3d=https://198.51.100.7:2380"}
	},
}

// Every directory of testdata is a configuration; the golden file beside it is the whole node.
func TestPlanIsAsGolden(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*/config.yaml")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range dirs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			loaded, err := config.Effective(config.Sources{File: file, FileMustExist: true}, config.Known{Components: Names()})
			if err != nil {
				t.Fatal(err)
			}
			in := input(loaded.Config)
			if v := variants[filepath.Ext(dir)]; v != nil {
				v(&in)
			}
			units, err := Plan(in)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join(dir, "plan.golden"), text(units))
		})
	}
}

func compare(t *testing.T, golden, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatalf("%v; run: go test ./internal/components -update", err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		a, b := at(w, i), at(g, i)
		if a != b {
			t.Errorf("%s:%d\n- %s\n+ %s", golden, i+1, a, b)
		}
	}
	t.Error("when this is meant: go test ./internal/components -update, and read the diff")
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

// text shows units one fact a line, so that a changed flag is a changed line.
func text(units []component.Unit) string {
	var b strings.Builder
	for _, u := range units {
		fmt.Fprintf(&b, "unit %s (stop within %s)\n  %s\n", u.Name, u.StopTimeout, strings.Join(u.Argv[:2], " "))
		if u.User != nil {
			fmt.Fprintf(&b, "  user: %s\n", u.User)
		}
		if u.TimerSlack != 0 {
			fmt.Fprintf(&b, "  timers: %s later than asked\n", u.TimerSlack)
		}
		for _, g := range u.Grants {
			fmt.Fprintf(&b, "  owner: %s\n", g)
		}
		for _, c := range u.Components {
			fmt.Fprintf(&b, "\n  component %s\n    open:  %s\n    ready: %s\n", c.Name, c.Open, c.Ready)
			for _, n := range c.Needs {
				fmt.Fprintf(&b, "    needs: %s %s\n", n.Component, n.Level)
			}
			for _, a := range c.Spec.Args {
				fmt.Fprintf(&b, "    arg:   %s\n", a)
			}
			for _, d := range c.Spec.Dirs {
				fmt.Fprintf(&b, "    dir:   %s %o\n", d.Path, d.Mode)
			}
			for _, a := range c.Spec.Access {
				fmt.Fprintf(&b, "    %s: %s\n", a.Way, a.Path)
			}
			for _, g := range c.Spec.Given {
				fmt.Fprintf(&b, "    given: %s\n", g)
			}
			for _, f := range c.Spec.Files {
				fmt.Fprintf(&b, "    file:  %s %o\n", f.Path, f.Mode)
				for line := range strings.Lines(f.Content) {
					b.WriteString("      | " + line)
				}
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestWhatAComponentNeedsStandsBeforeIt(t *testing.T) {
	for _, isolation := range []string{Grouped, PerProcess, Fused} {
		cfg := config.Default()
		cfg.Spec.Isolation = isolation
		comps, err := Render(input(cfg))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, c := range comps {
			for _, n := range c.Needs {
				if !seen[n.Component] {
					t.Errorf("%s: %s needs %s, which comes later", isolation, c.Name, n.Component)
				}
			}
			seen[c.Name] = true
		}
	}
}

func TestIsolationChangesProcessesAndNothingElse(t *testing.T) {
	args := func(isolation string) (int, map[string][]string) {
		cfg := config.Default()
		cfg.Spec.Isolation = isolation
		units, err := Plan(input(cfg))
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][]string{}
		for _, u := range units {
			for _, c := range u.Components {
				out[c.Name] = c.Spec.Args
			}
		}
		return len(units), out
	}
	nGrouped, grouped := args(Grouped)
	nSingle, single := args(PerProcess)
	nFused, fused := args(Fused)
	if nGrouped != 3 || nSingle != len(single) || nFused != 2 {
		t.Errorf("processes: grouped %d, want 3; component %d, want %d; none %d, want 2", nGrouped, nSingle, len(single), nFused)
	}
	for name := range grouped {
		if !slices.Equal(grouped[name], single[name]) || !slices.Equal(grouped[name], fused[name]) {
			t.Errorf("%s has other arguments in another isolation mode", name)
		}
	}
}

func TestGroupMembersStopAfterTheirClients(t *testing.T) {
	units, err := Plan(input(config.Default()))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(units, func(u component.Unit) bool { return u.Name == controlPlane })
	j := slices.IndexFunc(units[i].Files, func(f component.File) bool { return strings.HasSuffix(f.Path, "control-plane.json") })
	group := units[i].Files[j].Content
	for _, want := range []string{`"name": "kine"`, `"stopAfter": [
        "kube-apiserver"
      ]`} {
		if !strings.Contains(group, want) {
			t.Errorf("group file lacks %s:\n%s", want, group)
		}
	}
}

func TestUserArgumentsReplaceOursInPlace(t *testing.T) {
	got := override([]string{"--a=1", "--b=2", "--b=3", "word", "--l=x"}, []string{"l"}, map[string]string{"b": "9", "z": "1", "c": "", "l": "y"})
	want := []string{"--a=1", "--b=9", "word", "--l=x,y", "--c=", "--z=1"}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestAProxyIsForPullsAndNothingOfTheCluster(t *testing.T) {
	in := input(config.Default())
	in.Facts.Proxy = map[string]string{"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "intranet.example"}
	units, err := Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		if got := u.Env["HTTPS_PROXY"]; (got != "") != (u.Name == "containerd") {
			t.Errorf("%s has HTTPS_PROXY=%q", u.Name, got)
		}
		if u.Name == "containerd" {
			for _, want := range []string{"intranet.example", "10.42.0.0/16", "10.43.0.0/16", ".cluster.local", "198.51.100.7"} {
				if !strings.Contains(u.Env["NO_PROXY"], want) {
					t.Errorf("NO_PROXY=%s lacks %s", u.Env["NO_PROXY"], want)
				}
			}
		}
	}
}

func TestACircleOfNeedsIsAnError(t *testing.T) {
	need := func(n string) []component.Need { return []component.Need{{Component: n, Level: component.Ready}} }
	_, err := sorted(map[string]component.Component{
		"a": {Name: "a", Needs: need("b")}, "b": {Name: "b", Needs: need("c")}, "c": {Name: "c", Needs: need("a")},
	})
	if err == nil || !strings.Contains(err.Error(), "a → b → c → a") {
		t.Fatalf("error is %v", err)
	}
}

func TestAChangedSettingChangesOnlyTheUnitsItConcerns(t *testing.T) {
	hashes := func(change func(*config.Config)) map[string]string {
		cfg := config.Default()
		cfg.Spec.Isolation = PerProcess
		change(&cfg)
		units, err := Plan(input(cfg))
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, u := range units {
			out[u.Name] = u.Hash()
		}
		return out
	}
	before := hashes(func(*config.Config) {})
	after := hashes(func(c *config.Config) {
		c.Spec.Components = map[string]config.ComponentArgs{"kube-scheduler": {Args: map[string]string{"v": "4"}}}
	})
	for name := range before {
		if changed := before[name] != after[name]; changed != (name == "kube-scheduler") {
			t.Errorf("%s changed: %t", name, changed)
		}
	}
}

func TestEveryPortOfAComponentIsRefusedAsAPIPort(t *testing.T) {
	cfg := config.Default()
	cfg.Spec.Datastore.Endpoint = "etcd"
	for name, ports := range Ports(input(cfg)) {
		if name == "kube-apiserver" {
			continue
		}
		for _, p := range ports {
			c := cfg
			c.Spec.API.Port = p
			if len(config.Validate(c, config.Known{})) == 0 {
				t.Errorf("port %d of %s is accepted as spec.api.port", p, name)
			}
		}
	}
}
