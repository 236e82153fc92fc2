package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

func ca(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func make1(t *testing.T) Token {
	t.Helper()
	tok, err := New(Agent, ca(t))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestATokenIsReadAsItWasWritten(t *testing.T) {
	tok := make1(t)
	got, err := Parse("  " + tok.Text() + "\n")
	if err != nil || got != tok {
		t.Errorf("got %#v, %v", got, err)
	}
	if other := make1(t); other.ID == tok.ID || other.Secret == tok.Secret {
		t.Error("two tokens are the same")
	}
}

func TestATokenThatWasCutOffAnywhereIsRefusedWithoutBeingRepeated(t *testing.T) {
	tok := make1(t)
	text := tok.Text()
	for n := range len(text) {
		_, err := Parse(text[:n])
		if !errs.Is(err, errs.Invalid) {
			t.Fatalf("the first %d characters: %v", n, err)
		}
		if strings.Contains(err.Error(), tok.Secret[:8]) {
			t.Fatalf("the secret is in the error: %v", err)
		}
	}
	for _, bad := range []string{text + "x", strings.Replace(text, ".agent.", ".admin.", 1), strings.Replace(text, "k1s1", "K10", 1), strings.Replace(text, tok.Secret, strings.Repeat("!", len(tok.Secret)), 1)} {
		if _, err := Parse(bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v", err)
		}
	}
}

func TestTheSecretIsInNoMessage(t *testing.T) {
	tok := make1(t)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", tok)
	for _, s := range []string{fmt.Sprint(tok), fmt.Sprintf("%v %+v %s", tok, tok, tok), log.String()} {
		if strings.Contains(s, tok.Secret) {
			t.Errorf("%q", s)
		}
	}
	rec := tok.Record("", time.Now(), time.Time{})
	for k, v := range rec.Data() {
		if strings.Contains(string(v), tok.Secret) {
			t.Errorf("the cluster keeps the secret in %s", k)
		}
	}
}

func TestARecordAllowsItsTokenItsRoleAndItsTimeOnly(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tok := make1(t)
	rec, err := FromData(tok.ID, tok.Record("for a test", now, now.Add(time.Hour)).Data())
	if err != nil {
		t.Fatal(err)
	}
	if rec.Description != "for a test" || !rec.Created.Equal(now) || !rec.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("kept as %+v", rec)
	}
	if err := rec.Allows(tok, Agent, now); err != nil {
		t.Errorf("its own: %v", err)
	}
	wrong, raised := tok, tok
	wrong.Secret = make1(t).Secret
	raised.Role = Server
	for name, c := range map[string]struct {
		tok  Token
		role Role
		at   time.Time
		want string
	}{
		"another secret":        {wrong, Agent, now, "wrong"},
		"a role somebody wrote": {raised, Server, now, "wrong"},
		"another role":          {tok, Server, now, "not as server"},
		"too late":              {tok, Agent, now.Add(time.Hour), "expired"},
	} {
		if err := rec.Allows(c.tok, c.role, c.at); !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	forever := tok.Record("", now, time.Time{})
	if again, err := FromData(tok.ID, forever.Data()); err != nil || again.Expired(now.Add(1e6*time.Hour)) {
		t.Errorf("one that does not expire: %+v, %v", again, err)
	}
}

func TestADamagedRecordAllowsNothing(t *testing.T) {
	tok := make1(t)
	for _, field := range []string{fieldRole, fieldHash, fieldCreated, fieldExpires} {
		d := tok.Record("", time.Now(), time.Now().Add(time.Hour)).Data()
		d[field] = []byte("?")
		if _, err := FromData(tok.ID, d); !errs.Is(err, errs.Invalid) {
			t.Errorf("with a damaged %s: %v", field, err)
		}
	}
}
