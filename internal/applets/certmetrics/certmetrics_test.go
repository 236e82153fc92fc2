package certmetrics

import (
	"net/netip"
	"os"
	"testing"

	"k8s.io/component-base/metrics"

	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

func TestMetricsTellWhenEachCertificateEnds(t *testing.T) {
	dir := t.TempDir()
	p := paths.Paths{Data: dir, Run: dir + "/run", Config: dir + "/etc"}
	if _, err := pki.Ensure(t.Context(), pki.Request{Paths: p, NodeName: "n", NodeIP: netip.MustParseAddr("192.0.2.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.PKI("damaged.crt"), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := metrics.NewKubeRegistry()
	r.CustomMustRegister(newCollector(p))
	families, err := r.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "k1s_certificate_expiration_timestamp_seconds" {
		t.Fatalf("%v, %v", families, err)
	}
	type told struct {
		authority string
		ends      float64
	}
	got := map[string]told{}
	for _, m := range families[0].GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		got[labels["name"]] = told{labels["authority"], m.GetGauge().GetValue()}
	}
	all, err := pki.List(p)
	if err != nil || len(all) < 10 || len(got) != len(all)-1 {
		t.Fatalf("%d certificates, told of are %v, %v", len(all), got, err)
	}
	for _, i := range all {
		want := told{map[bool]string{true: "true", false: "false"}[i.Authority], float64(i.NotAfter.Unix())}
		if i.Name == "damaged" {
			want = told{}
		}
		if got[i.Name] != want {
			t.Errorf("%s: %+v, want %+v", i.Name, got[i.Name], want)
		}
	}
}
