// Package networkpolicy is the applet that enforces NetworkPolicies on the pods of its node: it watches the API server,
// lets package rules say what the table of packet filter rules should be, and writes the differences to the kernel.
//
// The table stays when it ends, so pods are never without their policies while k1s is stopped or replaced; the next one
// reads the table back and changes what differs. flannel's --cleanup removes it. Pods and namespaces are watched only while there is
// any policy.
package networkpolicy

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"k1s.io/k1s/internal/errs"
)

type options struct {
	kubeconfig, nodeName string
	socket, stateFile    string
}

// Run is the applet. It returns nil when ctx ends; an API server that is away, and a kernel that refuses, are waited for.
func Run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	return serve(ctx, o)
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("network-policy", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server; needs list and watch of networkpolicies, pods and namespaces")
	fs.StringVar(&o.nodeName, "node-name", "", "name of this node")
	fs.StringVar(&o.socket, "socket", "", "socket at which the CNI plugin tells addresses of pods; there when the policies are in force")
	fs.StringVar(&o.stateFile, "state-file", "", "file that keeps the addresses the plugin has told, for the next process")
	if err := fs.Parse(args); err != nil {
		return o, errs.As(errs.Usage, err)
	}
	if fs.NArg() > 0 {
		return o, errs.New(errs.Usage, "unexpected argument %q", fs.Arg(0))
	}
	var bad []error
	for _, f := range []struct{ name, value string }{
		{"kubeconfig", o.kubeconfig}, {"node-name", o.nodeName}, {"socket", o.socket}, {"state-file", o.stateFile},
	} {
		if f.value == "" {
			bad = append(bad, fmt.Errorf("--%s is missing", f.name))
		}
	}
	return o, errs.As(errs.Usage, errors.Join(bad...))
}
