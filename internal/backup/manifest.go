// Package backup is the archive that holds the whole state of a cluster: what it is made of, how it is written, and how it is read by
// somebody who does not trust it. It touches no disk: whoever writes one says where the parts are, and whoever reads one where they
// go. The daemon makes and restores them, the command line shows them.
//
// An archive is a tar, compressed with zstd, and encrypted with age (age-encryption.org/v1) where that is asked for. Its first
// file is manifest.json, a Manifest; the others follow as the manifest names them, and nothing else does.
package backup

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/version"
)

// Format of archives that this program writes. It reads no greater one.
const Format = 1

// Names of parts. What is below a directory may be whatever is there.
const (
	Datastore  = "datastore" // see package dump
	PKI        = "pki/"
	Encryption = "encryption/"
	Config     = "config/"
	Manifests  = "manifests/"
)

// manifestName is that of the first file.
const manifestName = "manifest.json"

// Bounds of what an archive may ask for, beside the room on the disk.
const (
	maxManifest = 16 << 20
	maxParts    = 65536
	maxName     = 1024
	maxRevision = math.MaxInt64 / 4 // beyond it there is no room to begin behind
	// MaxSmall is how large a part may be that is neither the datastore nor a manifest of the user.
	MaxSmall = 4 << 20
	// MaxSmallSum is how large all of these may be, because they are held in memory.
	MaxSmallSum = 64 << 20
)

// Manifest says what an archive holds.
type Manifest struct {
	Format int       `json:"format"`
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	// Cluster is the name that its configuration gives it, Node the server that made the archive, Servers those there were.
	Cluster string   `json:"cluster"`
	Node    string   `json:"node"`
	Servers []string `json:"servers,omitempty"`
	// Addresses are where the API of all of them was, as host:port, that of Node included.
	Addresses []string `json:"addresses,omitempty"`
	// CA identifies the public key of the cluster's certificate authority, in the form tokens have it (token.Pin).
	CA         string `json:"ca"`
	K1s        string `json:"k1s"`
	Kubernetes string `json:"kubernetes"`
	// Store is the datastore as it was.
	Store Store `json:"datastore"`
	// SecretKeys names the keys that Secrets may be encrypted with; they are in the archive.
	SecretKeys []string `json:"secretKeys,omitempty"`
	// Settings are those all nodes of the cluster have to agree about, by path ("spec.network.podCIDR").
	Settings map[string]json.RawMessage `json:"settings"`
	// Left names what is not in the archive, for a person.
	Left  []string `json:"left,omitempty"`
	Parts []Part   `json:"parts"`
}

// Store is a datastore when it was backed up.
type Store struct {
	Engine string `json:"engine"`
	// Root is below what the API server keeps its objects.
	Root string `json:"root"`
	dump.Summary
}

// Part is a file of an archive.
type Part struct {
	Name   string `json:"name"` // with slashes
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // in hexadecimal
}

// Origin is what is kept of an archive that was restored.
type Origin struct {
	Name string    `json:"name"`
	File string    `json:"file"`
	At   time.Time `json:"at"`
	Node string    `json:"node"`
	CA   string    `json:"ca"`
	// Revision the archive's datastore had.
	Revision int64 `json:"revision"`
}

// Title implements restore.Source.
func (o Origin) Title() string { return o.Name }

// Origin is what is kept of it.
func (m Manifest) Origin(file string) Origin {
	return Origin{Name: m.Name, File: file, At: m.At, Node: m.Node, CA: m.CA, Revision: m.Store.Revision}
}

