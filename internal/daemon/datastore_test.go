package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/supervise"
)

func TestTheURLOfADatastoreComesFromItsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "datastore")
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    config.DSN
		err     string
	}{
		"as it should be":  {"postgres://k1s:hunter2@h/db\n", 0o600, "postgres://k1s:hunter2@h/db", ""},
		"of a group":       {"nats://k1s:hunter2@h:4222", 0o640, "nats://k1s:hunter2@h:4222", ""},
		"for everybody":    {"postgres://k1s:hunter2@h/db", 0o644, "", "can be read by everybody"},
		"empty":            {" \n", 0o600, "", "is empty"},
		"an unknown one":   {"redis://k1s:hunter2@h/db", 0o600, "", "redis:// is no datastore"},
		"two lines":        {"postgres://k1s:hunter2@h/db\nhunter2", 0o600, "", "a line break"},
		"one with a slash": {"postgres://k1s:hunter/2@h/db", 0o600, "", "is no valid URL"},
		"not there":        {"", 0, "", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(file)
			if c.mode != 0 {
				if err := os.WriteFile(file, []byte(c.content), c.mode); err != nil {
					t.Fatal(err)
				}
			}
			conf := config.Default()
			conf.Spec.Datastore.EndpointFile = file
			err := resolveDatastore(&conf)
			if c.err == "" {
				if err != nil || conf.Spec.Datastore.Endpoint != c.want {
					t.Errorf("%v, %q", err, conf.Spec.Datastore.Endpoint.Reveal())
				}
				return
			}
			hint, _ := errs.HintOf(err)
			if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.err) || hint == "" || strings.Contains(err.Error()+hint, "hunter") {
				t.Errorf("%v (%s), want %q", err, hint, c.err)
			}
		})
	}
}

func TestWhatADatabaseIsReachedWithIsIdentifiedWithoutTellingIt(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.crt")
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	id := func(d config.Datastore) string {
		t.Helper()
		id, err := datastoreID(d)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(ca, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := config.Datastore{Endpoint: "postgres://k1s:hunter2@h/db", CAFile: ca}
	write(certificate)
	first := id(d)
	write(append([]byte("# renewed\n"), certificate...))
	second := id(d)
	d.Endpoint = "postgres://k1s:hunter3@h/db"
	third := id(d)
	if first == second || second == third || first == third || strings.Contains(first+second+third, "hunter") {
		t.Errorf("%q, with another authority %q, with another password %q", first, second, third)
	}
	if got := id(config.Datastore{Endpoint: "sqlite"}); got != "" {
		t.Errorf("of sqlite: %q", got)
	}
	for what, change := range map[string]func() error{
		"has no certificate": func() error { return os.WriteFile(ca, []byte("nothing"), 0o600) },
		"no such file":       func() error { return os.Remove(ca) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := datastoreID(d); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), what) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
		write([]byte("nothing"))
	}
}

func TestTheURLIsHandedToKineInAFileForRootAndTakenAwayAgain(t *testing.T) {
	dir := t.TempDir()
	in := component.Input{Paths: paths.Paths{Run: filepath.Join(dir, "run")}, Config: config.Default()}
	in.Config.Spec.Datastore.Endpoint = "postgres://k1s:hunter2@h/db"
	if err := writeDatastore(in); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(in.Paths.Datastore())
	st, serr := os.Stat(in.Paths.Datastore())
	if err != nil || serr != nil || string(raw) != "postgres://k1s:hunter2@h/db\n" || st.Mode().Perm() != 0o600 {
		t.Errorf("%q %v %v %v", raw, st, err, serr)
	}
	in.Config.Spec.Datastore.Endpoint = "sqlite"
	if err := writeDatastore(in); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(in.Paths.Datastore()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestWhatAnEtcdOfOthersAnswersIsToldInPlainWords(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"health":"true"}`) })
	secure := httptest.NewTLSServer(ok)
	defer secure.Close()
	trusted := x509.NewCertPool()
	trusted.AddCert(secure.Certificate())
	wantsClients := httptest.NewUnstartedServer(ok)
	wantsClients.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	wantsClients.StartTLS()
	defer wantsClients.Close()
	plain := httptest.NewServer(ok)
	defer plain.Close()
	ill := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	defer ill.Close()
	gone := httptest.NewServer(ok)
	gone.Close()
	for name, c := range map[string]struct {
		url  string
		tls  *tls.Config
		code health.Code
		says string
	}{
		"well":                   {secure.URL, &tls.Config{RootCAs: trusted}, "", ""},
		"an unknown authority":   {secure.URL, nil, health.DatabaseRefuses, "not trusted"},
		"no client certificate":  {wantsClients.URL, &tls.Config{RootCAs: trusted}, health.DatabaseRefuses, "our certificate"},
		"no TLS":                 {strings.Replace(plain.URL, "http:", "https:", 1), nil, health.DatabaseRefuses, "does not speak TLS"},
		"no leader":              {ill.URL, nil, health.DatabaseAway, "503"},
		"nobody there":           {gone.URL, nil, health.DatabaseAway, "connection refused"},
		"a name that is unknown": {"http://nobody.invalid:1", nil, health.DatabaseAway, "nobody.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: c.tls, DisableKeepAlives: true}}
			err := etcdHealth(t.Context(), client, c.url)
			if c.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatal("it is well")
			}
			if p := etcdProblem(err); p.Code != c.code || !strings.Contains(p.Text, c.says) || p.Remedy == "" || p.Component != "kube-apiserver" {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestAComponentThatWaitsForTheDatabaseSaysWhy(t *testing.T) {
	all := []supervise.Status{{Component: "kine", State: supervise.Starting, Reason: "dial unix"}, {Component: "kubelet", State: supervise.Starting}}
	reasons(all, []health.Problem{health.New(health.DatabaseAway, "it is away").Of("kine"), health.New(health.AddonFailed, "x").Of("kubelet")})
	if all[0].Reason != "it is away" || all[1].Reason != "" {
		t.Errorf("%+v", all)
	}
	all[0] = supervise.Status{Component: "kine", State: supervise.Ready}
	if reasons(all, []health.Problem{health.New(health.DatabaseAway, "it is away").Of("kine")}); all[0].Reason != "" {
		t.Errorf("%+v", all)
	}
}
