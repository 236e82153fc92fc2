package daemon

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/encryption"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
)

// preparing is a daemon that is about to write what an API server starts with.
func preparing(t *testing.T, provider string) (*Daemon, component.Input) {
	t.Helper()
	p := paths.Paths{Data: t.TempDir()}
	in := component.Input{Paths: p}
	in.Config.Spec.Datastore.Endpoint = "sqlite"
	in.Config.Spec.Secrets.Encryption = provider
	return &Daemon{in: in, board: health.NewBoard(time.Now)}, in
}

func providers(t *testing.T, p paths.Paths) string {
	t.Helper()
	b, err := os.ReadFile(p.EncryptionConfig())
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(p.EncryptionConfig())
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	return string(b)
}

func TestANodeThatIsNotAskedWritesNoKey(t *testing.T) {
	d, in := preparing(t, "")
	if err := d.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if got := providers(t, in.Paths); got != string(encryption.State{}.File()) {
		t.Errorf("configuration %s", got)
	}
	if _, err := os.Stat(in.Paths.EncryptionKeys()); !os.IsNotExist(err) {
		t.Errorf("there is a file of keys: %v", err)
	}
	if p := d.encryptionProblems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
}

func TestOnlyANewClusterStartsWithANewKey(t *testing.T) {
	d, in := preparing(t, "secretbox")
	if err := d.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	first := providers(t, in.Paths)
	if !strings.Contains(first, "secretbox") {
		t.Errorf("a new cluster: %s", first)
	}
	if err := d.prepareEncryption(t.Context(), in); err != nil || providers(t, in.Paths) != first {
		t.Errorf("the next start has another key (%v)", err)
	}
	d, in = preparing(t, "secretbox")
	if err := os.MkdirAll(in.Paths.DB(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.Paths.DB(), "state.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.prepareEncryption(t.Context(), in); err != nil || strings.Contains(providers(t, in.Paths), "secretbox") {
		t.Errorf("a cluster with a database got a key before its Secrets were read (%v)", err)
	}
}

func TestLostOrDamagedKeysAreNeverReplaced(t *testing.T) {
	for name, damage := range map[string]func(string) error{
		"cut":   func(f string) error { return os.Truncate(f, 100) },
		"empty": func(f string) error { return os.Truncate(f, 0) },
		"gone":  os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			d, in := preparing(t, "aescbc")
			if err := d.prepareEncryption(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			before := providers(t, in.Paths)
			if err := damage(in.Paths.EncryptionKeys()); err != nil {
				t.Fatal(err)
			}
			if p := d.encryptionProblems(); len(p) != 1 || p[0].Code != health.EncryptionKeys {
				t.Errorf("while it runs: %v", p)
			}
			err := d.prepareEncryption(t.Context(), in)
			if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(hint, "backup") {
				t.Errorf("at the next start: %v, hint %q", err, hint)
			}
			if providers(t, in.Paths) != before {
				t.Error("the API server's copy was replaced")
			}
		})
	}
}

func TestAChangedCopyIsWrittenAgainAtTheNextStart(t *testing.T) {
	d, in := preparing(t, "aescbc")
	if err := d.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	before := providers(t, in.Paths)
	if err := os.WriteFile(in.Paths.EncryptionConfig(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := d.encryptionProblems(); len(p) != 1 || !strings.Contains(p[0].Remedy, "restart k1s") {
		t.Errorf("problems: %v", p)
	}
	if err := d.prepareEncryption(t.Context(), in); err != nil || providers(t, in.Paths) != before {
		t.Errorf("it is not as before (%v)", err)
	}
}

func TestWhatIsShownNamesKeysAndHoldsNone(t *testing.T) {
	k, err := encryption.NewKey(encryption.Secretbox, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := encryption.State{Key: k}.Begin(encryption.Disable, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	e := wireEncryption(secretsState{state: s, done: 3, all: 7, note: "waits"}, component.Input{})
	if e.Enabled || len(e.Keys) != 2 || e.Keys[0].Name != k.Name || e.Change.Stage != "adding" || e.Change.All != 7 || e.Change.Note != "waits" {
		t.Errorf("%+v", e)
	}
}
