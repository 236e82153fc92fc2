package clustercmd

import (
	"context"
	"errors"
	"fmt"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
)

// askNode asks a node's daemon whether it is ready for work.
func askNode(ctx context.Context, n cluster.Node) error {
	s, err := control.NewClient(n.ControlSocket).Status(ctx)
	switch {
	case errs.Is(err, errs.NotRunning):
		return errors.New("its daemon is starting")
	case err != nil:
		return err
	}
	return whyNotReady(s)
}

// dnsAddon is the packaged component without which a cluster is not ready for work.
const dnsAddon = "coredns"

// whyNotReady is nil for a node that is ready for work: it runs, Kubernetes calls it Ready, and DNS answers.
func whyNotReady(s control.Status) error {
	if s.State != control.Running && s.State != control.Degraded || s.Node == nil || !s.Node.Ready {
		if s.Doing != "" {
			return errors.New(s.Doing)
		}
		for _, c := range s.Components {
			if c.State != "ready" {
				return fmt.Errorf("%s is %s%s", c.Name, c.State, dash(c.Note))
			}
		}
		if s.Node != nil {
			return fmt.Errorf("the node is not Ready%s", dash(s.Node.Reason))
		}
		return fmt.Errorf("the node is %s", s.State)
	}
	for _, a := range s.Addons {
		if a.Name == dnsAddon && a.State != "ready" {
			return fmt.Errorf("DNS is %s%s", a.State, dash(a.Note))
		}
	}
	return nil
}

func dash(note string) string {
	if note == "" {
		return ""
	}
	return ": " + note
}
