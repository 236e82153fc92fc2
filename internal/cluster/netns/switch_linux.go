package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// bridgeKinds are the namespaces of the switch's side of a cluster.
var bridgeKinds = []string{"net"}

// switchArgs is what the switch is started with. It says nothing that may change while it runs.
type switchArgs struct {
	State   string `json:"state"`
	Run     string `json:"run"`
	Cluster string `json:"cluster"`
	Cgroup  string `json:"cgroup"`
	// Held: the ports of the record are open already, from the file descriptor heldFD on.
	Held bool `json:"held"`
	// Egress is the command of the way out, for a cluster that has one.
	Egress []string `json:"egress"`
}

// runSwitch is the switch: it forwards the cluster's ports, and holds what delayed links carry, until it is told to stop.
// SIGHUP makes it read the cluster's record again. The outcome of the start is written to the file descriptor
// readyFD as a JSON string: "" or what is wrong. How delayed links fare is written to layout.links.
func runSwitch(ctx context.Context, a switchArgs) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ready := os.NewFile(readyFD, "ready")
	defer ready.Close()
	l := layout{state: a.State, run: a.Run, cluster: a.Cluster}

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()

	slow := newDelayer(l, log)
	defer slow.close()
	var (
		tap  *os.File
		spec cluster.Spec
	)
	start := func() (*forwarder, error) {
		if err := joinCgroup(a.Cgroup, os.Getpid()); err != nil {
			return nil, err
		}
		d, err := newDialer(l.pin(switchName, "net"))
		if err != nil {
			return nil, err
		}
		if spec, err = readRecord(l); err != nil {
			return nil, err
		}
		if spec.Egress {
			if tap, err = openTap(l); err != nil {
				return nil, err
			}
		}
		f := newForwarder(d.dial, log)
		f.listenInside = d.listen
		if a.Held {
			if f.held, err = inherit(heldFD, here(forwards(spec))); err != nil {
				return nil, err
			}
		}
		if err := f.set(forwards(spec)); err != nil {
			f.close()
			return nil, err
		}
		if err := slow.set(spec); err != nil {
			f.close()
			return nil, err
		}
		return f, nil
	}
	f, err := start()
	if werr := json.NewEncoder(ready).Encode(message(err)); err == nil {
		err = werr
	}
	_ = ready.Close()
	if err != nil {
		return err
	}
	defer f.close()
	if tap != nil {
		var out sync.WaitGroup
		defer out.Wait()
		defer stop()
		out.Go(func() {
			defer tap.Close()
			runEgress(ctx, log, append(a.Egress, egressArgs(spec)...), tap)
		})
	}
	log.Info("forwarding", "cluster", a.Cluster, "pid", os.Getpid())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if err := apply(l, f, slow); err != nil {
				log.Error("changing the forwarded ports and delayed links failed", "err", err)
			}
		case <-slow.tick():
			if err := slow.tell(); err != nil {
				log.Error("telling how delayed links fare failed", "err", err)
			}
		}
	}
}

const (
	readyFD = 3 // where the switch tells whoever started it how that went
	heldFD  = 4 // the first of the ports that were opened for it
)

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func apply(l layout, f *forwarder, slow *delayer) error {
	spec, err := readRecord(l)
	if err != nil {
		return err
	}
	return errors.Join(f.set(forwards(spec)), slow.set(spec))
}

// dialer opens sockets in another network namespace.
type dialer struct{ target *os.File }

func newDialer(pin string) (*dialer, error) {
	target, err := os.Open(pin)
	if err != nil {
		return nil, fmt.Errorf("opening the cluster's network: %w", err)
	}
	return &dialer{target: target}, nil
}

// dial opens the socket on a thread of its own that is inside; a socket stays in the namespace it was
// made in. One address only, no name: then net makes the socket on the calling thread.
func (d *dialer) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := onThread(func() error {
		if err := unix.Setns(int(d.target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the cluster's network: %w", err)
		}
		nd := net.Dialer{KeepAliveConfig: keepAlive}
		var err error
		c, err = nd.DialContext(ctx, network, to.String())
		return err
	})
	return c, err
}

// listen opens a socket in the cluster.
func (d *dialer) listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	var l net.Listener
	err := onThread(func() error {
		if err := unix.Setns(int(d.target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the cluster's network: %w", err)
		}
		var lc net.ListenConfig
		var err error
		l, err = lc.Listen(ctx, "tcp4", at.String())
		return err
	})
	return l, err
}

// startSwitch starts the switch, which takes over the ports of the record, and waits until it forwards them, or
// says why it cannot.
func (p *Provider) startSwitch(ctx context.Context, l layout, ports held) error {
	cg := p.cgroup(l.cluster, switchName)
	if err := makeCgroup(cg); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args, err := json.Marshal(switchArgs{State: l.state, Run: l.run, Cluster: l.cluster, Cgroup: cg, Held: true, Egress: p.opts.Egress})
	if err != nil {
		return err
	}
	pid, err := p.spawn(l, switchName, spawnOptions{
		path:  p.opts.Program,
		args:  []string{"cluster", "__switch", string(args)},
		extra: append([]*os.File{w}, ports...),
	})
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the switch of cluster %s: %w", l.cluster, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	var problem string
	if err := json.NewDecoder(r).Decode(&problem); err != nil {
		problem = "it ended before it listened"
		if ctx.Err() != nil {
			problem = context.Cause(ctx).Error()
		}
	}
	if problem != "" {
		pid.waitGone(time.Second)
		return errs.WithLog(fmt.Errorf("starting the switch of cluster %s: %s", l.cluster, problem), l.log(switchName))
	}
	return nil
}

func readRecord(l layout) (cluster.Spec, error) {
	var s cluster.Spec
	b, err := os.ReadFile(l.record())
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading the record of cluster %s: %w", l.cluster, err)
	}
	return s, nil
}
