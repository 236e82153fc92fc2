// Package etcdcare is what the embedded etcd needs to be kept well: which snapshots there are and which of them may go, what
// is to be done about a full or a holey database, and how a snapshot is restored, as a state machine. It decides and
// touches nothing. The daemon asks it and acts, through etcd's own API (internal/etcdapi) or, where that takes etcd's
// libraries or S3, through the program of internal/applets/etcdcare, to which it gives a Job.
package etcdcare

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/version"
)

// Kind says why a snapshot is there.
type Kind string

// The kinds.
const (
	Scheduled Kind = "scheduled" // by the clock; retention is for these
	Manual    Kind = "manual"    // somebody asked for it
	// Archived is a whole data directory that a restore has put aside. It can be restored like a snapshot.
	Archived Kind = "archive"
)

// Snapshot is what is known of one. It stands as JSON in a file beside it, and beside its copy in S3.
type Snapshot struct {
	Name string    `json:"name"`
	Kind Kind      `json:"kind"`
	Node string    `json:"node,omitempty"` // that took it
	At   time.Time `json:"at"`
	// Bytes is the size of the file, SHA256 its hash in hexadecimal.
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
	// Revision of the last write in it, and how many entries, old ones included, it has.
	Revision   int64  `json:"revision,omitempty"`
	Keys       int    `json:"keys,omitempty"`
	K1s        string `json:"k1s,omitempty"`
	Kubernetes string `json:"kubernetes,omitempty"`
	Etcd       string `json:"etcd,omitempty"`
	// ClusterID is etcd's, in hexadecimal. A restore changes it; what stays the same for a cluster is CA, the SHA-256 of
	// the public key of its certificate authority, in hexadecimal.
	ClusterID string `json:"clusterID,omitempty"`
	CA        string `json:"ca,omitempty"`
	// SecretKeys names the keys that Secrets in it may be encrypted with. The keys are in no snapshot.
	SecretKeys []string `json:"secretKeys,omitempty"`
}

// State tells whether a snapshot can be used.
type State string

// The states.
const (
	Complete State = "complete"
	// Unfinished is one whose writing broke off, or goes on now.
	Unfinished State = "unfinished"
	Corrupt    State = "corrupt"
	// Bare is one without what is known of it, e.g. of etcdctl.
	Bare State = "bare"
)

// Entry is a snapshot at a place.
type Entry struct {
	Snapshot
	// Where is its file, or s3://BUCKET/OBJECT.
	Where string `json:"where"`
	State State  `json:"state"`
	// Problem is why it is not complete.
	Problem string `json:"problem,omitempty"`
}

// S3 tells that it is not on this machine.
func (e Entry) S3() bool { return strings.HasPrefix(e.Where, S3Scheme) }

// S3Scheme begins the places of snapshots in S3.
const S3Scheme = "s3://"

