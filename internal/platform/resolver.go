package platform

import (
	"net/netip"
	"strings"

	"k1s.io/k1s/internal/component"
)

// resolverFiles are where the machine's name servers are written: the usual place, and the one behind
// systemd-resolved's stub.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// chooseResolver finds the name servers pods can use. Servers on the machine's loopback (systemd-resolved's
// stub, dnsmasq) are not among them: seen from a pod they would be the pod itself, and the cluster's DNS
// would forward to itself in a circle. read returns a file's text, "" where there is none.
func chooseResolver(read func(file string) string) component.Resolver {
	var mixed *component.Resolver
	for _, file := range resolverFiles {
		var kept []string
		reachable, local := 0, 0
		for line := range strings.Lines(read(file)) {
			line = strings.TrimRight(line, "\n")
			f := strings.Fields(line)
			if len(f) >= 2 && f[0] == "nameserver" {
				if onLoopback(f[1]) {
					local++
					continue
				}
				reachable++
			}
			kept = append(kept, line)
		}
		switch {
		case reachable > 0 && local == 0:
			return component.Resolver{File: file, HasServers: true}
		case reachable > 0 && mixed == nil:
			mixed = &component.Resolver{HasServers: true, Text: strings.Join(kept, "\n") + "\n"}
		}
	}
	if mixed != nil {
		return *mixed
	}
	return component.Resolver{File: resolverFiles[0]}
}

func onLoopback(server string) bool {
	addr, _, _ := strings.Cut(server, "%")
	a, err := netip.ParseAddr(addr)
	return err == nil && (a.IsLoopback() || a.IsUnspecified())
}
