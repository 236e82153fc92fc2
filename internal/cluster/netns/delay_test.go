//go:build linux

package netns

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/delayline"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/internal/wait"
)

// ask is what a command in a node asks another node's stand-in:
//
//	ping HOST    how long a round trip of a datagram takes, as a number of nanoseconds; what is lost is sent again
//	burst HOST   whether many datagrams at once come back, each once, in their order
//	fetch URL    the length and SHA-256 of a file
//	serve ADDR   serves the files of the node's data directory
//	features X   whether link X leaves checksums to whoever takes its frames
func ask(what, at string) error {
	if what == "features" {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		f, err := e.Features(at)
		fmt.Print(f["tx-checksum-ip-generic"])
		return err
	}
	if what == "serve" {
		return http.ListenAndServe(at, http.FileServer(http.Dir("/var/lib/k1s")))
	}
	if what == "fetch" {
		resp, err := http.Get(at)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		sum := sha256.New()
		n, err := io.Copy(sum, resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		fmt.Printf("%d %x", n, sum.Sum(nil))
		return err
	}
	c, err := net.Dial("udp4", net.JoinHostPort(at, "5353"))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if what == "ping" {
		return ping(c)
	}
	const count = 50 // as many as a socket holds
	for i := range count {
		if _, err := fmt.Fprintf(c, "%1200d", i); err != nil { // almost a frame each
			return err
		}
	}
	b := make([]byte, 2048)
	for i := range count {
		n, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("datagram %d of %d: %w", i, count, err)
		}
		if got := strings.TrimSpace(string(b[:n])); got != strconv.Itoa(i) {
			return fmt.Errorf("%s came back instead of %d", got, i)
		}
	}
	return nil
}

