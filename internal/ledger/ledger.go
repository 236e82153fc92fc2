// Package ledger records what k1s made or changed on a machine outside its own directories, so that
// `k1s reset` can undo exactly that, also after a crash, and a test can show that nothing is left. It
// records and lists; undoing is the business of whoever knows the kind of thing. Used by the daemon, the
// cluster providers and reset.
//
// The rule for writers: Add before making the thing, Remove after it is gone. So an entry may name
// something that is not there, but nothing of ours is ever without an entry.
package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
)

// Kind of thing.
type Kind string

// The kinds. Name identifies a thing within its kind.
const (
	Link       Kind = "link"       // network interface; Name is its name
	NFTTable   Kind = "nft-table"  // Name is "family table", e.g. "ip kube-proxy"
	Route      Kind = "route"      // Name is the destination, e.g. "10.42.1.0/24"
	Cgroup     Kind = "cgroup"     // Name is the path below the cgroup file system
	Mount      Kind = "mount"      // Name is the mount point
	NetNS      Kind = "netns"      // Name is the file it is held by
	Kubeconfig Kind = "kubeconfig" // Name is "file#context"
	Sysctl     Kind = "sysctl"     // Name is the key, Old the value before
	File       Kind = "file"       // a file or directory outside our own; Name is its path
)

// Entry is one thing on the machine.
type Entry struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	// Attrs is what undoing needs besides the name, e.g. the network namespace a link lives in.
	Attrs map[string]string `json:"attrs,omitempty"`
	// Old is the value before the first change, for kinds that change something instead of making it.
	Old     string    `json:"old,omitempty"`
	Created time.Time `json:"created"`
}

// String is the entry as a person reads it.
func (e Entry) String() string { return string(e.Kind) + " " + e.Name }

func (e Entry) same(k Kind, name string) bool { return e.Kind == k && e.Name == name }

// Ledger is one ledger file. All methods may be called at the same time, also by several processes.
type Ledger struct {
	path string
	now  func() time.Time
}

// Open names the file; it is made by the first Add.
func Open(path string) *Ledger { return &Ledger{path: path, now: time.Now} }

type document struct {
	APIVersion string  `json:"apiVersion"`
	Entries    []Entry `json:"entries"`
}

const apiVersion = "k1s.io/ledger/v1"

// Add records things that are about to be made. What is recorded already gets the new Attrs but keeps
// its first Old and Created, because Old is what the machine was like before us. When Add returns nil
// the record is on disk.
func (l *Ledger) Add(ctx context.Context, entries ...Entry) error {
	return l.edit(ctx, func(have []Entry) []Entry {
		for _, e := range entries {
			i := slices.IndexFunc(have, func(h Entry) bool { return h.same(e.Kind, e.Name) })
			if i >= 0 {
				have[i].Attrs = e.Attrs
				continue
			}
			if e.Created.IsZero() {
				e.Created = l.now().UTC().Truncate(time.Second)
			}
			have = append(have, e)
		}
		return have
	})
}

// Remove forgets a thing that is gone from the machine; forgetting what is not recorded is success.
func (l *Ledger) Remove(ctx context.Context, kind Kind, name string) error {
	if _, err := os.Stat(l.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return l.edit(ctx, func(have []Entry) []Entry {
		return slices.DeleteFunc(have, func(h Entry) bool { return h.same(kind, name) })
	})
}

// List returns what is recorded, oldest first: undo it in reverse. Without a file there is nothing.
func (l *Ledger) List(context.Context) ([]Entry, error) { return l.read() }

func (l *Ledger) edit(ctx context.Context, change func([]Entry) []Entry) error {
	if err := os.MkdirAll(filepath.Dir(l.path), 0o755); err != nil {
		return fmt.Errorf("making the ledger's directory: %w", err)
	}
	unlock, err := durable.Lock(ctx, l.path+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	old, err := l.read()
	if err != nil {
		return err
	}
	entries := change(slices.Clone(old))
	if slices.EqualFunc(old, entries, equal) {
		return nil // no write: Adds at every start cost nothing
	}
	b, err := json.MarshalIndent(document{APIVersion: apiVersion, Entries: entries}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the ledger: %w", err)
	}
	return durable.WriteFile(l.path, append(b, '\n'), 0o644)
}

func equal(a, b Entry) bool {
	return a.Kind == b.Kind && a.Name == b.Name && a.Old == b.Old && a.Created.Equal(b.Created) && maps.Equal(a.Attrs, b.Attrs)
}

func (l *Ledger) read() ([]Entry, error) {
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", err)
	}
	var doc document
	if err := json.Unmarshal(b, &doc); err != nil {
		line := 1
		var syn *json.SyntaxError
		if errors.As(err, &syn) {
			line += bytes.Count(b[:min(int(syn.Offset), len(b))], []byte("\n"))
		}
		return nil, errs.Hint(fmt.Errorf("reading the ledger %s:%d: %w", l.path, line, err),
			"it lists what k1s made on this machine; restore it from a backup, or move it away and clean up by hand")
	}
	if doc.APIVersion != apiVersion {
		return nil, errs.Hint(fmt.Errorf("reading the ledger %q: it has version %q, this program knows %q", l.path, doc.APIVersion, apiVersion),
			"use the k1s that wrote it")
	}
	return doc.Entries, nil
}
