// Package flannel is the applet that gives a node's pods their network: it writes the CNI configuration
// as soon as the node has its pod CIDR, and keeps routes to the pods of other nodes, the masquerading of
// what leaves the pod network, and forwarding. The backends and the rules are flannel's own; what is
// here replaces its main program, which has fixed paths, environment variables and polls. It does not
// assign pod CIDRs (the controller manager does) nor enforce network policies (package networkpolicy does), but lets pods
// wait for them.
//
// Routes, links and rules stay when it ends, because pods keep running while k1s is stopped; --cleanup
// removes them.
package flannel

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"

	"k1s.io/k1s/internal/errs"
)

// Backends.
const (
	hostGW = "host-gw"
	vxlan  = "vxlan"
)

type options struct {
	kubeconfig, nodeName string
	backend, iface       string
	podCIDR              netip.Prefix
	nodeIP               netip.Addr // zero: the first address of iface
	mtu                  int        // 0: from the interface
	cniConfDir, cniState string
	policySocket         string // "": network policies are not enforced
	ipMasq, cleanup      bool
}

// Run is the applet. It returns nil when ctx ends; an API server that is away is waited for.
func Run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.cleanup {
		return Cleanup(ctx, o.podCIDR, o.cniConfDir)
	}
	return serve(ctx, o)
}

func parse(args []string) (options, error) {
	var (
		o            options
		podCIDR, ips string
	)
	fs := flag.NewFlagSet("flannel", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server; needs get, list, watch of nodes and patch of nodes/status")
	fs.StringVar(&o.nodeName, "node-name", "", "name of this node")
	fs.StringVar(&o.backend, "backend", hostGW, "host-gw or vxlan")
	fs.StringVar(&podCIDR, "pod-cidr", "", "addresses of all pods of the cluster")
	fs.StringVar(&o.iface, "interface", "", "interface other nodes are reached through; the one with --node-ip, or that of the default route, if empty")
	fs.StringVar(&ips, "node-ip", "", "address other nodes reach this one at; that of the interface if empty")
	fs.IntVar(&o.mtu, "mtu", 0, "MTU of pod interfaces; from the interface if 0")
	fs.StringVar(&o.cniConfDir, "cni-conf-dir", "", "directory to write "+conflistName+" to")
	fs.StringVar(&o.cniState, "cni-state-dir", "", "directory in which address assignments are kept")
	fs.StringVar(&o.policySocket, "policy-socket", "", "socket of the network policy agent, which pods wait for; policies are not enforced, and their table is removed, if empty")
	fs.BoolVar(&o.ipMasq, "ip-masq", true, "let traffic that leaves the pod network have the node's address")
	fs.BoolVar(&o.cleanup, "cleanup", false, "remove everything this applet has set up on the machine, and end")
	if err := fs.Parse(args); err != nil {
		return o, errs.As(errs.Usage, err)
	}
	if fs.NArg() > 0 {
		return o, errs.New(errs.Usage, "unexpected argument %q", fs.Arg(0))
	}
	var err error
	if o.podCIDR, err = netip.ParsePrefix(podCIDR); err != nil || !o.podCIDR.Addr().Is4() {
		return o, errs.New(errs.Usage, "--pod-cidr %q is not an IPv4 network such as 10.42.0.0/16", podCIDR)
	}
	o.podCIDR = o.podCIDR.Masked()
	if o.cleanup {
		return o, nil
	}
	if ips != "" {
		if o.nodeIP, err = netip.ParseAddr(ips); err != nil || !o.nodeIP.Is4() {
			return o, errs.New(errs.Usage, "--node-ip %q is not an IPv4 address", ips)
		}
	}
	var bad []error
	if o.backend != hostGW && o.backend != vxlan {
		bad = append(bad, fmt.Errorf("--backend %q is neither %s nor %s", o.backend, hostGW, vxlan))
	}
	if o.mtu != 0 && (o.mtu < 576 || o.mtu > 65535) {
		bad = append(bad, fmt.Errorf("--mtu %d is not between 576 and 65535", o.mtu))
	}
	for _, f := range []struct{ name, value string }{
		{"kubeconfig", o.kubeconfig}, {"node-name", o.nodeName}, {"cni-conf-dir", o.cniConfDir}, {"cni-state-dir", o.cniState},
	} {
		if f.value == "" {
			bad = append(bad, fmt.Errorf("--%s is missing", f.name))
		}
	}
	return o, errs.As(errs.Usage, errors.Join(bad...))
}
