//go:build k1s_upstream

package main

import (
	"k1s.io/k1s/internal/applets/networkpolicy/gate"
	"k1s.io/k1s/out/_upstream/bandwidth"
	"k1s.io/k1s/out/_upstream/bridge"
	"k1s.io/k1s/out/_upstream/hostlocal"
	"k1s.io/k1s/out/_upstream/loopback"
	"k1s.io/k1s/out/_upstream/portmap"
	"k1s.io/k1s/out/_upstream/ptp"
)

func plugins() []plugin {
	return []plugin{
		{"bandwidth", bandwidth.Main},
		{"bridge", bridge.Main},
		{"host-local", hostlocal.Main},
		{gate.Plugin, gate.Main},
		{"loopback", loopback.Main},
		{"portmap", portmap.Main},
		{"ptp", ptp.Main},
	}
}
