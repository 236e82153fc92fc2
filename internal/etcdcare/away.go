package etcdcare

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/health"
)

// Sight is what one server has seen of the members while it looked, by a clock of its own that nobody sets. The zero value has not
// looked yet.
type Sight struct {
	looked bool
	at     time.Duration // of the last look
	term   uint64        // in which this member leads; 0 while it does not
	led    time.Duration // for how long it has led in that term
	away   map[uint64]time.Duration
	// received is what was last known to have come from those that do not answer; heard are those of whom that was more at the last look.
	received map[uint64]uint64
	heard    map[uint64]bool
	going    uint64        // the one member that would go, with nothing in the way; 0 for none
	clear    time.Duration // for how long it has been that
}

// glance is what one look can account for at most. Whoever has not looked for longer, because its machine slept or had no
// time, knows nothing of what was in between.
const glance = 30 * time.Second

// Look is the Sight after another look, which has found f. at is how long ago the observer was started; of two looks the
// later one has the larger.
func (s Sight) Look(at time.Duration, f Facts) Sight {
	passed := time.Duration(0)
	if s.looked {
		passed = min(max(at-s.at, 0), glance)
	}
	next := Sight{looked: true, at: at, away: map[uint64]time.Duration{}, received: map[uint64]uint64{}, heard: map[uint64]bool{}}
	if f.ID != 0 && f.Leader == f.ID {
		if next.term = f.Term; s.term == f.Term {
			next.led = s.led + passed
		}
	}
	for _, m := range f.Members {
		last, known := s.received[m.ID]
		if now := cmp.Or(m.Received, last); now > 0 { // less than before where this etcd was started again
			next.received[m.ID] = now
		}
		next.heard[m.ID] = known && m.Received > last
		switch before, missed := s.away[m.ID]; {
		case Seen(m), next.heard[m.ID]:
		case missed:
			next.away[m.ID] = before + passed
		default: // it may have gone in this moment
			next.away[m.ID] = 0
		}
	}
	if m, why := lone(f); why == "" && !next.heard[m.ID] {
		if next.going = m.ID; s.going == m.ID {
			next.clear = s.clear + passed
		}
	}
	return next
}

// Barred is the Sight after something that is not among the facts was in the way of removing anybody at the last look.
func (s Sight) Barred() Sight {
	s.going, s.clear = 0, 0
	return s
}

// Seen tells that there is a sign of life at one look: an answer, or that etcd is connected with it, or that this is not known.
func Seen(m Member) bool { return m.Self || m.Healthy || m.Linked }

// Away is for how long nothing was seen of a member, 0 where it was seen at the last look.
func (s Sight) Away(id uint64) time.Duration { return s.away[id] }

// Departure is what becomes of a member that is away.
type Departure struct {
	// ID of the one member that is to be removed, 0 for none.
	ID uint64
	// In is when, not above 0 for now.
	In time.Duration
	// Why tells why none is, where ID is 0.
	Why string
}

// Departs decides whether a member is removed that was not seen for the time after, 0 for never. That is up to the member that leads,
// and counts from when it was elected: everybody else may have lost the way to a member that is well. One is removed at most, and
// only where all the others are there, so that there is a majority before and after. underWay is what changes the cluster just
// now, "" for nothing. Nothing may have been in the way for a while, either (see Grace): where the power comes back the first to be there
// must not remove the one that starts a moment later.
func (s Sight) Departs(f Facts, after time.Duration, underWay string) Departure {
	if after <= 0 {
		return Departure{Why: "nobody is removed without being asked"}
	}
	gone, why := lone(f)
	switch {
	case why != "":
		return Departure{Why: why}
	case s.heard[gone.ID]:
		return Departure{Why: gone.Name + " does not answer, and sends"}
	case underWay != "":
		return Departure{Why: underWay}
	}
	in := after - min(s.away[gone.ID], s.led)
	clear := s.clear
	if s.going != gone.ID {
		clear = 0
	}
	return Departure{ID: gone.ID, In: max(in, Grace(after)-clear)}
}

// Grace is for how long nothing has to have been in the way of a removal, where a member is removed that was not seen for the time after.
func Grace(after time.Duration) time.Duration { return min(after, tellAfter) }

