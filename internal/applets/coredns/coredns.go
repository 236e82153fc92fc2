// Package coredns is upstream's CoreDNS with the plugins a cluster's DNS server needs and no others: each
// plugin costs file size and start-up memory in every cluster. The order in which plugins handle a
// query is upstream's own list (dnsserver.Directives), on which the order here has no influence. Only
// cmd/k1s-pods uses it.
package coredns

import (
	"os"

	"github.com/coredns/coredns/coremain"

	// What the packaged Corefile uses, and what users commonly add to one. "import" is part of the
	// Corefile's syntax and needs no plugin.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
)

// Run takes upstream's flags and owns the process, as upstream's main does: it reads os.Args, handles
// the signals (SIGTERM ends after the lame-duck period, SIGUSR1 reloads) and exits by itself.
//
// Beside it /ready is served at port 8182, see serveReady.
func Run(args []string) error {
	if err := serveReady(readyAddr, asksPlugin(upstreamReady)); err != nil {
		return err
	}
	os.Args = append([]string{"coredns"}, args...)
	coremain.Run()
	return nil
}
