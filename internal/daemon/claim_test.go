package daemon

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/claim"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

func founder(t *testing.T, endpoint config.DSN) (*Daemon, component.Input) {
	t.Helper()
	dir := t.TempDir()
	p := paths.Paths{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run"), Config: filepath.Join(dir, "etc")}
	for _, d := range []string{p.Data, p.Run, p.Config, p.PKI(), filepath.Dir(p.Claim())} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	in := component.Input{Paths: p}
	in.Config.Spec.Datastore.Endpoint = endpoint
	return &Daemon{in: in, log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now), stop: func(error) {}}, in
}

const postgresURL config.DSN = "postgres://k1s:tops3cret@db:5432/k1s"

// starts is what a start does until the API server tells whose the database is.
func starts(t *testing.T, d *Daemon, in component.Input, joins bool) {
	t.Helper()
	if err := d.prepareClaim(in, joins); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{pki.CertFile(in.Paths, pki.CA), pki.KeyFile(in.Paths, pki.CA)} {
		if _, err := os.Stat(f); err == nil {
			continue
		}
		if err := os.WriteFile(f, []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func founding(t *testing.T, in component.Input) bool {
	t.Helper()
	s, err := readPeers(in.Paths)
	if err != nil {
		t.Fatal(err)
	}
	return s.Founding
}

func TestWhoIsSecondInADatabaseGivesUpWhatItMade(t *testing.T) {
	d, in := founder(t, postgresURL)
	starts(t, d, in, false)
	if !founding(t, in) {
		t.Fatal("a first start with a database of others founds nothing")
	}
	d.refuse(in, &claim.Foreign{By: claim.Claim{Server: "other-0", Since: time.Now()}})
	err := d.refusal(in.Paths)
	hint, _ := errs.HintOf(err)
	if !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "other-0") || !strings.Contains(hint, "k1s server --server") || !strings.Contains(hint, "nothing of this start is left") {
		t.Errorf("%v, hint %q", err, hint)
	}
	if strings.Contains(err.Error()+hint, "tops3cret") {
		t.Error("the error tells the password")
	}
	for _, f := range []string{in.Paths.PKI(), in.Paths.Server()} {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", f, err)
		}
	}
}

func TestAClusterThatIsFoundedGivesUpNothing(t *testing.T) {
	d, in := founder(t, postgresURL)
	starts(t, d, in, false)
	// The daemon was killed before it was told, and starts again: it founds still.
	starts(t, d, in, false)
	if !founding(t, in) {
		t.Fatal("a killed founder does not know any more that it founds")
	}
	if err := d.founded(in.Paths); err != nil || founding(t, in) {
		t.Fatalf("founded: %v", err)
	}
	// Now its configuration names somebody else's.
	starts(t, d, in, false)
	if founding(t, in) {
		t.Fatal("a cluster is founded twice")
	}
	d.refuse(in, &claim.Foreign{})
	err := d.refusal(in.Paths)
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(hint, "correct spec.datastore.endpoint") {
		t.Errorf("%v, hint %q", err, hint)
	}
	if _, err := os.Stat(pki.KeyFile(in.Paths, pki.CA)); err != nil {
		t.Errorf("the CA of a cluster is gone: %v", err)
	}
}

func TestOnlyAFirstServerOnADatabaseOfOthersFounds(t *testing.T) {
	for name, tc := range map[string]struct {
		endpoint config.DSN
		joins    bool
	}{
		"SQLite":            {"sqlite", false},
		"an etcd of ours":   {"etcd", false},
		"one that joins":    {postgresURL, true},
		"one that has a CA": {postgresURL, false},
		"a key of the user": {postgresURL, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, in := founder(t, tc.endpoint)
			if name == "one that has a CA" {
				if err := os.WriteFile(pki.CertFile(in.Paths, pki.CA), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := pki.ReadCA(in.Paths); errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			users := in.Paths.PKI("etcd", "ca.key")
			if name == "a key of the user" {
				if err := errors.Join(os.MkdirAll(filepath.Dir(users), 0o700), os.WriteFile(users, []byte("x"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.prepareClaim(in, tc.joins); err != nil || founding(t, in) {
				t.Errorf("it founds (%v)", err)
			}
			if name == "a key of the user" {
				d.refuse(in, &claim.Foreign{})
				if err := d.refusal(in.Paths); err == nil {
					t.Error("it goes on")
				}
				if _, err := os.Stat(users); err != nil {
					t.Errorf("the user's key is gone: %v", err)
				}
			}
		})
	}
}

func TestWhatAnEarlierAPIServerWasRefusedForIsNotAboutThisStart(t *testing.T) {
	d, in := founder(t, postgresURL)
	for _, r := range []claim.Report{{Ours: true}, {Foreign: &claim.Claim{Server: "other-0"}}} {
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(in.Paths.Claim(), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.prepareClaim(in, false); err != nil {
			t.Fatal(err)
		}
		// One that was adopted has told that it is ours, and does not tell again.
		if got, err := readClaim(in.Paths); err != nil || (got != nil) != r.Ours {
			t.Errorf("after %+v: %+v, %v", r, got, err)
		}
	}
}

func TestWhatIsToldOfAnotherDatabaseIsNotBelieved(t *testing.T) {
	d, in := founder(t, postgresURL)
	in.Datastore = "now"
	d.in = in
	stopped := make(chan error, 1)
	d.stop = func(err error) { stopped <- err }
	tell := func(r claim.Report) {
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(in.Paths.Claim(), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		tell(claim.Report{Foreign: &claim.Claim{Server: "other-0"}, Of: "before"})
		go func() {
			d.watchClaim(t.Context())
			close(ended)
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(stopped) > 0 {
			t.Fatal("it ends for what an API server told of the database of before")
		}
		for _, r := range []claim.Report{{Half: "/k1s.io/migration/registry", Of: "before"}, {Half: "/k1s.io/migration/registry", Of: "now"}, {Ours: true, Of: "now"}} {
			tell(r)
			time.Sleep(time.Minute)
			synctest.Wait()
			if len(stopped) > 0 {
				t.Fatalf("it ends for %+v", r)
			}
			said := d.board.List()
			if want := r.Half != "" && r.Of == "now"; want != (len(said) == 1) {
				t.Errorf("%+v: %+v", r, said)
			} else if want && (said[0].Code != health.DatabaseHalf || said[0].Component != "kube-apiserver" || !strings.Contains(said[0].Text, r.Half) || !strings.Contains(said[0].Remedy, "k1s backup restore")) {
				t.Errorf("it says %+v", said[0])
			}
		}
		tell(claim.Report{Foreign: &claim.Claim{Server: "other-0"}, Of: "now"})
		<-ended
	})
	if len(stopped) != 1 || !strings.Contains(d.refused.Error(), "other-0") {
		t.Errorf("refused: %v", d.refused)
	}
}