// The ends of file names. A snapshot appears, complete, under its name: what is known of it is written before.
const (
	FileEnd = ".db"   // as etcd's own tools write it, its SHA-256 at the end included
	MetaEnd = ".json" // a Snapshot
	PartEnd = ".part" // behind FileEnd, while it is written
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9._]{0,99}$`)

// CheckName refuses what cannot be the name of a snapshot everywhere.
func CheckName(name string) error {
	switch {
	case !validName.MatchString(name):
		return errs.New(errs.Usage, "%q is no name of a snapshot: it has up to 100 letters, digits, “-”, “_” and “.”, and begins with a letter or digit", name)
	case strings.HasSuffix(name, FileEnd), strings.HasSuffix(name, MetaEnd), strings.HasSuffix(name, PartEnd):
		return errs.New(errs.Usage, "%q is no name of a snapshot: leave the ending out", name)
	}
	return nil
}

// NewName is the name of a snapshot that nobody has named.
func NewName(k Kind, node string, at time.Time) string {
	return fmt.Sprintf("%s-%s-%s", k, node, at.UTC().Format("20060102T150405Z"))
}

// Sort orders snapshots, the newest first.
func Sort(all []Entry) {
	slices.SortStableFunc(all, func(a, b Entry) int {
		if c := b.At.Compare(a.At); c != 0 {
			return c
		}
		return strings.Compare(a.Where, b.Where)
	})
}

// Find is the snapshot that is meant by a name, or by its place. Where several have the name, one on this machine is taken before
// one in S3, and one that can be used before one that cannot.
func Find(all []Entry, what string) (Entry, error) {
	var found []Entry
	for _, e := range all {
		if e.Where == what {
			return e, nil
		}
		if e.Name == what {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		return Entry{}, errs.Hint(errs.New(errs.NotFound, "there is no snapshot %q", what), "see: k1s etcd snapshot ls")
	}
	rank := func(e Entry) int {
		r := 0
		if e.State != Complete {
			r = 2
		}
		if e.S3() {
			r++
		}
		return r
	}
	slices.SortStableFunc(found, func(a, b Entry) int { return rank(a) - rank(b) })
	return found[0], nil
}

// unfinishedFor is after which time one whose writing has not ended is taken for interrupted by retention.
const unfinishedFor = 24 * time.Hour

// KeepArchives is how many data directories that restores have put aside are kept.
const KeepArchives = 2

// Expired are the snapshots that may go: of those that the node itself has taken by schedule all but the newest keep at each
// place, with 0 none. What cannot be used counts for nothing, so it never takes the place of one that can; it goes when it
// is older than all that are kept. What somebody asked for stays, unless manual is set.
func Expired(all []Entry, node string, keep int, manual bool, now time.Time) []Entry {
	sorted := slices.Clone(all)
	Sort(sorted)
	good := map[string]int{} // by place and kind
	var out []Entry
	for _, e := range sorted {
		counted := e.Kind == Scheduled || manual && e.Kind == Manual
		most := keep
		if e.Kind == Archived {
			counted, most = true, KeepArchives
		}
		place := fmt.Sprint(e.S3(), " ", e.Kind)
		switch {
		case e.State == Unfinished && e.Node == "" && !e.S3() && now.Sub(e.At) > unfinishedFor: // nothing is known yet of one that is begun
			out = append(out, e)
		case e.Node != node && e.Kind != Archived:
		case e.State == Unfinished:
			if now.Sub(e.At) > unfinishedFor {
				out = append(out, e)
			}
		case !counted || most <= 0:
		case e.State == Complete && good[place] < most:
			good[place]++
		case e.State == Complete || e.State == Corrupt && good[place] >= most:
			out = append(out, e)
		}
	}
	return out
}

// Here is what a snapshot is compared with before it is restored.
type Here struct {
	CA         string
	Kubernetes string
	// SecretKeys are the names of the keys that are here.
	SecretKeys []string
}

// Unfit says why a snapshot should not be restored here; nil when nothing speaks against it.
func (s Snapshot) Unfit(h Here) []string {
	var why []string
	switch {
	case s.CA == "":
		why = append(why, "nothing is known of the cluster it was taken from")
	case s.CA != h.CA:
		why = append(why, "it was taken from another cluster: certificates, service account tokens and encrypted Secrets in it are not of this one")
	}
	var gone []string
	for _, k := range s.SecretKeys {
		if !slices.Contains(h.SecretKeys, k) {
			gone = append(gone, k)
		}
	}
	if len(gone) > 0 && len(gone) == len(s.SecretKeys) {
		why = append(why, fmt.Sprintf("its Secrets are encrypted with %s, which this server does not have: no Secret in it could be read", strings.Join(gone, ", ")))
	}
	if version.Newer(s.Kubernetes, h.Kubernetes) {
		why = append(why, fmt.Sprintf("it was taken with Kubernetes %s, which is newer than %s here", s.Kubernetes, h.Kubernetes))
	}
	return why
}

// Due is when the next snapshot by schedule is to be taken. after is the schedule, which gives the zero time when there is
// none, last when one was begun, or since when there is a schedule: what was missed while nothing ran is due at once, once.
// One that failed is tried again, unless its next time comes first.
func Due(after func(time.Time) time.Time, last time.Time, failed bool, again time.Duration) time.Time {
	next := after(last)
	if next.IsZero() {
		return next
	}
	if retry := last.Add(again); failed && retry.Before(next) {
		return retry
	}
	return next
}

// ArchiveMeta is the file with a Snapshot in a data directory that was put aside.
const ArchiveMeta = "k1s.json"

// MarshalSnapshot is what is known of one as its file keeps it.
func MarshalSnapshot(s Snapshot) ([]byte, error) {
	b, err := json.MarshalIndent(s, "", "  ")
	return append(b, '\n'), err
}

// memberSuffix is the length of what a server's name is followed by in that of its member, see NodeOf.
const memberSuffix = 8

// NodeOf is the node that a member is on. The first server's member has the node's name; others have it with a dash and eight
// random hexadecimal digits behind it, since one may be removed and join again. A first server may be called like that; who can
// tries both.
func NodeOf(member string) string {
	i := strings.LastIndexByte(member, '-')
	if i <= 0 || len(member)-i-1 != memberSuffix || strings.Trim(member[i+1:], "0123456789abcdef") != "" {
		return member
	}
	return member[:i]
}
