package etcdcare

import (
	"time"

	"k1s.io/k1s/internal/restore"
)

// Restore of a snapshot.
type Restore = restore.State[Entry]

// Title implements restore.Source.
func (e Entry) Title() string { return e.Name }

// Margins of revisions, see Target.
const (
	// knownMargin is for writes that are in the log of an etcd that was killed and not yet in its database: it puts at
	// most 10,000 together, or those of 100 ms.
	knownMargin = 100_000
	// unknownRate is more writes a second than a cluster of this kind makes.
	unknownRate  = 1000
	unknownLeast = 10_000_000
)

// Target is the revision a restored datastore begins behind: no client has seen a later one. old is the last of the data it
// replaces, 0 where there is none or it cannot be read. That data may not be the latest there was: it may have been left by a move, be
// that of a server that was behind, or come from the same snapshot as what ran elsewhere since. So what the age of the snapshot allows
// for counts always, and has no bound: of two restores of one snapshot the later begins behind all that the earlier one can have reached.
func Target(snapshot, old int64, age time.Duration) int64 {
	return max(old+knownMargin, snapshot+unknownLeast+max(int64(age/time.Second), 0)*unknownRate)
}
