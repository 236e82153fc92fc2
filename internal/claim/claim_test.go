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

func of(t *testing.T, file []byte, server string) Ours {
	t.Helper()
	c, err := Of(file, nil, server, now)
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
		pins             []Ours
	}{
		{"nobody's", nil, nil, ours, Create, "", []Ours{of(t, ours, "")}},
		{"ours", of(t, ours, "server-0").Marshal(), nil, ours, Leave, "", []Ours{of(t, ours, "")}},
		{"somebody else's", of(t, theirs, "other-0").Marshal(), nil, ours, "", "which other-0 has founded on 2026-11-21 09:00:00 UTC", nil},
		{"of a cluster that is older than claims, ours", nil, published(ours), ours, Create, "", []Ours{of(t, ours, "")}},
		{"of a cluster that is older than claims, another", nil, published(theirs), ours, "", "the state of another cluster", nil},
		{"ours, with a new CA", of(t, ours, "server-0").Marshal(), nil, both, Update, "", []Ours{of(t, next, ""), of(t, ours, "")}},
		{"ours, by a server that has the old CA only", of(t, both, "server-0").Marshal(), nil, ours, Leave, "", []Ours{of(t, next, ""), of(t, ours, "")}},
		{"ours, by a server that has the new CA only", of(t, both, "server-0").Marshal(), nil, next, Leave, "", []Ours{of(t, next, ""), of(t, ours, "")}},
		{"damaged", []byte("{"), nil, ours, "", "cannot be read", nil},
		{"empty", []byte("{}"), nil, ours, "", "cannot be read", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			deed, is, err := Decide(tt.found, tt.published, of(t, tt.caFile, "server-1"))
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
		if c, err := Of([]byte(file), nil, "server-0", now); err == nil {
			t.Errorf("%q claims %v", file, c)
		}
	}
}

func TestClustersWithPrefixesOfTheirOwnHaveClaimsOfTheirOwn(t *testing.T) {
	if Key("/registry") == Key("/other") || strings.HasPrefix(Key("/registry"), "/registry/") {
		t.Errorf("%s and %s", Key("/registry"), Key("/other"))
	}
}

func TestADatabaseOfBeforeTheCAWasReplacedIsOurs(t *testing.T) {
	first, second, third, other := ca(t), ca(t), ca(t), ca(t)
	ours, err := Of(third, slices.Concat(first, second), "server-1", now)
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string][]byte{"the first": first, "the second": second} {
		deed, is, err := Decide(of(t, file, "server-0").Marshal(), nil, ours)
		if want := append(slices.Clone(ours.Pins), of(t, file, "").Pins...); err != nil || deed != Update || !slices.Equal(is.Pins, want) || is.Server != "server-0" {
			t.Errorf("%s: %q %+v, %v", name, deed, is, err)
		}
		if deed, is, err := Decide(nil, append([]byte("k8s\x00ca.crt\x12\xff"), file...), ours); err != nil || deed != Create || !slices.Equal(is.Pins, of(t, third, "").Pins) {
			t.Errorf("%s, published: %q %+v, %v", name, deed, is, err)
		}
	}
	var foreign *Foreign
	if _, _, err := Decide(of(t, other, "other-0").Marshal(), nil, ours); !errors.As(err, &foreign) {
		t.Errorf("another cluster's: %v", err)
	}
	if _, err := Of(third, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "server-1", now); err == nil {
		t.Error("what the cluster had cannot be read, and nobody is told")
	}
}

func TestOnlyACAThatCanBeReadSaysThatADatabaseIsForeign(t *testing.T) {
	ours, theirs := ca(t), ca(t)
	inJSON := func(file []byte, end string) []byte {
		return []byte(`{"kind":"ConfigMap","data":{"ca.crt":"` + strings.ReplaceAll(string(file), "\n", end) + `"}}`)
	}
	inProtobuf := func(file []byte) []byte {
		return slices.Concat([]byte("k8s\x00\n\x06ca.crt\x12\xff"), file, []byte("\x1a\x00"))
	}
	crlf := func(file []byte) []byte { return []byte(strings.ReplaceAll(string(file), "\n", "\r\n")) }
	commented := func(file []byte) []byte { return append([]byte("# the CA of some cluster\n"), file...) }
	for name, tt := range map[string]struct {
		published []byte
		foreign   bool
		unsure    bool
	}{
		"nothing":                       {nil, false, false},
		"JSON, ours":                    {inJSON(ours, `\n`), false, false},
		"JSON, theirs":                  {inJSON(theirs, `\n`), true, false},
		"JSON with CRLF, ours":          {inJSON(ours, `\r\n`), false, false},
		"CRLF, ours":                    {inProtobuf(crlf(ours)), false, false},
		"CRLF, theirs":                  {inProtobuf(crlf(theirs)), true, false},
		"with a comment, ours":          {inProtobuf(commented(ours)), false, false},
		"a bundle with ours":            {inProtobuf(slices.Concat(theirs, commented(ours))), false, false},
		"a bundle without":              {inProtobuf(slices.Concat(theirs, ca(t))), true, false},
		"encrypted":                     {[]byte("k8s:enc:secretbox:v1:k:\x00\x01\xff"), false, true},
		"cut off":                       {inProtobuf(theirs[:len(theirs)/2]), false, true},
		"cut off, and then another one": {inProtobuf(slices.Concat(ours[:40], theirs)), true, false},
		"empty":                         {[]byte{}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			var foreign *Foreign
			deed, _, err := Decide(nil, tt.published, of(t, ours, "server-0"))
			if errors.As(err, &foreign) != tt.foreign || (err == nil) != (deed == Create) {
				t.Errorf("%q, %v", deed, err)
			}
			if got := Unsure(nil, tt.published, of(t, ours, "server-0")); got != tt.unsure {
				t.Errorf("unsure: %v", got)
			}
		})
	}
}
