package rules

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// prefixes are the networks of IP blocks without their exceptions, none inside another, sorted. The kernel then
// needs no rule for an exception.
func prefixes(blocks []*networkingv1.IPBlock) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range blocks {
		p, err := netip.ParsePrefix(b.CIDR)
		if err != nil {
			continue // the API server takes none
		}
		var without []netip.Prefix
		for _, text := range b.Except {
			if e, err := netip.ParsePrefix(text); err == nil {
				without = append(without, e.Masked())
			}
		}
		out = append(out, subtract(p.Masked(), without)...)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	// Sorted so, a network stands before those inside it.
	kept := out[:0]
	for _, p := range out {
		if len(kept) == 0 || !kept[len(kept)-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}

// subtract is p without some networks, as the fewest networks.
func subtract(p netip.Prefix, without []netip.Prefix) []netip.Prefix {
	inside := false
	for _, w := range without {
		if w.Bits() <= p.Bits() && w.Contains(p.Addr()) {
			return nil
		}
		inside = inside || p.Overlaps(w)
	}
	if !inside {
		return []netip.Prefix{p}
	}
	low, high := halves(p)
	return append(subtract(low, without), subtract(high, without)...)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)
}

// portRange is one of a protocol, ends included.
type portRange struct {
	proto    uint8
	from, to uint16
}

// merged has the same ports in the fewest ranges, sorted: sets of the kernel take no overlaps.
func merged(in []portRange) []portRange {
	slices.SortFunc(in, func(a, b portRange) int {
		return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	var out []portRange
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].proto == r.proto && int(r.from) <= int(out[n-1].to)+1 {
			out[n-1].to = max(out[n-1].to, r.to)
			continue
		}
		out = append(out, r)
	}
	return out
}

// match is the condition that a packet goes to one of the ports.
func match(in []portRange) string {
	var all []string
	for _, r := range merged(in) {
		ports := strconv.Itoa(int(r.from))
		if r.to != r.from {
			ports += "-" + strconv.Itoa(int(r.to))
		}
		all = append(all, number(r.proto)+Dot+ports)
	}
	return "meta l4proto . th dport { " + strings.Join(all, ", ") + " }"
}
