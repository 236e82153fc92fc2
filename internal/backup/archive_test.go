package backup

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/errs"
)

var update = flag.Bool("update", false, "write the corpus of the fuzz test anew")

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// files are what the tests' archive holds.
func files(t testing.TB) map[string]string {
	t.Helper()
	var b bytes.Buffer
	w := dump.NewWriter(&b)
	for i := range 40 {
		if err := w.Add(dump.Record{Key: fmt.Sprintf("/registry/configmaps/default/%02d", i), Value: []byte("value")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(77); err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		Datastore: b.String(), "pki/ca.crt": "crt", "pki/ca.key": "key", "pki/sa.key": "sa", "pki/sa.pub": "pub", "pki/etcd/ca.crt": "x",
		"encryption/keys.json": "{}", "config/config.yaml": "spec: {}", "config/config.d/a.yaml": "", "manifests/app/deep ü.yaml": strings.Repeat("a", 300),
	}
}

// order is that of the parts.
var order = []string{"pki/ca.crt", "pki/ca.key", "pki/sa.key", "pki/sa.pub", "pki/etcd/ca.crt", "encryption/keys.json", "config/config.yaml", "config/config.d/a.yaml", "manifests/app/deep ü.yaml", Datastore}

func manifest(t testing.TB, all map[string]string) Manifest {
	t.Helper()
	m := Manifest{
		Format: Format, Name: "k1s-a-20261121T120000Z", At: noon, Cluster: "dev", Node: "a", CA: "c0ffee", K1s: "v0.1.0", Kubernetes: "v1.36.3",
		Store:    Store{Engine: "sqlite", Root: "/registry", Summary: dump.Summary{Keys: 40, Bytes: 40 * int64(len("/registry/configmaps/default/00value")), Revision: 77}},
		Settings: map[string]json.RawMessage{"spec.cluster.domain": json.RawMessage(`"cluster.local"`)},
	}
	for _, name := range order {
		p, err := Sum(name, strings.NewReader(all[name]))
		if err != nil {
			t.Fatal(err)
		}
		m.Parts = append(m.Parts, p)
	}
	return m
}

func archive(t testing.TB, l Lock) []byte {
	t.Helper()
	all := files(t)
	var b bytes.Buffer
	if err := Write(&b, manifest(t, all), func(p Part) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(all[p.Name])), nil }, l); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// verify reads all of an archive.
func verify(b []byte, k Key) (map[string][]byte, Manifest, error) {
	a, err := Open(bytes.NewReader(b), k)
	if err != nil {
		return nil, Manifest{}, err
	}
	defer a.Close()
	small, err := a.Verify()
	return small, a.Manifest, err
}

func TestWhatIsPutInComesOut(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		lock Lock
		key  Key
	}{
		"plain":      {},
		"passphrase": {Lock{Passphrase: "correct horse battery", work: 10}, Key{Passphrase: "correct horse battery"}},
		"recipient":  {Lock{Recipients: ParseRecipients([]byte("# ours\n\n" + id.Recipient().String() + "\n"))}, Key{Identities: []byte("# ours\n" + id.String() + "\n")}},
	} {
		t.Run(name, func(t *testing.T) {
			b := archive(t, c.lock)
			small, m, err := verify(b, c.key)
			if err != nil || len(m.Parts) != len(order) || m.Store.Revision != 77 || string(small["pki/ca.key"]) != "key" || len(small) != len(order)-2 {
				t.Errorf("%v, %+v, %q", err, m, small)
			}
			all, a := files(t), (*Reader)(nil)
			if a, err = Open(bytes.NewReader(b), c.key); err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if a.Encrypted == c.lock.None() {
				t.Errorf("encrypted: %t", a.Encrypted)
			}
			for i := 0; ; i++ {
				p, r, err := a.Next()
				if errors.Is(err, io.EOF) && i == len(order) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(r); err != nil || string(got) != all[p.Name] || p.Name != order[i] {
					t.Errorf("%s: %d bytes, %v", p.Name, len(got), err)
				}
			}
			if !c.lock.None() && (bytes.Contains(b, []byte("ca.key")) || bytes.Contains(b, []byte("manifest"))) {
				t.Error("names can be read")
			}
		})
	}
}

