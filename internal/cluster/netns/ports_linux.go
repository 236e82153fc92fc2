package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/platform"
)

// Ports of this machine are taken before the switch is started, and handed over to it listening: between
// choosing a port and using it nobody can come first.

// lettingGo is how long a killed switch may keep its ports: its first thread is seen to be dead before the last
// one has closed its files.
const lettingGo = 500 * time.Millisecond

// held are sockets that are bound, in the order of forwards.
type held []*os.File

func (h held) close() {
	for _, f := range h {
		_ = f.Close()
	}
}

// hold binds all ports of a cluster. Where the provider chose the API's port, it is chosen again if somebody
// else has it now; the spec is returned with the choice. The ports of old were those of a switch until a moment
// ago.
func (p *Provider) hold(ctx context.Context, old, spec cluster.Spec) (cluster.Spec, held, error) {
	taken, err := p.takenPorts(spec)
	if err != nil {
		return spec, nil, err
	}
	for port := uint16(firstAPIPort); ; port++ {
		chosen := spec.APIPort == 0
		if chosen {
			for taken[port] {
				port++
			}
			if port >= firstAPIPort+1000 {
				return spec, nil, errs.Hint(errors.New("no free port for the API on 127.0.0.1"), "choose one with --api-port")
			}
			spec.APIPort, spec.APIPortChosen = port, true
		}
		want := here(forwards(spec))
		h, at, err := bind(ctx, want)
		for deadline := time.Now().Add(lettingGo); old.APIPort != 0 && !chosen && errors.Is(err, unix.EADDRINUSE) && time.Now().Before(deadline); {
			if pause(ctx, 10*time.Millisecond); ctx.Err() != nil {
				return spec, nil, fmt.Errorf("waiting for %s to be free: %w", want[at].Listen, context.Cause(ctx))
			}
			h, at, err = bind(ctx, want)
		}
		switch {
		case err == nil:
			return spec, h, nil
		case spec.APIPortChosen && at == 0 && errors.Is(err, unix.EADDRINUSE):
			spec.APIPort = 0
			if !chosen { // it was free when it was chosen, long ago
				port = firstAPIPort - 1
			}
		default:
			return spec, nil, portProblem(want[at], err)
		}
	}
}

// takenPorts are those that belong to other clusters, running or not, and those this one publishes.
func (p *Provider) takenPorts(spec cluster.Spec) (map[uint16]bool, error) {
	taken := map[uint16]bool{}
	for _, pub := range spec.Publish {
		taken[pub.HostPort] = true
	}
	names, err := p.clusters()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if s, err := readRecord(p.layout(n)); err == nil && n != spec.Name {
			taken[s.APIPort] = true
			for _, pub := range s.Publish {
				taken[pub.HostPort] = true
			}
		}
	}
	return taken, nil
}

// free tells which ports of a cluster that is to be made are in use, all of them.
func (p *Provider) free(ctx context.Context, spec cluster.Spec) error {
	var all []error
	for _, w := range here(forwards(spec)) {
		if w.Listen.Port() == 0 { // one that is free will be chosen
			continue
		}
		f, err := bindOne(ctx, w)
		if err == nil {
			_ = f.Close()
			continue
		}
		if by := p.publisher(w); by != "" && errors.Is(err, unix.EADDRINUSE) {
			all = append(all, errs.Hint(fmt.Errorf("cannot forward %s (%s) to the cluster: cluster %s has it", w.Listen, w.Proto, by),
				"choose another port, or run: k1s cluster stop %s", by))
			continue
		}
		all = append(all, portProblem(w, err))
	}
	return errors.Join(all...)
}

// publisher is the cluster that forwards a port, "" if that is somebody else.
func (p *Provider) publisher(w forward) string {
	names, err := p.clusters()
	if err != nil {
		return ""
	}
	for _, n := range names {
		s, err := readRecord(p.layout(n))
		if err != nil {
			continue
		}
		for _, o := range here(forwards(s)) {
			if o.Proto == w.Proto && o.Listen.Port() == w.Listen.Port() && (o.Listen.Addr() == w.Listen.Addr() || o.Listen.Addr().IsUnspecified() || w.Listen.Addr().IsUnspecified()) {
				return n
			}
		}
	}
	return ""
}

// bind opens the sockets of all forwards, or none; at is the one that failed.
func bind(ctx context.Context, all []forward) (h held, at int, err error) {
	for i, w := range all {
		f, err := bindOne(ctx, w)
		if err != nil {
			h.close()
			return nil, i, err
		}
		h = append(h, f)
	}
	return h, 0, nil
}

func bindOne(ctx context.Context, w forward) (*os.File, error) {
	var lc net.ListenConfig
	if w.Proto == "udp" {
		c, err := lc.ListenPacket(ctx, w.network(), w.Listen.String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.(*net.UDPConn).File()
	}
	l, err := lc.Listen(ctx, w.network(), w.Listen.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// portProblem says who is in the way.
func portProblem(w forward, err error) error {
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return errs.Hint(errs.New(errs.Invalid, "cannot forward %s (%s) to the cluster: this machine does not have the address %s", w.Listen, w.Proto, w.Listen.Addr()),
			"see: ip address; 0.0.0.0 is all of them")
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("forwarding %s (%s) to the cluster: %w", w.Listen, w.Proto, err)
	}
	by := "another program"
	if w.Proto == "tcp" {
		if owners, lerr := platform.ListenersOn(w.Listen.Port()); lerr == nil {
			for _, o := range owners {
				if o.Addr == w.Listen.Addr() || o.Addr.IsUnspecified() {
					by = o.String()
				}
			}
		}
	}
	return errs.Hint(fmt.Errorf("cannot forward %s (%s) to the cluster: it is in use by %s", w.Listen, w.Proto, by), "stop it, or choose another port")
}

// inherit turns file descriptors from the first on back into what hold has bound.
func inherit(first int, all []forward) (map[portKey]any, error) {
	out := map[portKey]any{}
	for i, w := range all {
		unix.CloseOnExec(first + i)
		f := os.NewFile(uintptr(first+i), w.Listen.String())
		var s any
		var err error
		if w.Proto == "udp" {
			s, err = net.FilePacketConn(f)
		} else {
			s, err = net.FileListener(f)
		}
		_ = f.Close() // s has its own
		if err != nil {
			return nil, fmt.Errorf("taking over port %s (%s): %w", w.Listen, w.Proto, err)
		}
		out[w.key()] = s
	}
	return out, nil
}
