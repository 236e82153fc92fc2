package config

import (
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func flagSet(t *testing.T, defaultFile string, args ...string) (*pflag.FlagSet, *Flags) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags := RegisterFlags(fs, defaultFile)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs, flags
}

func TestNamesOfFlagsAndVariablesFollowFromThePath(t *testing.T) {
	for path, want := range map[string]string{
		"spec.api.port":               "api-port K1S_API_PORT",
		"spec.api.sans":               "api-sans K1S_API_SANS",
		"spec.network.podCIDR":        "network-pod-cidr K1S_NETWORK_POD_CIDR",
		"spec.network.serviceCIDR":    "network-service-cidr K1S_NETWORK_SERVICE_CIDR",
		"spec.network.clusterDNS":     "network-cluster-dns K1S_NETWORK_CLUSTER_DNS",
		"spec.noWorker":               "no-worker K1S_NO_WORKER",
		"spec.featureGates":           "feature-gates K1S_FEATURE_GATES",
		"spec.kubelet":                " ",
		"spec.components.<name>.args": " ",
	} {
		f, err := Lookup(path)
		if err != nil || f.Flag+" "+f.Env != want {
			t.Errorf("%s: %q, %v; want %q", path, f.Flag+" "+f.Env, err, want)
		}
	}
	for in, want := range map[string]string{"APIPort": "api-port", "podIP": "pod-ip", "x509": "x509", "a": "a", "IDs": "i-ds"} {
		if got := kebab(in); got != want {
			t.Errorf("kebab(%q) is %q, want %q", in, got, want)
		}
	}
}

func TestEveryFieldIsReachableAndDocumentedOnce(t *testing.T) {
	flags, paths := map[string]string{}, map[string]bool{}
	for _, f := range Fields() {
		if paths[f.Path] {
			t.Errorf("%s comes twice", f.Path)
		}
		paths[f.Path] = true
		if f.Doc == "" {
			t.Errorf("%s has no doc tag", f.Path)
		}
		if !f.Section && f.Default == "" && f.Example == "" {
			t.Errorf("%s has neither a default nor an example", f.Path)
		}
		if f.Flag == "" {
			continue
		}
		if other := flags[f.Flag]; other != "" {
			t.Errorf("%s and %s share the flag --%s", f.Path, other, f.Flag)
		}
		flags[f.Flag] = f.Path
	}
}

func TestExamplesAndDefaultsAreValid(t *testing.T) {
	if p := Validate(Default(), Known{}); len(p) > 0 {
		t.Errorf("the defaults have problems: %v", p)
	}
	for _, f := range Fields() {
		if f.Section {
			continue
		}
		src := Sources{File: stdinFile, Stdin: strings.NewReader(head + f.YAML())}
		if strings.HasPrefix(f.Path, "spec.etcd.snapshots.s3.") && f.Name() != "bucket" { // they are of one
			src.Env = []string{"K1S_ETCD_SNAPSHOTS_S3_BUCKET=b"}
		}
		if l, err := Effective(src, Known{}); err != nil {
			t.Errorf("%s:\n%s%v", f.Path, f.YAML(), err)
		} else if f.Example != "" && reflect.DeepEqual(l.Config, Default()) {
			t.Errorf("%s: the example %s is the default", f.Path, f.Example)
		}
	}
}

func TestFlagsRefuseWrongValuesAtOnce(t *testing.T) {
	for arg, want := range map[string]string{
		"--api-port=x":          `is "x", and must be a whole decimal number`,
		"--no-worker=x":         "must be true or false",
		"--log-level=loud":      "must be debug, info, warn or error",
		"--node-labels=a":       `"a" is not key=value`,
		"--feature-gates=A=no!": "must be true or false",
		"--kubelet=a":           "unknown flag",
	} {
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		RegisterFlags(fs, "")
		if err := fs.Parse([]string{arg}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", arg, err, want)
		}
	}
}

func TestEmptyFlagsEmptyWhatTheFileSays(t *testing.T) {
	_, flags := flagSet(t, "", "--api-sans=", "--node-labels=", "--node-name=")
	got, err := Load(Sources{File: stdinFile, Flags: flags,
		Stdin: strings.NewReader(head + "spec: {api: {sans: [a]}, node: {name: n, labels: {a: b}}}\n")})
	if err != nil || !reflect.DeepEqual(got.Config, Default()) {
		t.Errorf("%+v, %v", got.Config, err)
	}
}

func TestTheFileIsNamedByFlagThenVariableThenDefault(t *testing.T) {
	env := []string{"K1S_CONFIG=/env/k1s.yaml"}
	_, flags := flagSet(t, "/etc/k1s/config.yaml")
	if s := flags.Sources(nil); s.File != "/etc/k1s/config.yaml" || s.FileMustExist || s.DropIns != "/etc/k1s/config.d" {
		t.Errorf("default: %+v", s)
	}
	if s := flags.Sources(env); s.File != "/env/k1s.yaml" || !s.FileMustExist || s.DropIns != "/env/config.d" {
		t.Errorf("variable: %+v", s)
	}
	_, flags = flagSet(t, "/etc/k1s/config.yaml", "--config", "/flag/k1s.yaml", "--no-worker")
	if s := flags.Sources(env); s.File != "/flag/k1s.yaml" || !s.FileMustExist || s.DropIns != "/flag/config.d" {
		t.Errorf("flag: %+v", s)
	}
	if got := flags.Given(); !reflect.DeepEqual(got, []string{"--no-worker"}) {
		t.Errorf("given %q", got)
	}
}

func TestHelpShowsFlagsBySection(t *testing.T) {
	fs, _ := flagSet(t, "/etc/k1s/config.yaml")
	fs.Bool("dry-run", false, "print the plan")
	var titles []string
	seen := 0
	for _, g := range FlagGroups(fs) {
		titles = append(titles, g.Title)
		g.Flags.VisitAll(func(*pflag.Flag) { seen++ })
		if g.Title == "api" && !strings.Contains(g.Flags.FlagUsages(), "--api-port int") {
			t.Errorf("usage of api:\n%s", g.Flags.FlagUsages())
		}
	}
	want := []string{"", "cluster", "join", "node", "api", "network", "datastore", "etcd", "runtime", "images", "audit", "secrets", "general", "users", "kubeconfig", "log"}
	if !reflect.DeepEqual(titles, want) {
		t.Errorf("sections %q, want %q", titles, want)
	}
	all := 0
	fs.VisitAll(func(*pflag.Flag) { all++ })
	if seen != all {
		t.Errorf("%d of %d flags are shown", seen, all)
	}
}
