package migration

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// Entry is a key's content.
type Entry struct {
	Sum    [sha256.Size]byte // of the value
	Size   int               // of the value, in bytes
	Leased bool              // it goes by itself after a time
	// Revision is that of its last change, where the entry was read.
	Revision int64
}

// NewEntry is that of a value.
func NewEntry(value []byte, leased bool, revision int64) Entry {
	return Entry{Sum: sha256.Sum256(value), Size: len(value), Leased: leased, Revision: revision}
}

// Contents of a datastore, by key.
type Contents map[string]Entry

// Row is what one kind of objects amounts to in both datastores. What has a lease is not part of the hashes: it may go
// at any time.
type Row struct {
	Prefix  string `json:"prefix"`
	Keys    int    `json:"keys"`
	Bytes   int64  `json:"bytes"` // keys and values
	Leased  int    `json:"leased,omitempty"`
	Source  string `json:"sourceHash"`
	Target  string `json:"targetHash"`
	Missing int    `json:"missing,omitempty"` // in the target
	Differs int    `json:"differs,omitempty"`
	Extra   int    `json:"extra,omitempty"` // in the target only
}

// Equal tells that the target has what the source has.
func (r Row) Equal() bool {
	return r.Missing == 0 && r.Differs == 0 && r.Extra == 0 && r.Source == r.Target
}

// Result of a move.
type Result struct {
	Rows           []Row `json:"rows"`
	Keys           int   `json:"keys"`
	Bytes          int64 `json:"bytes"`
	Late           int   `json:"late"` // keys written or deleted while the API was stopped
	SourceRevision int64 `json:"sourceRevision"`
	TargetRevision int64 `json:"targetRevision"`
}

// Prefix of a key that its kind of objects shares: /registry/pods, /registry/apps.example.com/things for others.
func Prefix(root, key string) string {
	rest, ok := strings.CutPrefix(key, root+"/")
	if !ok {
		return key
	}
	first, rest, _ := strings.Cut(rest, "/")
	if strings.Contains(first, ".") {
		second, _, _ := strings.Cut(rest, "/")
		return root + "/" + first + "/" + second
	}
	return root + "/" + first
}

// Compare puts two datastores beside each other, a row for each prefix below root, sorted. A key with a lease that the
// target does not have any more has gone there in its time, so it is not missing.
func Compare(root string, source, target Contents) []Row {
	rows := map[string]*Row{}
	row := func(key string) *Row {
		p := Prefix(root, key)
		if rows[p] == nil {
			rows[p] = &Row{Prefix: p}
		}
		return rows[p]
	}
	for key, e := range source {
		r := row(key)
		r.Keys++
		r.Bytes += int64(len(key) + e.Size)
		got, there := target[key]
		switch {
		case e.Leased && !there:
			r.Leased++
		case !there:
			r.Missing++
		default:
			if e.Leased {
				r.Leased++
			}
			if got.Sum != e.Sum || got.Leased != e.Leased {
				r.Differs++
			}
		}
	}
	for key := range target {
		if _, there := source[key]; !there {
			row(key).Extra++
		}
	}
	of := func(all Contents) map[string]string {
		sums := map[string]string{}
		keys := map[string][]string{}
		for key, e := range all {
			if !e.Leased {
				p := Prefix(root, key)
				keys[p] = append(keys[p], key)
			}
		}
		for p, list := range keys {
			slices.Sort(list)
			sums[p] = digest(list, all)
		}
		return sums
	}
	before, after := of(source), of(target)
	out := make([]Row, 0, len(rows))
	for _, p := range slices.Sorted(maps.Keys(rows)) {
		r := rows[p]
		r.Source, r.Target = before[p], after[p]
		out = append(out, *r)
	}
	return out
}

// digest is one hash of keys and values, in which neither can pass for the other.
func digest(sorted []string, all Contents) string {
	h := sha256.New()
	var length [8]byte
	for _, key := range sorted {
		binary.BigEndian.PutUint64(length[:], uint64(len(key)))
		h.Write(length[:])
		h.Write([]byte(key))
		e := all[key]
		h.Write(e.Sum[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Verify is the result of rows, and an error that names what differs.
func Verify(rows []Row) (Result, error) {
	r := Result{Rows: rows}
	var bad []string
	for _, row := range rows {
		r.Keys += row.Keys
		r.Bytes += row.Bytes
		if !row.Equal() {
			bad = append(bad, row.Prefix)
		}
	}
	if len(bad) > 0 {
		return r, errs.Hint(errs.New(errs.Failure, "the target does not have what the source has, in %s", strings.Join(bad, ", ")),
			"does somebody else write to the target? Nothing was changed; run the command again")
	}
	return r, nil
}