// ID tells archives apart, whatever they are called.
func (m Manifest) ID() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s %s", m.CA, m.Name, m.At.UTC().Format(time.RFC3339Nano))
	for _, p := range m.Parts {
		fmt.Fprintf(h, " %q %s", p.Name, p.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Bytes of all parts.
func (m Manifest) Bytes() (n int64) {
	for _, p := range m.Parts {
		n += p.Bytes
	}
	return n
}

// Has tells that a part of that name is there, or with a directory's name one below it.
func (m Manifest) Has(name string) bool {
	return slices.ContainsFunc(m.Parts, func(p Part) bool {
		return p.Name == name || strings.HasSuffix(name, "/") && strings.HasPrefix(p.Name, name)
	})
}

// required are the parts without which nothing can be restored.
var required = []string{Datastore, PKI + "ca.crt", PKI + "ca.key", PKI + "sa.key", PKI + "sa.pub"}

// Check refuses a manifest that names what no archive of ours has. Its errors are of kind errs.Invalid.
func (m Manifest) Check() error {
	if m.Format > Format {
		return errs.Hint(errs.New(errs.Invalid, "the archive has format %d, and this k1s (%s) knows up to %d; it was made by k1s %s", m.Format, version.K1s, Format, m.K1s),
			"restore it with that version of k1s, or a newer one")
	}
	if m.Format < 1 {
		return errs.New(errs.Invalid, "the archive's manifest has format %d, which there never was", m.Format)
	}
	if len(m.Parts) > maxParts {
		return errs.New(errs.Invalid, "the archive's manifest names %d files, and at most %d are possible", len(m.Parts), maxParts)
	}
	if m.CA == "" {
		return errs.New(errs.Invalid, "the archive's manifest does not say which cluster it is of")
	}
	if m.Store.Revision < 0 || m.Store.Revision > maxRevision {
		return errs.New(errs.Invalid, "the archive's manifest says that its datastore had the revision %d, which none has", m.Store.Revision)
	}
	seen, total, small := map[string]bool{}, int64(0), int64(0)
	for _, p := range m.Parts {
		if err := p.check(); err != nil {
			return err
		}
		// One that is a file and a directory could not be written either.
		for dir := p.Name; dir != "."; dir = path.Dir(dir) {
			if seen[dir] {
				return errs.New(errs.Invalid, "the archive's manifest names %q twice", dir)
			}
		}
		seen[p.Name] = true
		if total > math.MaxInt64-p.Bytes {
			return errs.New(errs.Invalid, "the archive's files are larger than any disk")
		}
		total += p.Bytes
		if p.small() {
			small += p.Bytes
		}
	}
	if small > MaxSmallSum {
		return errs.New(errs.Invalid, "the archive's keys and configuration have %d bytes, and at most %d are possible", small, MaxSmallSum)
	}
	for p := range seen {
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if seen[dir] {
				return errs.New(errs.Invalid, "the archive's manifest names %q as a file and as a directory", dir)
			}
		}
	}
	for _, name := range required {
		if !seen[name] {
			return errs.New(errs.Invalid, "the archive has no %q, without which no cluster can be restored", name)
		}
	}
	return nil
}

// small tells that it is neither the datastore nor a manifest of the user.
func (p Part) small() bool { return p.Name != Datastore && !strings.HasPrefix(p.Name, Manifests) }

func (p Part) check() error {
	top, below, nested := strings.Cut(p.Name, "/")
	known := p.Name == Datastore || nested && below != "" && slices.Contains([]string{PKI, Encryption, Config, Manifests}, top+"/")
	if !known || !fs.ValidPath(p.Name) || len(p.Name) > maxName || strings.ContainsAny(p.Name, "\x00\\") {
		return errs.New(errs.Invalid, "the archive's manifest names %.100q, which is no file of a backup", p.Name)
	}
	sum, err := hex.DecodeString(p.SHA256)
	if err != nil || len(sum) != 32 || p.Bytes < 0 || p.small() && p.Bytes > MaxSmall {
		return errs.New(errs.Invalid, "what the archive's manifest says of %q cannot be: %d bytes, %.100q", p.Name, p.Bytes, p.SHA256)
	}
	return nil
}

// Here is what an archive is compared with before it is restored.
type Here struct {
	Kubernetes string
	// Root and Settings are those of the configuration the node will start with.
	Root     string
	Settings map[string]json.RawMessage
	// CAs are those of the cluster that is here now, as Manifest.CA names one: the present one first, then those it has had before. nil
	// for no cluster.
	CAs []string
}

// Unfit names, field by field, what keeps an archive from being restored here; nil when nothing does.
func (m Manifest) Unfit(h Here) []string {
	var why []string
	if version.Newer(m.Kubernetes, h.Kubernetes) {
		why = append(why, fmt.Sprintf("kubernetes: the backup is of %s, which is newer than %s here", m.Kubernetes, h.Kubernetes))
	}
	if m.Store.Root != h.Root {
		why = append(why, fmt.Sprintf("spec.components.kube-apiserver.args.etcd-prefix: the objects are below %s in the backup, and would be looked for below %s here", m.Store.Root, h.Root))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Settings)) {
		if ours, ok := h.Settings[name]; ok && compact(ours) != compact(m.Settings[name]) {
			why = append(why, fmt.Sprintf("%s: it is %s in the backup and %s here", name, m.Settings[name], ours))
		}
	}
	return why
}

