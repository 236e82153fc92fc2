package etcdcare

import (
	"fmt"
	"time"

	"k1s.io/k1s/internal/health"
)

// Alarm of etcd.
type Alarm string

// The alarms there are.
const (
	NoSpace    Alarm = "NOSPACE" // the quota is used up: only reading and deleting is allowed
	Corruption Alarm = "CORRUPT" // members do not have the same data
)

// Member of the cluster, as it is known on this server.
type Member struct {
	ID       uint64   `json:"id,string"`
	Name     string   `json:"name"`
	Self     bool     `json:"self,omitempty"`
	Learner  bool     `json:"learner,omitempty"`
	Leader   bool     `json:"leader,omitempty"`
	PeerURLs []string `json:"peerURLs"`
	// Healthy tells that it answers.
	Healthy bool   `json:"healthy"`
	Problem string `json:"problem,omitempty"`
	// Unstarted tells that it was added, and has not told the others its name yet.
	Unstarted bool `json:"unstarted,omitempty"`
	// Linked tells of one that does not answer that etcd is connected with it all the same, or that whether it is cannot be found out.
	Linked bool `json:"linked,omitempty"`
	// Unsure tells that Linked could not be found out.
	Unsure bool `json:"unsure,omitempty"`
	// Received is how many bytes of it have been received since etcd was started, of one that does not answer; 0 for not known.
	Received uint64 `json:"-"`
	// Skew is how far its clock is ahead of this one's, to about a second; 0 where that is not known.
	Skew time.Duration `json:"skew,omitempty"`
}

// skewLimit is how far clocks may be apart. It is measured to about a second, and less does no harm.
const skewLimit = 5 * time.Second

// Facts are what is known of this server's member when something may be to be done.
type Facts struct {
	Now    time.Time
	ID     uint64
	Leader uint64 // 0: there is none
	Term   uint64 // of the election it was made leader in
	// Learner tells that this member has no vote yet.
	Learner bool
	// Bytes is the size of the file, InUse the part of it that is not free pages, Quota what it may grow to.
	Bytes, InUse, Quota int64
	Revision            int64
	// Alarms are by member; of one that has several, the worst.
	Alarms map[uint64]Alarm
	// Members are all, this one included; nil when they are not known.
	Members []Member
	// Free is what can still be written to the disk, 0 for not known.
	Free uint64
	// Writes a second since the last look; negative when not known.
	Writes float64
	// Tried is when this member was defragmented last, or should have been.
	Tried time.Time
	// Compacted is the revision up to which history was forgotten because of an alarm.
	Compacted int64
}

// Deed is what is to be done next.
type Deed string

// The deeds.
const (
	Nothing    Deed = ""
	Compact    Deed = "compact"     // forget the history, up to now
	Defragment Deed = "defragment"  // this member
	Disarm     Deed = "disarm"      // this member's NoSpace
	MoveLeader Deed = "move leader" // to another member, then look again
)

// What decides about defragmenting. etcd stops answering while it copies what is in use, so that bounds it; see
// docs/adr/0025 for the measurements.
const (
	payingBytes = 64 << 20        // less than this is not worth a pause
	payingShare = 0.5             // of the file that is free pages
	tightShare  = 0.8             // of the quota: from here on less pays
	tightPaying = 0.2             // of the file, then
	autoInUse   = 128 << 20       // more than this is not copied unasked: some 1.3 s
	restFor     = time.Hour       // between two that nobody asked for
	idleWrites  = 20.0            // a second, at most, for one that nobody asked for
	againAfter  = 2 * time.Minute // because of an alarm, when it gave back little
	paltry      = 0.05            // of the quota
	fewWrites   = 100             // revisions; forgetting so few gives back nothing worth another pause
	full        = 0.9             // of the quota: an alarm that is disarmed above this comes again
)

func share(part, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return float64(part) / float64(of)
}

