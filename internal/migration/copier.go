package migration

import (
	"strings"
	"time"

	"k1s.io/k1s/internal/backup/dump"
)

// The daemon starts the program that copies (applet datastore-copy), writes a Job as one line to its standard input,
// reads Events, one a line, from its standard output, and writes the line Finish when nobody uses the source any more.
// The end of its input ends it.

// Finish asks the copier for the rest.
const Finish = "finish"

// MarkKey is where the ID of a Job stands in its target, for objects below a root such as /registry. It is outside of what is copied.
func MarkKey(root string) string { return "/k1s.io/migration" + root }

// restoring begins the ID of a Load. Those of moves are numbers.
const restoring = "restore-"

// RestoreID is the ID of the Load of an archive on a node: the same again goes on, and nobody else does.
func RestoreID(archive, node string) string { return restoring + archive + "-" + node }

// HalfRestored tells by the mark in a datastore that a backup is being restored to it, or that this has broken off: not all of the cluster is
// there, and whoever served it would delete what belongs to objects that are still to come.
func HalfRestored(mark string) bool { return strings.HasPrefix(mark, restoring) }

// Mode is what a copier is to do.
type Mode string

// The modes.
const (
	// Look counts what is in the source and in the target.
	Look Mode = "look"
	// Copy copies, tells that it has caught up, waits for Finish, copies the rest, and compares.
	Copy Mode = "copy"
	// Differ tells what the target, as it was left, does not have of the source.
	Differ Mode = "differ"
	// Pass leaves the target's contents and makes its revision greater than the source's.
	Pass Mode = "pass"
	// Dump writes the source, as it is at one revision, to a file.
	Dump Mode = "dump"
	// Settle looks at what the servers agree by in the target, and writes what is Wanted where nothing is decided. In the end it
	// takes the fence of an attempt that was given up out of the source.
	Settle Mode = "settle"
	// Load writes such a file to a target that is empty, or has what the same load left, compares it, and makes its revision greater than
	// any that somebody may know.
	Load Mode = "load"
)

// Job of a copier.
type Job struct {
	Mode Mode   `json:"mode"`
	ID   string `json:"id,omitempty"` // of the move, or a RestoreID; for the mark in the target
	Root string `json:"root"`         // of all keys, e.g. /registry
	// Live is the source while the API server uses it too, Source when nobody does.
	Live   Store `json:"live,omitzero"`
	Source Store `json:"source,omitzero"`
	Target Store `json:"target"`
	// Replace overwrites what is in the target.
	Replace bool `json:"replace,omitempty"`
	// File is the one to Dump into or to Load from, and Summary and At what is known of that.
	File    string       `json:"file,omitempty"`
	Summary dump.Summary `json:"summary,omitzero"`
	At      time.Time    `json:"at,omitzero"`
	// OldSQLite or OldEtcd is the file or the data directory of the datastore that is replaced on this machine.
	OldSQLite string `json:"oldSQLite,omitempty"`
	OldEtcd   string `json:"oldEtcd,omitempty"`
	// CA, PEM, is the cluster's where the target is a database of others, which then becomes this cluster's, in the name of Node; one
	// that is another cluster's is refused.
	CA []byte `json:"ca,omitempty"`
	// Had, PEM, are the CAs the cluster had before: a database that was taken in the name of one of them is this cluster's.
	Had  []byte `json:"had,omitempty"`
	Node string `json:"node,omitempty"`
	// Attempt is what several servers agree about, and Want what this one wants to be decided; Open begins it, "" only looks.
	Attempt string   `json:"attempt,omitempty"`
	Want    Decision `json:"want,omitempty"`
	// Fence is to be put into the source before the rest is copied, or to be taken out of it by Settle; nil for none.
	Fence *Fence `json:"fence,omitempty"`
}

// Store is how a datastore is reached. At most one of Kine and Etcd is set: then the copier runs it itself.
type Store struct {
	// Kine are kine's flags, without those that say where it serves.
	Kine []string `json:"kine,omitempty"`
	// Etcd is the configuration file of a single etcd, EtcdDir its data directory.
	Etcd    string `json:"etcd,omitempty"`
	EtcdDir string `json:"etcdDir,omitempty"`
	// Endpoints are where it answers.
	Endpoints []string `json:"endpoints"`
	CAFile    string   `json:"caFile,omitempty"`
	CertFile  string   `json:"certFile,omitempty"`
	KeyFile   string   `json:"keyFile,omitempty"`
	// ThroughKine tells that kine answers there: a lease is then its own time to live, in seconds, and nobody knows
	// what is left of it.
	ThroughKine bool `json:"throughKine,omitempty"`
}

// Event is what a copier tells; one field is set.
type Event struct {
	Progress *Progress     `json:"progress,omitempty"`
	Marked   bool          `json:"marked,omitempty"` // the target bears the ID
	CaughtUp bool          `json:"caughtUp,omitempty"`
	Seen     *Seen         `json:"seen,omitempty"`
	Result   *Result       `json:"result,omitempty"`
	Dumped   *dump.Summary `json:"dumped,omitempty"`
	Settled  *Register     `json:"settled,omitempty"`
	// Warning is what did not go well and is no reason to fail.
	Warning string `json:"warning,omitempty"`
}

// Progress of copying.
type Progress struct {
	Doing string `json:"doing"`
	Done  int64  `json:"done,omitempty"`
	All   int64  `json:"all,omitempty"`
}

// Seen is the answer to Look.
type Seen struct {
	Keys           int64 `json:"keys"`
	Bytes          int64 `json:"bytes"`
	Revision       int64 `json:"revision"`
	TargetKeys     int64 `json:"targetKeys"`
	TargetRevision int64 `json:"targetRevision"`
	// Resumes tells that the target holds what an earlier attempt of the same move left.
	Resumes bool `json:"resumes,omitempty"`
}
