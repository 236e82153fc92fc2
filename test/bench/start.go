package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
)

// start is what one start showed. Times are seconds since just before the node's first process was started.
type start struct {
	Kind string             `json:"kind"`
	What string             `json:"what"`
	At   map[string]float64 `json:"at"`
	// CPU is what the node had used when a moment was reached, in seconds of one core.
	CPU map[string]float64 `json:"cpu"`
	// Components are when each was ready for the first time, as the node's daemon tells (k1s only).
	Components map[string]float64 `json:"components,omitempty"`
	// Foreign is how many cores everything else on the machine used meanwhile, our own looking included.
	Foreign float64 `json:"foreign"`
	// Quiet tells that the machine was when it began.
	Quiet bool   `json:"quiet"`
	Load  string `json:"load"`
}

// Moments of a start, in the usual order.
const (
	mPort       = "port open"
	mReadyz     = "readyz"
	mRegistered = "node registered"
	mReady      = "node Ready"
	mCreated    = "pod accepted"
	mRunning    = "pod Running"
	mDNS        = "DNS answers"
)

// goal says how far a start is followed.
type goal struct {
	node, dns, pod bool
	// again: the database knows the node from an earlier start, so only a report of this one counts.
	again bool
}

// startLimit bounds one start.
const startLimit = 2 * time.Minute

// start starts a node and follows it from outside until the goal is reached.
func (n *node) start(ctx context.Context, what string, g goal, patience time.Duration) (start, error) {
	s := start{Kind: n.kind, What: what, At: map[string]float64{}, CPU: map[string]float64{}}
	s.Quiet = quiet(ctx, patience)
	if err := waitForRoom(ctx); err != nil {
		return s, err
	}
	s.Load = strings.TrimSpace(text("/proc/loadavg"))
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("the start took more than %s", startLimit))
	defer cancel()
	cpu0, busy0, t0 := cpuTime(n.cgroup()), busy(), time.Now()
	var mu sync.Mutex
	mark := func(moment string) {
		at, cpu := time.Since(t0), cpuTime(n.cgroup())-cpu0
		mu.Lock()
		defer mu.Unlock()
		s.At[moment], s.CPU[moment] = at.Seconds(), cpu.Seconds()
	}
	if err := n.create(ctx); err != nil {
		return s, err
	}
	var since time.Time
	if g.again {
		since = t0
	}
	err := n.follow(ctx, g, since, mark)
	s.Foreign = max(0, (busy()-busy0-cpuTime(n.cgroup())+cpu0).Seconds()/time.Since(t0).Seconds())
	if err != nil {
		return s, fmt.Errorf("%s of %s: %w", what, n.kind, err)
	}
	if n.kind == k1s {
		s.Components, err = n.components(ctx, t0)
	}
	return s, err
}