// compact is JSON without the spaces a manifest has for people.
func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}

// Foreign tells that another cluster is here now. One whose CA was replaced since is the same.
func (m Manifest) Foreign(h Here) bool { return len(h.CAs) > 0 && !slices.Contains(h.CAs, m.CA) }

// Ends of file names.
const (
	FileEnd      = ".tar.zst"
	EncryptedEnd = ".age" // behind FileEnd
	// PartEnd is behind the name while an archive is written.
	PartEnd = ".part"
)

const nameTime = "20060102T150405Z"

// NewName is that of an archive nobody has named.
func NewName(node string, at time.Time) string {
	return "k1s-" + node + "-" + at.UTC().Format(nameTime)
}

// FileName is that of an archive's file.
func FileName(name string, encrypted bool) string {
	if encrypted {
		return name + FileEnd + EncryptedEnd
	}
	return name + FileEnd
}

// CheckName refuses what cannot be the name of an archive.
func CheckName(name string) error {
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r)) {
			return errs.New(errs.Usage, "%q is no name of a backup: it has letters, digits, “-”, “_” and “.”", name)
		}
	}
	if name == "" || len(name) > 100 || name[0] == '.' || name[0] == '-' || strings.HasSuffix(name, FileEnd) || strings.HasSuffix(name, EncryptedEnd) || strings.HasSuffix(name, PartEnd) {
		return errs.New(errs.Usage, "%q is no name of a backup: it has up to 100 characters, begins with a letter or digit, and the ending is left out", name)
	}
	return nil
}

// Entry is a file in a directory of archives.
type Entry struct {
	Name string    `json:"name"`
	File string    `json:"file"`
	At   time.Time `json:"at"`
	// Bytes is the size of the file.
	Bytes     int64 `json:"bytes"`
	Encrypted bool  `json:"encrypted,omitempty"`
	// Node made it, and nobody has named it. "" for one that somebody has named.
	Node string `json:"node,omitempty"`
	// Manifest is nil where it cannot be read, which it cannot without the key of an encrypted one; Problem says why else.
	Manifest *Manifest `json:"manifest,omitempty"`
	Problem  string    `json:"problem,omitempty"`
}

// ParseFile is what the name of a file tells of an archive; false for one that is none. modified is when the file was.
func ParseFile(file string, modified time.Time) (Entry, bool) {
	e := Entry{File: file, At: modified}
	name, encrypted := strings.CutSuffix(path.Base(file), EncryptedEnd)
	name, ok := strings.CutSuffix(name, FileEnd)
	e.Name, e.Encrypted = name, encrypted
	if !ok || CheckName(name) != nil {
		return e, false
	}
	if rest, ours := strings.CutPrefix(name, "k1s-"); ours {
		if i := strings.LastIndexByte(rest, '-'); i > 0 {
			if at, err := time.Parse(nameTime, rest[i+1:]); err == nil {
				e.Node, e.At = rest[:i], at
			}
		}
	}
	return e, true
}

// Sort orders archives, the newest first.
func Sort(all []Entry) {
	slices.SortStableFunc(all, func(a, b Entry) int { return cmp.Or(b.At.Compare(a.At), strings.Compare(a.File, b.File)) })
}

// Retention says which archives of a directory stay.
type Retention struct {
	// Keep so many, 0 for all.
	Keep int
	// Node has made them, of the cluster that has or had one of these CAs, as Manifest has both. Others stay.
	Node string
	CAs  []string
	// Made is the file of the one that has just been made. It stays, and is the first, whatever the clock said when the others were made.
	Made string
}

// Expired are the archives that may go: of those the node has made and nobody has named all but the newest. One whose beginning cannot be
// read never takes the place of one that can. Of an encrypted one the cluster is not known; it counts as the node's.
func (r Retention) Expired(all []Entry) []Entry {
	if r.Keep <= 0 || r.Node == "" {
		return nil
	}
	ours := slices.DeleteFunc(slices.Clone(all), func(e Entry) bool {
		return e.Node != r.Node || e.Manifest != nil && !slices.Contains(r.CAs, e.Manifest.CA)
	})
	Sort(ours)
	var out []Entry
	good := 0
	if slices.ContainsFunc(ours, func(e Entry) bool { return e.File == r.Made }) {
		good = 1
	}
	for _, e := range ours {
		switch {
		case e.File == r.Made:
		case good >= r.Keep:
			out = append(out, e)
		case e.Problem == "":
			good++
		}
	}
	return out
}
