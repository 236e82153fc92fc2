package claim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

func ca(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: now, NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func of(t *testing.T, file []byte, server string) Claim {
	t.Helper()
	c, err := Of(file, server, now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestADatabaseIsOneClusters(t *testing.T) {
	ours, theirs, next := ca(t), ca(t), ca(t)
	both := slices.Concat(next, ours)
	published := func(file []byte) []byte {
		return slices.Concat([]byte("k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12 ca.crt\x12\xff"), file, []byte("\x1a\x00"))
	}
	for _, tt := range []struct {
		name             string
		found, published []byte
		caFile           []byte
		want             Deed
		says             string // of the error
		pins             []Claim
	}{
		{"nobody's", nil, nil, ours, Create, "", []Claim{of(t, ours, "")}},
		{"ours", of(t, ours, "server-0").Marshal(), nil, ours, Leave, "", []Claim{of(t, ours, "")}},
		{"somebody else's", of(t, theirs, "other-0").Marshal(), nil, ours, "", "which other-0 has founded on 2026-11-21 09:00:00 UTC", nil},
		{"of a cluster that is older than claims, ours", nil, published(ours), ours, Create, "", []Claim{of(t, ours, "")}},
		{"of a cluster that is older than claims, another", nil, published(theirs), ours, "", "the state of another cluster", nil},
		{"ours, with a new CA", of(t, ours, "server-0").Marshal(), nil, both, Update, "", []Claim{of(t, next, ""), of(t, ours, "")}},
		{"ours, by a server that has the old CA only", of(t, both, "server-0").Marshal(), nil, ours, Leave, "", []Claim{of(t, next, ""), of(t, ours, "")}},
		{"ours, by a server that has the new CA only", of(t, both, "server-0").Marshal(), nil, next, Leave, "", []Claim{of(t, next, ""), of(t, ours, "")}},
		{"damaged", []byte("{"), nil, ours, "", "cannot be read", nil},
		{"empty", []byte("{}"), nil, ours, "", "cannot be read", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			deed, is, err := Decide(tt.found, tt.published, tt.caFile, of(t, tt.caFile, "server-1"))
			if deed != tt.want || (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("%q, %v; want %q, %q", deed, err, tt.want, tt.says)
			}
			var foreign *Foreign
			if strings.Contains(tt.says, "cluster") && !errors.As(err, &foreign) {
				t.Errorf("%T", err)
			}
			var pins []string
			for _, c := range tt.pins {
				pins = append(pins, c.Pins...)
			}
			if err == nil && !slices.Equal(is.Pins, pins) {
				t.Errorf("pins %v, want %v", is.Pins, pins)
			}
			if tt.want == Leave && is.Server != "server-0" {
				t.Errorf("its founder is %q", is.Server)
			}
		})
	}
}

func TestAFileWithoutACertificateClaimsNothing(t *testing.T) {
	for _, file := range []string{"", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if c, err := Of([]byte(file), "server-0", now); err == nil {
			t.Errorf("%q claims %v", file, c)
		}
	}
}

func TestClustersWithPrefixesOfTheirOwnHaveClaimsOfTheirOwn(t *testing.T) {
	if Key("/registry") == Key("/other") || strings.HasPrefix(Key("/registry"), "/registry/") {
		t.Errorf("%s and %s", Key("/registry"), Key("/other"))
	}
}
