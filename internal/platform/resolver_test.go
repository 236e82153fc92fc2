package platform

import (
	"testing"

	"k1s.io/k1s/internal/component"
)

func TestPodsGetNameServersTheyCanReach(t *testing.T) {
	const etc, behind = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
	for name, c := range map[string]struct {
		files map[string]string
		want  component.Resolver
	}{
		"plain":            {map[string]string{etc: "nameserver 192.0.2.1\n"}, component.Resolver{File: etc, HasServers: true}},
		"systemd-resolved": {map[string]string{etc: "nameserver 127.0.0.53\noptions edns0\n", behind: "nameserver 192.0.2.1\n"}, component.Resolver{File: behind, HasServers: true}},
		"dnsmasq and a real one": {map[string]string{etc: "search x.example\nnameserver 127.0.0.1\nnameserver 2001:db8::1\n"},
			component.Resolver{HasServers: true, Text: "search x.example\nnameserver 2001:db8::1\n"}},
		"only loopback":  {map[string]string{etc: "nameserver ::1\nnameserver 127.0.0.1\n"}, component.Resolver{File: etc}},
		"unspecified":    {map[string]string{etc: "nameserver 0.0.0.0\n"}, component.Resolver{File: etc}},
		"a comment":      {map[string]string{etc: "# nameserver 192.0.2.1\n"}, component.Resolver{File: etc}},
		"none":           {nil, component.Resolver{File: etc}},
		"with interface": {map[string]string{etc: "nameserver fe80::1%eth0\n"}, component.Resolver{File: etc, HasServers: true}},
	} {
		if got := chooseResolver(func(f string) string { return c.files[f] }); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}