func TestAnArchiveThatCannotBeOpenedIsNotOpened(t *testing.T) {
	id, _ := age.GenerateX25519Identity()
	other, _ := age.GenerateX25519Identity()
	byPassphrase, forUs := archive(t, Lock{Passphrase: "correct horse battery", work: 10}), archive(t, Lock{Recipients: []string{id.Recipient().String()}})
	for name, c := range map[string]struct {
		b    []byte
		key  Key
		kind errs.Kind
		want string
	}{
		"without a key":           {byPassphrase, Key{}, errs.Denied, "is encrypted"},
		"wrong passphrase":        {byPassphrase, Key{Passphrase: "correct horse batterz"}, errs.Denied, "passphrase is wrong"},
		"a passphrase for a key":  {forUs, Key{Passphrase: "correct horse battery"}, errs.Denied, "for recipients"},
		"a key for a passphrase":  {byPassphrase, Key{Identities: []byte(id.String())}, errs.Denied, "with a passphrase"},
		"another key":             {forUs, Key{Identities: []byte(other.String())}, errs.Denied, "for others"},
		"no key in the file":      {forUs, Key{Identities: []byte("secret words")}, errs.Invalid, "no private key"},
		"its head is damaged":     {append([]byte(ageBegin), "-> nonsense"...), Key{Passphrase: "x"}, errs.Invalid, "damaged"},
		"more work than is right": {costly(t), Key{Passphrase: "x"}, errs.Invalid, "damaged"},
	} {
		_, _, err := verify(c.b, c.key)
		if !errs.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(fmt.Sprint(err), "secret words") || strings.Contains(fmt.Sprint(err), "batter") {
			t.Errorf("%s: the error tells the key: %v", name, err)
		}
	}
	for n := range forUs {
		if n%97 == 0 || n > len(forUs)-70 {
			if _, _, err := verify(forUs[:n], Key{Identities: []byte(id.String())}); !errs.Is(err, errs.Invalid) {
				t.Errorf("the first %d bytes of an encrypted one: %v", n, err)
			}
			changed := bytes.Clone(forUs)
			changed[n] ^= 1
			if _, _, err := verify(changed, Key{Identities: []byte(id.String())}); !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.Denied) {
				t.Errorf("byte %d of an encrypted one changed: %v", n, err)
			}
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s", Key{Passphrase: "secret words"}, Lock{Passphrase: "secret words"}, Lock{Passphrase: "secret words"}, Passphrase("secret words")); strings.Contains(s, "secret") {
		t.Errorf("a passphrase shows: %s", s)
	}
}

// costly is the head of an archive that asks for 4 GiB of memory before it can be told that the passphrase is wrong.
func costly(t *testing.T) []byte {
	t.Helper()
	b := archive(t, Lock{Passphrase: "correct horse battery", work: 10})
	head, rest, ok := bytes.Cut(b, []byte(fmt.Sprintf(" %d\n", 10)))
	if !ok {
		t.Fatal("no work factor in it")
	}
	return append(append(head, " 22\n"...), rest...)
}

