package platform

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Listener is a program that accepts TCP connections.
type Listener struct {
	Port    uint16
	Addr    netip.Addr // unspecified for all addresses
	PID     int        // 0 where it cannot be seen, e.g. in another pid namespace
	Process string     // short name; "" with PID 0
}

// String names it as messages do: "haproxy (pid 812)".
func (l Listener) String() string {
	if l.PID == 0 {
		return "a program that cannot be seen from here"
	}
	return fmt.Sprintf("%s (pid %d)", l.Process, l.PID)
}

// socket is one line of /proc/net/tcp.
type socket struct {
	addr  netip.Addr
	port  uint16
	inode string
}

// parseListeners picks the listening sockets out of /proc/net/tcp or tcp6. Addresses are there in groups
// of four bytes, each in the machine's byte order, which is little-endian wherever we run.
func parseListeners(table string) []socket {
	const listening = "0A"
	var out []socket
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != listening {
			continue
		}
		host, port, _ := strings.Cut(f[1], ":")
		b, err := hex.DecodeString(host)
		n, portErr := strconv.ParseUint(port, 16, 16)
		if err != nil || portErr != nil || (len(b) != 4 && len(b) != 16) {
			continue
		}
		for i := 0; i < len(b); i += 4 {
			slices.Reverse(b[i : i+4])
		}
		addr, _ := netip.AddrFromSlice(b)
		out = append(out, socket{addr: addr.Unmap(), port: uint16(n), inode: f[9]})
	}
	return out
}

// overlap says whether two listeners on the same port get into each other's way.
func overlap(a, b netip.Addr) bool {
	if a.IsUnspecified() || b.IsUnspecified() {
		// [::] takes IPv4 as well, which is Linux' default and what all our programs use.
		return true
	}
	return a == b
}