// waitForRoom waits until others on this machine have left enough for a node.
func waitForRoom(ctx context.Context) error {
	for deadline := time.Now().Add(startLimit); !roomForNode(); {
		if time.Now().After(deadline) {
			return errs.Hint(errors.New("other programs use up the machine's inotify instances"),
				"stop other clusters, or run: sysctl -w fs.inotify.max_user_instances=1024")
		}
		if !sleep(ctx, time.Second) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// components asks the node's daemon when what was ready.
func (n *node) components(ctx context.Context, t0 time.Time) (map[string]float64, error) {
	st, err := control.NewClient(n.made.ControlSocket).Status(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{"daemon runs": st.Since.Sub(t0).Seconds()}
	for _, c := range st.Components {
		if c.ReadyAt != nil {
			out[c.Name] = c.ReadyAt.Sub(t0).Seconds()
		}
	}
	return out, nil
}

// follow watches everything a goal asks for at once. since is zero for a node that is new.
func (n *node) follow(ctx context.Context, g goal, since time.Time, mark func(string)) error {
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return n.followServer(ctx, mark) })
	if g.dns {
		all.Go(func() error { return n.followDNS(ctx, mark) })
	}
	if g.node || g.pod {
		all.Go(func() error {
			a, err := n.whenCredentials(ctx)
			if err != nil {
				return err
			}
			defer a.close()
			var objects errgroup.Group
			if g.node {
				objects.Go(func() error { return n.followNode(ctx, a, since, mark) })
			}
			if g.pod {
				objects.Go(func() error { return followPod(ctx, a, mark) })
			}
			return objects.Wait()
		})
	}
	return all.Wait()
}

// apiAddr is where the API is inside a node.
const apiAddr = "127.0.0.1:6443"

// followServer asks for the port and for /readyz, which is open to everybody.
func (n *node) followServer(ctx context.Context, mark func(string)) error {
	err := until(ctx, func(ctx context.Context) error {
		c, err := n.in.dial(ctx, "tcp", apiAddr)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return err
	}
	mark(mPort)
	client := &http.Client{Transport: &http.Transport{
		DialContext:     n.in.dial,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // nothing secret is sent, and the CA may be a moment away
	}}
	defer client.CloseIdleConnections()
	err = until(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiAddr+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return &statusError{resp.StatusCode, "not ready"}
		}
		return nil
	})
	if err == nil {
		mark(mReadyz)
	}
	return err
}

// whenCredentials opens a connection as soon as the node has written its administrator's kubeconfig.
func (n *node) whenCredentials(ctx context.Context) (*api, error) {
	var a *api
	return a, until(ctx, func(context.Context) (err error) {
		if _, err := os.Stat(n.made.Kubeconfig); err != nil {
			return err
		}
		a, err = n.api()
		return err
	})
}

func (n *node) followNode(ctx context.Context, a *api, since time.Time, mark func(string)) error {
	registered := false
	return a.watch(ctx, "/api/v1/nodes", n.spec.Name(), func(_ string, o object) bool {
		if !registered {
			mark(mRegistered)
			registered = true
		}
		ready := o.readySince(since)
		if ready {
			mark(mReady)
		}
		return ready
	})
}

// firstPod is what a user would start.
const firstPod = "bench-first"

// followPod creates a pod as soon as it is accepted, which takes a namespace and a service account.
func followPod(ctx context.Context, a *api, mark func(string)) error {
	err := until(ctx, func(ctx context.Context) error {
		err := a.do(ctx, http.MethodPost, podsPath, pod(firstPod), nil)
		if answered(err, http.StatusConflict) { // a try that was cut off has worked
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	mark(mCreated)
	return a.watch(ctx, podsPath, firstPod, func(_ string, o object) bool {
		running := o.Status.Phase == "Running"
		if running {
			mark(mRunning)
		}
		return running
	})
}

// Where cluster DNS is, and a name every cluster has.
const (
	dnsAddr = "10.43.0.10:53"
	dnsName = "kubernetes.default.svc.cluster.local."
	// dnsPatience is how long one question is waited for; the next is a new flow, because the kernel remembers
	// where the packets of an old one went before there was a service.
	dnsPatience = 30 * time.Millisecond
)

func (n *node) followDNS(ctx context.Context, mark func(string)) error {
	name, err := dnsmessage.NewName(dnsName)
	if err != nil {
		return err
	}
	question, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 1, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}).Pack()
	if err != nil {
		return err
	}
	err = until(ctx, func(ctx context.Context) error {
		c, err := n.in.dial(ctx, "udp", dnsAddr)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write(question); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(dnsPatience)); err != nil {
			return err
		}
		reply := make([]byte, 1500)
		size, err := c.Read(reply)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if err := m.Unpack(reply[:size]); err != nil {
			return err
		}
		if m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) == 0 {
			return errors.New("DNS answers " + m.RCode.String())
		}
		return nil
	})
	if err == nil {
		mark(mDNS)
	}
	return err
}
