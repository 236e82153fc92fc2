package configcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
)

const head = "apiVersion: k1s.io/v1alpha1\nkind: Config\n"

// run is `k1s config ARGS` with this environment, default file and standard input.
func run(t *testing.T, env []string, file, stdin string, args ...string) (out, errOut string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := New(iostreams.Streams{In: strings.NewReader(stdin), Out: &o, ErrOut: &e}, Deps{
		DefaultFile: file, Environ: func() []string { return env }, OtherEnv: []string{"K1S_DATA_DIR"},
		Disable: []string{"coredns"}, Components: []string{"kube-apiserver"},
	})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(context.Background())
	return o.String(), e.String(), err
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPrintShowsWhatIsInEffectAndWhereItComesFrom(t *testing.T) {
	file := write(t, head+"spec:\n  api: {sans: [a.example]}\n  kubelet: {maxPods: 250}\n  components: {kube-apiserver: {args: {v: 4}}}\n  node: {labels: {on: 'true'}}\n")
	out, errOut, err := run(t, []string{"K1S_LOG_LEVEL=debug", "K1S_DATA_DIR=/x", "K1S_LOG_LEVL=info"}, file, "", "print", "--origin", "--api-port", "7000")
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: k1s.io/v1alpha1
kind: Config
spec:
  cluster:
    name: k1s # default
    domain: cluster.local # default
  join: {}
  node:
    labels:
      "on": "true" # FILE:7:23
  api:
    port: 7000 # --api-port
    bind: 0.0.0.0 # default
    sans: # FILE:4:15
      - a.example
  network:
    podCIDR: 10.42.0.0/16 # default
    serviceCIDR: 10.43.0.0/16 # default
    backend: host-gw # default
    nodePorts: 30000-32767 # default
  datastore:
    endpoint: sqlite # default
  etcd:
    quota: 2048 # default
    removeDeadAfter: never # default
    snapshots:
      schedule: 0 */12 * * * # default
      keep: 5 # default
      s3:
        pathStyle: false # default
        only: false # default
  runtime: {}
  images:
    disableDefaultRegistry: false # default
  audit:
    enabled: false # default
  secrets: {}
  role: server # default
  isolation: grouped # default
  users:
    separate: false # default
    first: 61100 # default
  noWorker: false # default
  kubelet:
    maxPods: 250 # FILE:5:22
  components:
    kube-apiserver:
      args:
        v: "4" # FILE:6:43
  kubeconfig: {}
  log:
    level: debug # K1S_LOG_LEVEL
    format: text # default
`
	if got := strings.ReplaceAll(out, file, "FILE"); got != want {
		t.Errorf("printed:\n%s\nwant:\n%s", got, want)
	}
	if errOut != "warning: the variable K1S_LOG_LEVL has no effect: there is no such setting; did you mean K1S_LOG_LEVEL?\n" {
		t.Errorf("on standard error: %q", errOut)
	}
}

func TestPrintedConfigurationIsAConfiguration(t *testing.T) {
	first, _, err := run(t, nil, write(t, head+"spec: {kubelet: {evictionHard: {memory.available: 5%}}}\n"), "", "print")
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := run(t, nil, write(t, first), "", "print")
	if err != nil || first != second {
		t.Errorf("%v\n%s\nwas\n%s", err, second, first)
	}
	out, _, err := run(t, nil, write(t, first), "", "print", "-o", "json", "--origin")
	var got struct {
		Config  config.Config
		Origins config.Origins
	}
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.Config.Spec.API.Port != 6443 || got.Origins["spec.api.port"].Line == 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPrintDefaultsIgnoresWhatIsConfigured(t *testing.T) {
	out, _, err := run(t, []string{"K1S_API_PORT=1"}, write(t, "broken: ["), "", "print", "--defaults")
	if err != nil || !strings.Contains(out, "port: 6443\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestValidateListsAllProblemsOfAllFiles(t *testing.T) {
	good := write(t, head)
	bad := write(t, head+"spec:\n  disable: [coredn]\n  api:\n    prot: 1\n")
	worse := write(t, "spec: [")
	out, _, err := run(t, nil, "", "", "validate", bad, good, worse)
	if out != good+": ok\n" {
		t.Errorf("on standard output: %q", out)
	}
	want := "the configuration has 3 problems:\n" +
		"  " + bad + ":4:13: spec.disable[0]: \"coredn\" is no packaged component\n    did you mean \"coredns\"?\n" +
		"  " + bad + ":6:5: spec.api: unknown field \"prot\"\n    did you mean \"port\"?\n" +
		"  " + worse + ":1: is not YAML: did not find expected node content"
	if err == nil || err.Error() != want || errs.KindOf(err).ExitCode() != 2 {
		t.Errorf("error:\n%v\nwant:\n%s", err, want)
	}
}

func TestValidateChecksWhatIsInEffect(t *testing.T) {
	file := write(t, head)
	out, _, err := run(t, []string{"K1S_LOG_LEVEL=debug"}, file, "", "validate", "--no-worker")
	if err != nil || out != "ok: "+file+", --no-worker, K1S_LOG_LEVEL\n" {
		t.Errorf("%q, %v", out, err)
	}
	out, _, err = run(t, nil, filepath.Join(t.TempDir(), "none"), "", "validate")
	if err != nil || out != "ok: defaults (no configuration file)\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, _, err = run(t, nil, file, "", "validate", "--api-port", "0")
	if err == nil || err.Error() != "--api-port: spec.api.port: is 0, and must be from 1 to 65535" || errs.KindOf(err).ExitCode() != 2 {
		t.Errorf("%v", err)
	}
	_, _, err = run(t, nil, file, "", "validate", "--config", file+".missing")
	if err == nil || !strings.Contains(err.Error(), "cannot be read") || errs.KindOf(err).ExitCode() != 2 {
		t.Errorf("a named file that is missing: %v", err)
	}
}

func TestValidateReadsStandardInputAndRefusesMixedUse(t *testing.T) {
	out, _, err := run(t, nil, "", head, "validate", "-")
	if err != nil || out != "-: ok\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, _, err = run(t, nil, "", head, "validate", "-", "--no-worker"); !errs.Is(err, errs.Usage) {
		t.Errorf("a file and a setting: %v", err)
	}
}

func TestExplainTellsAboutAField(t *testing.T) {
	want := `Field:    spec.network.podCIDR
Type:     string
Default:  10.42.0.0/16
Flag:     --network-pod-cidr
Variable: K1S_NETWORK_POD_CIDR

addresses of pods

Example:
  spec:
    network:
      podCIDR: 10.42.0.0/16
`
	for _, name := range []string{"network.podCIDR", "spec.network.podCIDR", "network-pod-cidr", "K1S_NETWORK_POD_CIDR"} {
		if out, _, err := run(t, nil, "", "", "explain", name); err != nil || out != want {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	out, _, err := run(t, nil, "", "", "explain", "components.kube-proxy.args")
	if err != nil || !strings.Contains(out, "spec.components.<name>.args") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestExplainListsSections(t *testing.T) {
	out, _, err := run(t, nil, "", "", "explain", "log")
	want := `FIELD       TYPE    DEFAULT  MEANING
log                          k1s' own log
log.level   string  info     debug, info, warn or error
log.format  string  text     text or json
`
	if err != nil || out != want {
		t.Errorf("%v\n%s", err, out)
	}
	out, _, err = run(t, nil, "", "", "explain")
	if err != nil || strings.Count(out, "\n") != len(config.Fields())+1 {
		t.Errorf("%v\n%s", err, out)
	}
	out, _, err = run(t, nil, "", "", "explain", "-o", "json", "log.level")
	var fields []config.Field
	if err != nil || json.Unmarshal([]byte(out), &fields) != nil || len(fields) != 1 || len(fields[0].Enum) != 4 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestExplainNamesTheNearestField(t *testing.T) {
	for name, want := range map[string]string{
		"api.prot": "did you mean api.port?", "podCIDR": "did you mean network.podCIDR?", "xyzzy": "run: k1s config explain",
	} {
		_, _, err := run(t, nil, "", "", "explain", name)
		if hint, _ := errs.HintOf(err); !errs.Is(err, errs.NotFound) || hint != want {
			t.Errorf("%s: %v, hint %q, want %q", name, err, hint, want)
		}
	}
}

func TestUnknownOutputFormatsAreUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"print", "-o", "toml"}, {"explain", "-o", "toml"}} {
		if _, _, err := run(t, nil, "", "", args...); !errs.Is(err, errs.Usage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}