// Next is what to do now, and why. It is asked again after each deed. One member is defragmented at a time, because all
// others have to be well and whoever does it holds a lock in etcd; the leader passes leadership on first.
func Next(f Facts) (Deed, string) {
	if f.Leader == 0 {
		return Nothing, "there is no leader"
	}
	for _, a := range f.Alarms {
		if a == Corruption {
			return Nothing, "data is damaged: nothing is to make it worse"
		}
	}
	if f.Alarms[f.ID] == NoSpace {
		return makeSpace(f)
	}
	if len(f.Alarms) > 0 {
		return Nothing, "another member has an alarm"
	}
	free := f.Bytes - f.InUse
	pays := free >= payingBytes && share(free, f.Bytes) >= payingShare
	tight := share(f.Bytes, f.Quota) >= tightShare && share(free, f.Bytes) >= tightPaying
	switch {
	case !pays && !tight:
		return Nothing, fmt.Sprintf("it does not pay: %s of %s are free", size(free), size(f.Bytes))
	case f.InUse > autoInUse && !tight:
		return Nothing, fmt.Sprintf("%s are in use, and copying more than %s is done when somebody asks for it only", size(f.InUse), size(autoInUse))
	case f.Now.Sub(f.Tried) < restFor:
		return Nothing, "it was done within the last hour"
	case f.Writes < 0 || f.Writes > idleWrites:
		return Nothing, "too much is written just now"
	}
	return defragment(f, fmt.Sprintf("%s of %s are free", size(free), size(f.Bytes)))
}

// makeSpace is the way out of NoSpace.
func makeSpace(f Facts) (Deed, string) {
	switch {
	case share(f.Bytes, f.Quota) < full:
		return Disarm, fmt.Sprintf("%s of %s are used", size(f.Bytes), size(f.Quota))
	case f.Revision-f.Compacted > fewWrites, f.Revision > f.Compacted && share(f.InUse, f.Quota) >= full:
		return Compact, "the quota is used up" // deleting is still allowed, so there may be a new revision at every look
	case share(f.InUse, f.Quota) >= full:
		return Nothing, fmt.Sprintf("%s of %s are in use: there is nothing to be forgotten", size(f.InUse), size(f.Quota))
	case f.Now.Sub(f.Tried) < againAfter && share(f.Bytes-f.InUse, f.Quota) < paltry:
		return Nothing, "it was done just now, and gives back little"
	}
	return defragment(f, "the quota is used up") // nothing can be written, so nobody is disturbed, however short a time ago the last one was
}

// defragment lets this member be defragmented when the others are well, and not while it leads them.
func defragment(f Facts, why string) (Deed, string) {
	if reason := Hindrance(f); reason != "" {
		return Nothing, reason
	}
	if f.Leader == f.ID && Successor(f.Members) != 0 {
		return MoveLeader, why
	}
	return Defragment, why
}

// Hindrance says why this member should not be stopped for a moment now; "" when it may. Where its quota is used up no member takes a
// write, so that nobody misses it: it does not wait for one that is away.
func Hindrance(f Facts) string {
	self := false
	for _, m := range f.Members {
		self = self || m.ID == f.ID
		switch {
		case m.ID == f.ID, f.Alarms[f.ID] == NoSpace:
		case m.Learner:
			return fmt.Sprintf("the member %s is being added", m.Name)
		case !m.Healthy:
			return fmt.Sprintf("the member %s does not answer, so this one is needed: %s", m.Name, m.Problem)
		}
	}
	switch {
	case !self:
		return "the members are not known"
	case f.Free > 0 && f.Free < uint64(f.InUse)+diskReserve:
		return fmt.Sprintf("a copy of %s does not fit on the disk, %s are free", size(f.InUse), size(int64(f.Free)))
	}
	return ""
}

// Successor is a member that can lead instead of this one; 0 for none.
func Successor(members []Member) uint64 {
	for _, m := range members {
		if !m.Self && !m.Learner && m.Healthy {
			return m.ID
		}
	}
	return 0
}

const (
	// diskReserve is the disk etcd needs to go on: it makes the next file of its log, of 64 MB, before the present one is full.
	diskReserve = 192 << 20
	// diskSpare more than that is wanted, beside a copy of the database.
	diskSpare = 512 << 20
)

