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
	// unknownRate is more writes a second than a cluster of this kind makes; it is for when the old data is gone.
	unknownRate  = 1000
	unknownLeast = 10_000_000
	unknownMost  = 1_000_000_000 // what etcd's documentation advises
)

// Target is the revision a restored datastore begins behind: no client has seen a later one. old is the last of the data it
// replaces, 0 where that cannot be read; then what the age of the snapshot allows for is taken.
func Target(snapshot, old int64, age time.Duration) int64 {
	if old > 0 {
		return max(snapshot, old) + knownMargin
	}
	return snapshot + min(max(int64(age/time.Second)*unknownRate, unknownLeast), unknownMost)
}
