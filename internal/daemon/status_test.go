package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
)

func TestDNSReasonsDoNotChangeFromTryToTry(t *testing.T) {
	op := func(errno syscall.Errno) error {
		return &net.OpError{Op: "write", Net: "udp", Source: &net.UDPAddr{Port: 40123}, Err: os.NewSyscallError("write", errno)}
	}
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.ECONNREFUSED} { // as package net tells it
		said := dnsReason(&net.DNSError{Err: op(errno).Error(), Name: "kubernetes", Server: "192.0.2.1:53"})
		if want := dnsReason(op(errno)); said != want {
			t.Errorf("got %q, want %q", said, want)
		}
	}
	for want, err := range map[string]error{
		"no DNS pod is ready": fmt.Errorf("lookup: %w", op(syscall.EPERM)),
		"connection refused":  op(syscall.ECONNREFUSED),
		"no answer":           &net.DNSError{Err: "i/o timeout", IsTimeout: true},
		"no such host":        &net.DNSError{Err: "no such host", Server: "192.0.2.1:53"},
		"odd":                 errors.New("odd"),
	} {
		if got := dnsReason(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

// Questions to a service get lost before kube-proxy has rules for it, and a machine that is busy answers late.
func TestDNSIsAskedAgainWhileNobodyAnswers(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("no answer"))
	defer cancel()
	var asked atomic.Int32
	err := lookUp(ctx, "kubernetes.test.", func(context.Context, string, string) (net.Conn, error) {
		if asked.Add(1) == 1 {
			ours, theirs := net.Pipe() // takes the question, and keeps silent
			t.Cleanup(func() { theirs.Close() })
			go func() { _, _ = io.Copy(io.Discard, theirs) }() // until it is closed
			return ours, nil
		}
		return nil, &net.OpError{Op: "dial", Net: "udp", Err: os.NewSyscallError("write", syscall.EPERM)}
	})
	if got, want := dnsReason(err), "no DNS pod is ready"; got != want {
		t.Errorf("asked %d times: %v, which is told as %q, want %q", asked.Load(), err, got, want)
	}
}

func TestTunnelsThatAreMissedAreProblems(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	long, justNow := now.Add(-time.Minute), now.Add(-10*time.Second)
	server := &control.Tunnels{Nodes: []control.TunnelNode{{Name: "agent-0"}}, Unreachable: []control.UnreachableNode{{Name: "agent-1", Reason: "no route to host"}}}
	agent := &control.Tunnels{Servers: []control.TunnelServer{
		{Server: "10.0.0.1:6443", Connected: true, Answers: true, Since: long}, {Server: "10.0.0.2:6443", Answers: true, Since: long, Note: "it answers 404"},
		{Server: "10.0.0.3:6443", Since: long, Note: "refused"}, {Server: "10.0.0.4:6443", Answers: true, Since: justNow, Note: "it has ended"},
	}}
	for name, tc := range map[string]struct {
		tunnels *control.Tunnels
		apiOpen bool
		want    []string
	}{
		"none":                  {nil, true, nil},
		"a server":              {server, true, []string{"warning: node-unreachable: node agent-1 is Ready, and this server has no tunnel to it and does not reach it directly: no route to host"}},
		"of before the restart": {server, false, nil},
		"an agent":              {agent, true, []string{"warning: tunnel-down: balancer: server 10.0.0.2:6443 answers, and cannot reach this node: it answers 404"}},
	} {
		var got []string
		for _, p := range tunnelProblems(tc.tunnels, tc.apiOpen, now) {
			got = append(got, p.String())
			if p.Remedy == "" {
				t.Errorf("%s has no remedy", p.Code)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
