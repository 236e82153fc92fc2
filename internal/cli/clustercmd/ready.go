package clustercmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

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

// tokenTTL is longer than any node takes to join, and shorter than anybody would look for the file.
const tokenTTL = time.Hour

// askToken asks a server's daemon for a token for nodes of a role.
func askToken(ctx context.Context, n cluster.Node, role cluster.Role) (string, error) {
	t, err := control.NewClient(n.ControlSocket).CreateToken(ctx, control.TokenRequest{
		Role: string(role), Description: string(role) + "s of cluster " + n.Cluster, TTL: tokenTTL,
	})
	if errs.Is(err, errs.NotRunning) {
		return "", errors.New("its daemon is starting")
	}
	return t.Text, err
}

// forget asks a server's daemon to take a node out of its cluster.
func forget(ctx context.Context, server cluster.Node, name string) error {
	return control.NewClient(server.ControlSocket).RemoveNode(ctx, name)
}

// dnsAddon is the packaged component that says why DNS does not answer.
const dnsAddon = "coredns"

// whyNotReady is nil for a node that is ready for work: it runs, Kubernetes calls it Ready, and DNS answers.
// A server that is no worker only has to run.
func whyNotReady(s control.Status) error {
	worker := s.Node != nil
	for _, c := range s.Components {
		worker = worker || c.Name == "kubelet"
		// What ends again and again tells more than the step the node is at.
		if c.State == "backoff" || c.State == "failed" {
			// The note counts down to the next try; a reason that stays the same is said once.
			return fmt.Errorf("%s is in state %s%s", c.Name, c.State, dash(cmp.Or(c.LastExit, c.Note)))
		}
	}
	if s.State != control.Running && s.State != control.Degraded || worker && (s.Node == nil || !s.Node.Ready) {
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
	if s.DNS == nil || s.DNS.Answers {
		return nil
	}
	for _, a := range s.Addons {
		if a.Name == dnsAddon && a.State != "ready" {
			return fmt.Errorf("DNS is %s%s", a.State, dash(a.Note))
		}
	}
	return fmt.Errorf("DNS does not answer%s", dash(s.DNS.Reason))
}

func dash(note string) string {
	if note == "" {
		return ""
	}
	return ": " + note
}