// ping sends a datagram every now and then until one comes back: a node that was started anew is looked for where it was, for some
// seconds.
func ping(c net.Conn) error {
	answer := make(chan error, 1)
	began := time.Now() // datagrams say when they were sent, counted from here
	go func() {
		b := make([]byte, 64)
		n, err := c.Read(b)
		if err == nil {
			var sent int64
			if sent, err = strconv.ParseInt(string(b[:n]), 10, 64); err == nil {
				fmt.Print(int64(time.Since(began)) - sent)
			}
		}
		answer <- err
	}()
	for {
		if _, err := fmt.Fprint(c, int64(time.Since(began))); err != nil {
			return err
		}
		select {
		case err := <-answer:
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func TestLinksAreDelayedAndHealed(t *testing.T) {
	p := testProvider(t)
	s, _ := up(t, p, cluster.Spec{Name: "one"})
	for i := range 2 {
		if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Agent, Index: i}); err != nil {
			t.Fatal(err)
		}
	}
	addr := map[string]string{"server-0": "10.88.0.10", "agent-0": "10.88.0.30", "agent-1": "10.88.0.31"}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	in := func(node string, argv ...string) (string, error) {
		var out, errOut bytes.Buffer
		err := p.Exec(ctx, "one", node, append([]string{programInNode}, argv...), cluster.Streams{Out: &out, ErrOut: &errOut})
		if err != nil {
			err = fmt.Errorf("%v in %s: %w: %s", argv, node, err, errOut.String())
		}
		return out.String(), err
	}
	// trip is how long a round trip takes.
	trip := func(from, to string) (time.Duration, error) {
		out, err := in(from, "ping", addr[to])
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(out, 10, 64)
		return time.Duration(n), err
	}
	until := func(what string, probe func() error) {
		t.Helper()
		if err := wait.Until(ctx, 10*time.Millisecond, what, func(context.Context) error { return probe() }); err != nil {
			t.Fatal(err)
		}
	}
	pairs := [][2]string{{"server-0", "agent-0"}, {"agent-0", "agent-1"}, {"agent-1", "server-0"}}
	var usual time.Duration
	until("all nodes to answer each other", func() error {
		for _, pair := range pairs {
			// Twice: the first one looks for the address as well.
			for range 2 {
				took, err := trip(pair[0], pair[1])
				if err != nil {
					return err
				}
				usual = max(usual, took)
			}
		}
		return nil
	})
	// So long that a round trip is not taken for a delayed one because the machine is busy.
	delay := min(max(100*time.Millisecond, 5*usual), time.Second)
	t.Logf("a round trip takes up to %s, the delay is %s", usual, delay)
	// delayed expects these pairs to take a round trip longer than the delay, and the others to be quicker than one direction
	// of it: at some time, since the machine may be busy with something else.
	delayed := func(what string, which ...[2]string) {
		t.Helper()
		for _, pair := range pairs {
			if slices.Contains(which, pair) {
				for range 3 {
					var took time.Duration
					until(what, func() (err error) { took, err = trip(pair[0], pair[1]); return err })
					if took < 2*delay {
						t.Errorf("%s: a round trip between %s and %s takes %s, the delay is %s", what, pair[0], pair[1], took, delay)
					}
				}
				continue
			}
			until(what+": "+pair[0]+" and "+pair[1]+" to be quick", func() error {
				took, err := trip(pair[0], pair[1])
				if err == nil && took >= delay {
					err = fmt.Errorf("%s", took)
				}
				return err
			})
		}
	}
	m := cluster.Manager{Provider: p}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	set := func(a, b string, by, jitter time.Duration) {
		t.Helper()
		must(m.DelayLink(ctx, "one", cluster.Delay{Ends: cluster.Ends{A: a, B: b}, Delay: cluster.Duration(by), Jitter: cluster.Duration(jitter)}))
	}
	well := func(what string) {
		t.Helper()
		fare, err := p.Delayed(ctx, "one")
		must(err)
		for _, d := range fare {
			if d.Problem != "" || d.Dropped != 0 {
				t.Errorf("%s: %+v", what, d)
			}
		}
	}
	delayed("before")

	set("agent-0", "agent-1", delay, 0)
	delayed("two delayed", pairs[1])
	if out, err := in("agent-0", "burst", addr["agent-1"]); err != nil {
		t.Errorf("a burst: %s %v", out, err)
	}
	well("two delayed")
	get(t, s, "/pid") // from this machine, always

	content := bytes.Repeat([]byte("all of this\n"), 1<<20)
	much := fmt.Sprintf("%d %x", len(content), sha256.Sum256(content))
	t.Run("a connection carries much, whole", func(t *testing.T) {
		must(os.WriteFile(p.layout("one").nodeVar("agent-1")+"/lib/k1s/much", content, 0o600))
		set("agent-0", "agent-1", 2*time.Millisecond, time.Millisecond) // by windows of TCP, so a long way would take long
		out, err := in("agent-0", "fetch", "http://"+addr["agent-1"]+":6443/file?name=/var/lib/k1s/much")
		if err != nil || out != much {
			t.Errorf("got %s, %v, want %s", out, err, much)
		}
		well("much")
	})
	t.Run("a connection in a tunnel does, too", func(t *testing.T) {
		for i, n := range []string{"agent-0", "agent-1"} {
			other := addr[[]string{"agent-1", "agent-0"}[i]]
			for _, cmd := range []string{
				"ip link add vx type vxlan id 7 dstport 4789 dev eth0 local " + addr[n] + " remote " + other,
				fmt.Sprintf("ip address add 10.99.0.%d/24 dev vx", i+1),
				"ip link set vx up",
			} {
				var told bytes.Buffer
				err := p.Exec(ctx, "one", n, strings.Fields(cmd), cluster.Streams{ErrOut: &told})
				if strings.Contains(told.String(), "Unknown device type") {
					t.Skipf("this kernel has no vxlan: ip link add says %q", told.String())
				}
				if err != nil {
					t.Fatalf("%s: %v: %s", cmd, err, told.String())
				}
			}
		}
		ctx, stop := context.WithCancel(ctx)
		var served sync.WaitGroup
		defer served.Wait()
		defer stop()
		served.Go(func() {
			_ = p.Exec(ctx, "one", "agent-1", []string{programInNode, "serve", "10.99.0.2:80"}, cluster.Streams{}) // it is killed
		})
		until("much to come through the tunnel", func() error {
			out, err := in("agent-0", "fetch", "http://10.99.0.2/much")
			if err == nil && out != much {
				err = wait.Permanent(fmt.Errorf("got %s, want %s", out, much))
			}
			return err
		})
		well("a tunnel")
	})
	set("agent-0", "agent-1", delay, 0)
	t.Run("a node that was killed has a new link", func(t *testing.T) {
		must(p.Kill(ctx, "one", "agent-1"))
		_, err := p.Create(ctx, cluster.NodeSpec{Cluster: "one", Role: cluster.Agent, Index: 1})
		must(err)
		// The others take up to a minute to look for it anew, unless it says where it is.
		for _, other := range []string{"agent-0", "server-0"} {
			until("agent-1 to be back", func() error { _, err := trip("agent-1", other); return err })
		}
		delayed("a new link", pairs[1])
	})
	t.Run("a cut wins", func(t *testing.T) {
		must(m.CutLink(ctx, "one", "agent-0", ""))
		for _, to := range []string{"agent-1", "server-0"} {
			if _, err := in("agent-0", "dial", addr[to]+":6443"); err == nil {
				t.Errorf("%s is reached", to)
			}
		}
		must(m.HealLink(ctx, "one", "agent-0", ""))
		delayed("the cut and the delay healed")
		out, err := in("agent-0", "fetch", "http://"+addr["agent-1"]+":6443/pid")
		if err != nil {
			t.Errorf("%s %v", out, err)
		}
	})
	t.Run("one and all others, also after a stop", func(t *testing.T) {
		must(p.Stop(ctx, "one", ""))
		set("server-0", "", delay, 0)
		start(t, p, "one")
		delayed("started", pairs[0], pairs[2])
		well("started")
	})
	t.Run("the switch is killed, and the cluster started", func(t *testing.T) {
		rec, err := readProc(p.layout("one").proc(switchName))
		must(err)
		must(rec.signal(unix.SIGKILL))
		if !rec.waitGone(time.Minute) {
			t.Fatal("it is still there")
		}
		fare, err := p.Delayed(ctx, "one")
		if err != nil || len(fare) != 1 || !strings.Contains(fare[0].Problem, "k1s cluster start one") {
			t.Errorf("told: %+v, %v", fare, err)
		}
		err = m.DelayLink(ctx, "one", cluster.Delay{Ends: cluster.Ends{A: "agent-0", B: "agent-1"}, Delay: cluster.Duration(delay)})
		if !errs.Is(err, errs.NotRunning) {
			t.Errorf("delaying without a switch: %v", err)
		}
		// What a start does about the switch; the nodes run.
		_, err = p.Prepare(ctx, state(t, p, "one").Spec)
		must(err)
		delayed("started again", pairs[0], pairs[2])
	})
	t.Run("a node that is added is one of the others", func(t *testing.T) {
		_, err := p.Create(ctx, cluster.NodeSpec{Cluster: "one", Role: cluster.Agent, Index: 2})
		must(err)
		addr["agent-2"], pairs = "10.88.0.32", append(pairs, [2]string{"server-0", "agent-2"}, [2]string{"agent-0", "agent-2"})
		delayed("added", pairs[0], pairs[2], pairs[3])
		set("server-0", "agent-2", 2*delay, 0)
		must(p.Delete(ctx, "one", "agent-2"))
		pairs = pairs[:3]
		if st := state(t, p, "one"); len(st.Spec.Delays) != 1 {
			t.Errorf("a node that is gone has left %+v", st.Spec.Delays)
		}
	})
	t.Run("changing them breaks off, and the cluster is started", func(t *testing.T) {
		// The bridge can be changed once, and not back.
		dir := t.TempDir()
		o := p.opts
		o.NFT = filepath.Join(dir, "nft")
		must(os.WriteFile(o.NFT, []byte("#!/bin/sh\n[ ! -e "+dir+"/once ] || exit 1\n: > "+dir+"/once\nexec "+p.opts.NFT+" \"$@\"\n"), 0o755))
		err := cluster.Manager{Provider: New(o)}.DelayLink(ctx, "one", cluster.Delay{Ends: cluster.Ends{A: "agent-0", B: "agent-1"}, Delay: cluster.Duration(delay)})
		if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(hint, "k1s cluster start one") {
			t.Errorf("got %v, hint %q", err, hint)
		}
		fare, err := p.Delayed(ctx, "one")
		if err != nil || len(fare) != 1 || !strings.Contains(fare[0].Problem, "k1s cluster start one") {
			t.Errorf("told: %+v, %v", fare, err)
		}
		if _, err := trip("agent-0", "agent-1"); err == nil {
			t.Error("nothing is broken")
		}
		_, err = p.Prepare(ctx, state(t, p, "one").Spec)
		must(err)
		delayed("mended", pairs[0], pairs[2])
		well("mended")
	})
	t.Run("all healed", func(t *testing.T) {
		must(m.HealLink(ctx, "one", "", ""))
		delayed("healed")
		for _, n := range []string{"server-0", "agent-0", "agent-1"} {
			out, err := in(n, "features", nodeLink)
			if err != nil || out != "true" {
				t.Errorf("%s does not send as it did: %s %v", n, out, err)
			}
		}
	})
}

func TestASwitchThatDoesNotListenIsToldSoAndNothingIsChanged(t *testing.T) {
	p := testProvider(t)
	up(t, p, cluster.Spec{Name: "one"})
	if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Agent}); err != nil {
		t.Fatal(err)
	}
	rec, err := readProc(p.layout("one").proc(switchName))
	if err == nil {
		err = rec.signal(unix.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rec.signal(unix.SIGCONT) })
	m := cluster.Manager{Provider: p}
	d := cluster.Delay{Ends: cluster.Ends{A: "agent-0", B: "server-0"}, Delay: cluster.Duration(20 * time.Second)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = m.DelayLink(ctx, "one", d)
	if hint, log := errs.HintOf(err); !errs.Is(err, errs.Timeout) || !strings.Contains(hint, "k1s cluster stop one") || log == "" {
		t.Errorf("got %v, hint %q, log %q", err, hint, log)
	}
	if st := state(t, p, "one"); len(st.Spec.Delays) > 0 {
		t.Errorf("the record has %+v", st.Spec.Delays)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = wait.Until(ctx, 10*time.Millisecond, "the nodes to answer each other", func(context.Context) error {
		return p.Exec(ctx, "one", "agent-0", []string{programInNode, "ping", "10.88.0.10"}, cluster.Streams{})
	})
	if err != nil {
		t.Error(err)
	}
	if err := rec.signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := m.DelayLink(ctx, "one", d); err != nil {
		t.Errorf("when it listens: %v", err)
	}
}

func TestRulesLeaveTheWayOutAlone(t *testing.T) {
	links := cluster.Links{
		Cuts:   []cluster.Cut{{Ends: cluster.Ends{A: "agent-0"}}, {Ends: cluster.Ends{A: "agent-1", B: "server-0"}}},
		Delays: []cluster.Delay{{Ends: cluster.Ends{A: "agent-2"}}, {Ends: cluster.Ends{A: "agent-1", B: "agent-3"}}},
	}
	const want = `add table bridge k1s-cuts
delete table bridge k1s-cuts
table bridge k1s-cuts {
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname "agent-0" drop
		oifname "agent-0" drop
		iifname "agent-1" oifname "server-0" drop
		iifname "server-0" oifname "agent-1" drop
		iifname "agent-2" oifname != "egress" drop
		iifname != "egress" oifname "agent-2" drop
		iifname "agent-1" oifname "agent-3" drop
		iifname "agent-3" oifname "agent-1" drop
	}
}
`
	if got := linkRules(links); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestWhereFramesGo(t *testing.T) {
	mac := func(b byte) string { return string([]byte{2, 0, 0, 0, 0, b}) }
	plan := delayPlan{
		Ends:       map[string]linkEnd{"a": {1, mac(1)}, "b": {2, mac(2)}, "c": {3, mac(3)}, "d": {4, mac(4)}},
		Bridge:     mac(9),
		Directions: []cluster.Direction{{From: "a", To: "b"}, {From: "b", To: "a"}, {From: "a", To: "c"}, {From: "c", To: "a"}},
	}
	r := &route{to: map[string]*delayline.Line{}} // of a, for which b and c are far away, and d is not
	names := map[*delayline.Line]string{}
	for _, name := range []string{"b", "c"} {
		l := delayline.New(time.Second, 0, delayline.NewRoom(1), nil)
		names[l] = name
		r.add(plan.Ends[name].Addr, l)
	}
	filter, err := bpf.NewVM(otherwise(plan.undelayed("a")))
	if err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct{ to, want string }{
		"a node that is far away":        {mac(2), "b"},
		"another one":                    {mac(3), "c"},
		"one that is not":                {mac(4), ""},
		"itself":                         {mac(1), ""},
		"the bridge":                     {mac(9), ""},
		"everybody":                      {"\xff\xff\xff\xff\xff\xff", "bc"},
		"somebody unknown":               {mac(7), "bc"},
		"somebody whose end is the same": {"\x03\x00\x00\x00\x00\x04", "bc"},
	} {
		frame := []byte(tc.to + mac(1) + "\x08\x00content")
		got := ""
		if n, err := filter.Run(frame); err != nil || n != 0 && n < len(frame) {
			t.Errorf("the filter takes %d of %d bytes, %v", n, len(frame), err)
		} else if n > 0 {
			for _, l := range r.lines(frame) {
				got += names[l]
			}
		}
		if got != tc.want {
			t.Errorf("to %s: %q, want %q", what, got, tc.want)
		}
	}
	if got := r.lines([]byte("short")); got != nil {
		t.Errorf("what is no frame goes to %v", got)
	}
}

func TestTheFilterFitsTheLargestCluster(t *testing.T) {
	testenv.Root(t)
	var addrs []string
	for i := range cluster.MaxServers + cluster.MaxAgents + 1 {
		addrs = append(addrs, fmt.Sprintf("%06d", i))
	}
	filter, err := bpf.Assemble(otherwise(addrs))
	if err != nil {
		t.Fatal(err)
	}
	link, err := openNodeLink(1, filter) // the loopback's will do
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatTheSwitchTellsReadsBack(t *testing.T) {
	d := cluster.Delay{Ends: cluster.Ends{A: "a", B: "b"}, Delay: cluster.Duration(50 * time.Millisecond)}
	st := linkState{PID: 7, Links: cluster.Links{Delays: []cluster.Delay{d}}, Delayed: []cluster.Delayed{{Delay: d, Dropped: 3}}}
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	var back linkState
	if err := json.Unmarshal(b, &back); err != nil || back.PID != 7 || !back.Equal(st.Links) || !slices.Equal(back.Delayed, st.Delayed) {
		t.Errorf("%s became %+v, %v", b, back, err)
	}
}