// lone is the one member that is away, where it is this one's to remove it, or why none is removed.
func lone(f Facts) (gone Member, why string) {
	var away []Member
	voters, self := 0, false
	for _, m := range f.Members {
		self = self || m.ID == f.ID
		switch {
		case m.Learner:
			return Member{}, m.Name + " is joining"
		case m.Unstarted:
			return Member{}, m.Name + " has not started yet"
		}
		voters++
		if !m.Self && !m.Healthy {
			away = append(away, m)
		}
	}
	switch {
	case !self:
		why = "the members are not known"
	case f.Leader == 0:
		why = "there is no leader"
	case f.Leader != f.ID:
		why = fmt.Sprintf("that is up to %s, which leads", MemberName(f.Members, f.Leader))
	case len(away) == 0:
		why = "all members are there"
	case len(away) > 1:
		why = fmt.Sprintf("%d of %d members are away", len(away), voters)
	case voters-len(away) < majority(voters):
		why = "the members that are left are no majority"
	case len(f.Alarms) > 0:
		why = "etcd has an alarm"
	case Seen(away[0]):
		why = fmt.Sprintf("%s does not answer, and is connected", away[0].Name)
	default:
		return away[0], ""
	}
	return Member{}, why
}

// majority of so many voters.
func majority(voters int) int { return voters/2 + 1 }

const (
	// tellAfter is when a member that is away is a problem: machines are restarted.
	tellAfter = 10 * time.Minute
	// tellShare of the time after which one is removed is when it is told at the latest.
	tellShare = 4
)

// Problems are the members that are away, and what becomes of them. after is that of Departs, whose answer is d.
func (s Sight) Problems(f Facts, after time.Duration, d Departure) []health.Problem {
	if f.Leader == 0 {
		return nil // that is told, and for whom it waits
	}
	tell := tellAfter
	if after > 0 {
		tell = min(tell, after/tellShare)
	}
	var out []health.Problem
	for _, m := range f.Members {
		away := s.away[m.ID]
		if Seen(m) || m.Learner || m.Unstarted || away < tell {
			continue
		}
		node := NodeOf(m.Name)
		text, remedy := fmt.Sprintf("%s has not been seen for %s", node, span(away)), fmt.Sprintf("start it; if it does not come back: k1s node remove %s", node)
		switch {
		case after <= 0:
		case d.ID == m.ID && d.In > 0:
			text += fmt.Sprintf("; it will be removed in %s", span(d.In))
			remedy = fmt.Sprintf("start it; k1s node remove %s does it now", node)
		case d.ID == m.ID:
			text += "; it is being removed"
		case f.Leader != f.ID:
			text += fmt.Sprintf("; %s leads, and removes it when it has not seen it for as long as is configured there", NodeOf(MemberName(f.Members, f.Leader)))
		default:
			text += fmt.Sprintf("; it is not removed by itself: %s", d.Why)
		}
		out = append(out, health.New(health.EtcdMemberAway, "%s", text).Of("etcd").Fix("%s", remedy))
	}
	slices.SortFunc(out, func(a, b health.Problem) int { return strings.Compare(a.Text, b.Text) })
	return out
}

// span is a time as people say it: to the minute, or the second where it is shorter.
func span(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	s := strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// TooFew says what speaks against removing a member that has a vote: the names of those of the others that are away, where the rest would be
// no majority without it; "" for nothing. One of which it is not known whether it is connected counts as away here. etcd
// asks itself the same of all but those it is not connected with, and takes these for dead, which they need not be.
func TooFew(members []Member, without uint64) string {
	voters, there := 0, 0
	var away []string
	for _, m := range members {
		switch {
		case m.ID == without && m.Learner:
			return ""
		case m.ID == without, m.Learner:
			continue
		}
		if voters++; Seen(m) && !m.Unsure {
			there++
		} else {
			away = append(away, NodeOf(m.Name))
		}
	}
	switch {
	case voters == 0:
		return "there is no other member that votes"
	case there >= majority(voters):
		return ""
	}
	return fmt.Sprintf("of %d members %d would have to be there, and away are %s", voters, majority(voters), strings.Join(away, ", "))
}