func TestBadLocksAreRefused(t *testing.T) {
	for name, l := range map[string]Lock{
		"short":          {Passphrase: "hunter2"},
		"both":           {Passphrase: "correct horse battery", Recipients: []string{"age1"}},
		"no recipient":   {Recipients: []string{"age1nonsense"}},
		"a private key?": {Recipients: []string{"AGE-SECRET-KEY-1"}},
	} {
		if err := l.Check(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestPlainArchivesThatWereCutOffOrChangedAreRefused(t *testing.T) {
	b := archive(t, Lock{})
	for n := range b {
		if _, _, err := verify(b[:n], Key{}); !errs.Is(err, errs.Invalid) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
		changed := bytes.Clone(b)
		changed[n] ^= 0x10
		if small, m, err := verify(changed, Key{}); err == nil {
			// Bits that say nothing, as in the head of a frame, may change; the content may not.
			if string(small["pki/ca.key"]) != "key" || m.CA != "c0ffee" {
				t.Errorf("byte %d changed, and %q came out", n, small)
			}
		} else if !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.Denied) {
			t.Errorf("byte %d changed: %v", n, err)
		}
	}
	for name, c := range map[string]struct{ b, want string }{
		"nothing":          {"", "cut off"},
		"something else":   {"PK\x03\x04 a zip", "no backup"},
		"more behind it":   {string(b) + "and more of it", "damaged"},
		"two in one":       {string(b) + string(b), "goes on behind"},
		"a snapshot of db": {strings.Repeat("\x00", 4096), "no backup"},
	} {
		if _, _, err := verify([]byte(c.b), Key{}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("input/output error")
	if _, err := Open(io.MultiReader(bytes.NewReader(b[:20]), failing{broken}), Key{}); !errors.Is(err, broken) || errs.Is(err, errs.Invalid) {
		t.Errorf("a disk that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// entry is a file of a tar that somebody has made up.
type entry struct {
	tar.Header
	content string
}

// madeUp is a tar of a manifest and whatever follows.
func madeUp(t testing.TB, m any, entries ...entry) []byte {
	t.Helper()
	head, ok := m.(string)
	if !ok {
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		head = string(raw)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range append([]entry{{tar.Header{Name: manifestName}, head}}, entries...) {
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.content))
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// regular are all parts of an archive as they have to be.
func regular(t testing.TB) []entry {
	t.Helper()
	all := files(t)
	var out []entry
	for _, name := range order {
		out = append(out, entry{tar.Header{Name: name}, all[name]})
	}
	return out
}

// attacks are tars that nobody of us has made, and what is said about them.
func attacks(t testing.TB) map[string]struct {
	tar  []byte
	want string
} {
	t.Helper()
	m := func(change func(*Manifest)) Manifest {
		m := manifest(t, files(t))
		change(&m)
		return m
	}
	named := func(name string) []byte {
		return madeUp(t, m(func(m *Manifest) { m.Parts[5].Name = name }), regular(t)...)
	}
	as := func(h tar.Header) []byte {
		e := regular(t)
		h.Name = e[0].Name
		e[0] = entry{Header: h}
		return madeUp(t, m(func(*Manifest) {}), e...)
	}
	type a = struct {
		tar  []byte
		want string
	}
	huge := m(func(m *Manifest) { m.Parts[9].Bytes = math.MaxInt64; m.Parts[8].Bytes = 1 })
	moved := regular(t)
	moved[0], moved[1] = moved[1], moved[0]
	return map[string]a{
		"no manifest":                {madeUp(t, "no JSON"), "cannot be read"},
		"another format":             {madeUp(t, `{"format": 2, "k1s": "v9", "parts": "otherwise"}`), "format 2"},
		"no format":                  {madeUp(t, `{}`), "never was"},
		"no cluster":                 {madeUp(t, `{"format": 1}`), "which cluster"},
		"out of its directory":       {named("manifests/../../../etc/passwd"), "no file of a backup"},
		"from the root":              {named("/etc/passwd"), "no file of a backup"},
		"with backslashes":           {named(`config/..\..\x`), "no file of a backup"},
		"to a place of others":       {named("containerd/config.toml"), "no file of a backup"},
		"a directory":                {named("config/"), "no file of a backup"},
		"a part twice":               {named("pki/ca.crt"), "twice"},
		"a file that is a directory": {named("config/config.yaml/x"), "config/config.yaml"},
		"no keys":                    {madeUp(t, m(func(m *Manifest) { m.Parts = m.Parts[1:] }), regular(t)[1:]...), "pki/ca.crt"},
		"larger than any disk":       {madeUp(t, huge, regular(t)...), "larger than any disk"},
		"a key that is too large":    {madeUp(t, m(func(m *Manifest) { m.Parts[0].Bytes = MaxSmall + 1 }), regular(t)...), "cannot be"},
		"a size below nothing":       {madeUp(t, m(func(m *Manifest) { m.Parts[9].Bytes = -1 }), regular(t)...), "cannot be"},
		"no hash":                    {madeUp(t, m(func(m *Manifest) { m.Parts[9].SHA256 = "00" }), regular(t)...), "cannot be"},
		"another content":            {madeUp(t, m(func(m *Manifest) { m.Parts[1].SHA256 = m.Parts[2].SHA256 }), regular(t)...), "not the file that was written"},
		"a bomb":                     {madeUp(t, m(func(m *Manifest) { m.Parts[8].Bytes = 10 }), regular(t)...), "its manifest says 10"},
		"another order":              {madeUp(t, m(func(*Manifest) {}), moved...), "has to be"},
		"a file less":                {madeUp(t, m(func(*Manifest) {}), regular(t)[:9]...), "cut off"},
		"a file more":                {madeUp(t, m(func(*Manifest) {}), append(regular(t), entry{tar.Header{Name: "pki/x"}, "x"})...), "more files"},
		"a symbolic link":            {as(tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}), "has to be"},
		"a hard link":                {as(tar.Header{Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}), "has to be"},
		"a device":                   {as(tar.Header{Typeflag: tar.TypeChar, Devmajor: 1}), "has to be"},
		"a directory as file":        {as(tar.Header{Typeflag: tar.TypeDir}), "has to be"},
		"more than files have":       {as(tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}}), "the property"},
		"another datastore":          {madeUp(t, m(func(m *Manifest) { m.Store.Keys = 41 }), regular(t)...), "tells of 41 keys"},
	}
}

func TestArchivesThatSomebodyMadeUpAreRefused(t *testing.T) {
	for name, a := range attacks(t) {
		if _, _, err := verify(packed(t, a.tar), Key{}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), a.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := verify(packed(t, madeUp(t, manifest(t, files(t)), regular(t)...)), Key{}); err != nil {
		t.Errorf("one that is as it has to be: %v", err)
	}
	long := madeUp(t, `{"format":1,"left":["`+strings.Repeat("x", maxManifest)+`"]}`)
	if _, _, err := verify(packed(t, long), Key{}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a manifest without end: %v", err)
	}
	var far bytes.Buffer // asks for a window of 64 MiB
	w, err := zstd.NewWriter(&far, zstd.WithWindowSize(64<<20))
	if err == nil {
		_, err = w.Write([]byte(strings.Repeat("k1s", 1<<20)))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := verify(far.Bytes(), Key{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a window that takes all memory: %v", err)
	}
}

func TestAPartThatChangesWhileItIsWrittenIsFound(t *testing.T) {
	all := files(t)
	m := manifest(t, all)
	for name, content := range map[string]string{"another": "kez", "shorter": "k", "longer": "keys"} {
		err := Write(io.Discard, m, func(p Part) (io.ReadCloser, error) {
			if p.Name == "pki/ca.key" {
				return io.NopCloser(strings.NewReader(content)), nil
			}
			return io.NopCloser(strings.NewReader(all[p.Name])), nil
		}, Lock{})
		if err == nil || !strings.Contains(err.Error(), "pki/ca.key") {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone := errors.New("gone")
	if err := Write(io.Discard, m, func(Part) (io.ReadCloser, error) { return nil, gone }, Lock{}); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

// corpus keeps what the fuzz test begins with in testdata/fuzz, as go test reads it.
func corpus(t *testing.T) string { t.Helper(); return filepath.Join("testdata", "fuzz", "FuzzArchive") }

func TestTheCorpusHasEveryAttack(t *testing.T) {
	all := attacks(t)
	if *update {
		if err := os.MkdirAll(corpus(t), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, a := range all {
		file := filepath.Join(corpus(t), strings.NewReplacer(" ", "-", "'", "").Replace(name))
		if *update {
			if err := os.WriteFile(file, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", packed(t, a.tar)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(file); err != nil { // go test reads it
			t.Errorf("%v; run: go test ./internal/backup -update", err)
		}
	}
}

// FuzzArchive: whatever a tar holds, it is refused in so many words, or it is what its manifest says.
func FuzzArchive(f *testing.F) {
	f.Add(madeUp(f, manifest(f, files(f)), regular(f)...))
	for _, a := range attacks(f) {
		f.Add(a.tar)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, raw := range [][]byte{packed(t, b), b} {
			a, err := Open(bytes.NewReader(raw), Key{})
			if err == nil {
				var n int64
				for err == nil {
					var p Part
					var r io.Reader
					if p, r, err = a.Next(); err == nil {
						if !filepath.IsLocal(p.Name) {
							t.Errorf("it leaves its directory: %q", p.Name)
						}
						var read int64
						read, err = io.Copy(io.Discard, r)
						if n += read; read > p.Bytes {
							t.Errorf("%q has %d bytes, and should have %d", p.Name, read, p.Bytes)
						}
					}
				}
				if errors.Is(err, io.EOF) && n == a.Manifest.Bytes() {
					err = nil
				}
				a.Close()
			}
			if err != nil && !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.Denied) {
				t.Errorf("of another kind: %v", err)
			}
		}
	})
}
