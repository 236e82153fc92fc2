package flannel

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

var update = flag.Bool("update", false, "write golden files")

func TestConflistMatchesGolden(t *testing.T) {
	got := conflist(netip.MustParsePrefix("10.42.3.0/24"), 1450, "/var/lib/k1s/cni/state", "/run/k1s/network-policy.sock")
	file := filepath.Join("testdata", conflistName)
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestConflistIsReplacedOnlyWhenItDiffers(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		content string
		changed bool
	}{{"a", true}, {"a", false}, {"b", true}} {
		changed, err := writeConflist(dir, []byte(tc.content))
		if err != nil || changed != tc.changed {
			t.Errorf("writing %q: changed %t, err %v", tc.content, changed, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != conflistName {
		t.Errorf("directory holds %v, %v", entries, err)
	}
	if _, err := writeConflist(filepath.Join(dir, "absent"), nil); err == nil {
		t.Error("a directory that is not there is no error")
	}
}

func TestArgumentsAreChecked(t *testing.T) {
	good := []string{"--kubeconfig=k", "--node-name=n", "--pod-cidr=10.42.7.7/16", "--cni-conf-dir=c", "--cni-state-dir=s"}
	o, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if o.backend != hostGW || !o.ipMasq || o.podCIDR.String() != "10.42.0.0/16" {
		t.Errorf("defaults are %+v", o)
	}
	for want, args := range map[string][]string{
		"--backend":         append(good, "--backend=udp"),
		"--mtu":             append(good, "--mtu=100"),
		"--node-ip":         append(good, "--node-ip=::1"),
		"--pod-cidr":        append(good, "--pod-cidr=fd00::/64"),
		"unexpected":        append(good, "x"),
		"--node-name is":    good[:1],
		"not defined: -wat": append(good, "--wat"),
	} {
		if len(args) == 1 {
			args = append(args, "--pod-cidr=10.42.0.0/16")
		}
		if _, err := parse(args); err == nil || !strings.Contains(err.Error(), want) || !errs.Is(err, errs.Usage) {
			t.Errorf("%v gives %v, want a usage error with %q", args, err, want)
		}
	}
}