// Problems are what is the matter with this server's member. Of one that does not answer, whose ID is 0, only the disk is known.
func Problems(f Facts) []health.Problem {
	const etcd = "etcd"
	var out []health.Problem
	if f.ID != 0 && f.Leader == 0 {
		out = append(out, health.New(health.EtcdNoLeader, "etcd has no leader, so nothing can be written; %s", membersText(f.Members)).Of(etcd))
	}
	for id, a := range f.Alarms {
		switch {
		case a == Corruption && id == 0:
			out = append(out, health.New(health.EtcdCorrupt, "etcd's members do not have the same data, and no majority of them has; it takes no writes").Of(etcd))
		case a == Corruption:
			out = append(out, health.New(health.EtcdCorrupt, "etcd's members do not have the same data: %s has other data than the majority; etcd takes no writes", MemberName(f.Members, id)).Of(etcd))
		case a != NoSpace:
			out = append(out, health.New(health.EtcdNoSpace, "etcd has the alarm %s, raised by %s", a, MemberName(f.Members, id)).Of(etcd))
		case id != f.ID:
			out = append(out, health.New(health.EtcdNoSpace, "etcd takes no writes: the quota of %s is used up", MemberName(f.Members, id)).Of(etcd))
		case share(f.InUse, f.Quota) >= full:
			out = append(out, health.New(health.EtcdNoSpace, "etcd takes no writes: %s of its quota of %s are in use, so forgetting old revisions does not help", size(f.InUse), size(f.Quota)).Of(etcd))
		case Hindrance(f) != "":
			out = append(out, health.New(health.EtcdNoSpace, "etcd takes no writes: its file of %s has used up the quota of %s, and k1s cannot make room: %s", size(f.Bytes), size(f.Quota), Hindrance(f)).Of(etcd))
		default:
			out = append(out, health.New(health.EtcdNoSpace, "etcd takes no writes: its file of %s has used up the quota of %s; k1s is making room", size(f.Bytes), size(f.Quota)).Of(etcd).
				Fix("nothing has to be done: it should be over in a minute"))
		}
	}
	for _, m := range f.Members {
		if d := m.Skew.Round(time.Second); m.Healthy && d.Abs() > skewLimit {
			where := "ahead of"
			if d < 0 {
				where = "behind"
			}
			out = append(out, health.New(health.ClockSkew, "the clock of %s is %s %s this server's", m.Name, d.Abs(), where).Of(etcd))
		}
	}
	if len(f.Alarms) == 0 && share(f.InUse, f.Quota) >= tightShare {
		out = append(out, health.New(health.EtcdNearlyFull, "%s of etcd's quota of %s are in use", size(f.InUse), size(f.Quota)).Of(etcd))
	}
	switch free := f.Free; {
	case free == 0:
	case free < diskReserve:
		out = append(out, health.New(health.EtcdDiskLow, "%s are free where etcd's data is; it ends when it cannot write", size(int64(free))).Of(etcd).As(health.Error))
	case free < diskSpare+uint64(max(f.InUse, 0)):
		out = append(out, health.New(health.EtcdDiskLow, "%s are free where etcd's data is, of which %s are in use", size(int64(free)), size(f.InUse)).Of(etcd))
	}
	health.Sort(out) // alarms have no order
	return out
}

// MemberName is what a member is called; an alarm of 0 is of none in particular.
func MemberName(members []Member, id uint64) string {
	if id == 0 {
		return "no member in particular"
	}
	for _, m := range members {
		if m.ID == id {
			return m.Name
		}
	}
	return fmt.Sprintf("the member %x", id)
}

func membersText(members []Member) string {
	text := ""
	for _, m := range members {
		if !m.Healthy && !m.Self {
			text += fmt.Sprintf("%s does not answer; ", m.Name)
		}
	}
	if text == "" {
		return "an election takes no longer than seconds"
	}
	return text[:len(text)-2]
}

func size(n int64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
