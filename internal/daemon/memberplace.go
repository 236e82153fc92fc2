package daemon

import (
	"net"
	"net/url"
	"slices"

	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/join"
)

// memberPlace is what a server finds that wants to be a member of etcd.
type memberPlace int

const (
	placeFree  memberPlace = iota // nobody has its address
	placeKept                     // it was added, and has not started yet
	placeLost                     // it is a member under this very name, whose data is gone
	placeOld                      // its node was a member under another name, whose data is gone
	placeTaken                    // the state has its address for a member of another node
)

// placeOf finds it among the members, and the member it is about. An address alone says little: that of a member that is off, or that
// has moved and could not tell yet, may be another machine's by now, and a vote with data must not be lost for it.
func placeOf(all []etcdapi.Member, who join.Member) (memberPlace, etcdapi.Member) {
	for _, m := range all {
		switch {
		case !slices.Contains(m.PeerURLs, who.PeerURL):
		case m.Name == "", m.Name == who.Name && m.IsLearner:
			return placeKept, m
		case m.Name == who.Name:
			return placeLost, m
		case nodeOfMember(m.Name) == nodeOfMember(who.Name), m.Name == nodeOfMember(who.Name):
			return placeOld, m
		default:
			return placeTaken, m
		}
	}
	return placeFree, etcdapi.Member{}
}

// memberNamed finds a server's member among all: by its name, because its address may have changed since; one that has not told its name yet by
// its address.
func memberNamed(all []etcdapi.Member, who join.Member) (etcdapi.Member, bool) {
	for _, is := range []func(etcdapi.Member) bool{
		func(m etcdapi.Member) bool { return m.Name == who.Name },
		func(m etcdapi.Member) bool { return m.Name == "" && slices.Contains(m.PeerURLs, who.PeerURL) },
	} {
		if i := slices.IndexFunc(all, is); i >= 0 {
			return all[i], true
		}
	}
	return etcdapi.Member{}, false
}

// nextPeerURL is what the state is to have as the address of a member, whose own is ours; "" for what it has. settled tells that ours is
// in the state then. No two members can have one address: where two have swapped theirs, or several have in a ring, each
// first gives up its old one for one that is nobody else's, and is found by its name meanwhile.
func nextPeerURL(all []etcdapi.Member, id uint64, node, ours string) (next string, settled bool) {
	var own etcdapi.Member
	taken := false
	for _, m := range all {
		if m.ID == id {
			own = m
			continue
		}
		taken = taken || slices.Contains(m.PeerURLs, ours)
	}
	between := ours
	if u, err := url.Parse(ours); err == nil {
		u.Host = net.JoinHostPort(node, u.Port())
		between = u.String()
	}
	switch {
	case slices.Equal(own.PeerURLs, []string{ours}):
		return "", true
	case !taken:
		return ours, true
	case slices.Equal(own.PeerURLs, []string{between}):
		return "", false
	}
	return between, false
}
