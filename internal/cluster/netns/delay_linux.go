package netns

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/delayline"
	"k1s.io/k1s/internal/durable"
)

// delayer is the part of the switch that carries what is delayed. The bridge drops that (linkRules); the delayer sees it at the
// sender's end of the link before the bridge does, holds it, and puts it on the receiver's link. It is used by one goroutine.
type delayer struct {
	layout layout
	log    *slog.Logger

	heard   cluster.Links
	problem string
	plan    delayPlan
	plain   map[string]bool // nodes that send what can be held, see plainFrames
	last    linkState       // as it was told last

	// What runs, nil when nothing is delayed.
	stop  context.CancelFunc
	done  *sync.WaitGroup
	lines map[[2]string]*delayline.Line // by sender and receiver
	taps  map[string]*os.File           // by node
	lost  map[string]uint64             // by node: frames of it that the kernel had no room for
}

// maxHeld is how much all delayed links of a cluster may have on the way, in bytes, and tapBuffer what the kernel may hold of a node
// that the delayer has not read yet. 64 MiB are 1 Gbit/s over half a second.
const (
	maxHeld   = 64 << 20
	tapBuffer = 8 << 20
)

func newDelayer(l layout, log *slog.Logger) *delayer {
	return &delayer{layout: l, log: log, plain: map[string]bool{}}
}

// delayPlan is who delays what, on which links.
type delayPlan struct {
	Directions []cluster.Direction
	Ends       map[string]linkEnd // of all nodes that are plugged in, by name
	Bridge     string             // its address, that of this machine
}

// linkEnd is a node's link.
type linkEnd struct {
	Index int    // of its end on the bridge
	Addr  string // of its end in the node, 6 bytes
}

// set makes what the cluster's record says be delayed, and tells so. When something about it changes, what is on the way then is lost,
// on all links, as with a cable that is replugged.
func (d *delayer) set(spec cluster.Spec) error {
	d.heard = linksOf(spec)
	err := d.change(spec)
	if d.problem = message(err); err != nil {
		d.close()
	}
	if len(spec.Delays) == 0 && err == nil && d.last.PID == 0 {
		return nil // nobody has ever asked
	}
	return errors.Join(err, d.tell())
}

func (d *delayer) change(spec cluster.Spec) error {
	var names []string
	for _, n := range spec.Nodes {
		names = append(names, n.Name())
	}
	for {
		var plan delayPlan
		if len(d.heard.Delays) > 0 {
			var err error
			if plan, err = d.survey(names); err != nil {
				return err
			}
		}
		if d.stop != nil && reflect.DeepEqual(plan, d.plan) {
			return nil
		}
		d.close()
		d.release(plan)
		if len(plan.Directions) == 0 {
			return nil
		}
		d.plan = plan
		err := d.start(plan)
		if err == nil {
			return nil
		}
		d.close()
		if !down(err) { // otherwise a node has gone since, and there is another plan
			return err
		}
	}
}

// survey finds the links of nodes, and makes those whose frames are to be held send what can be. A node that is not plugged in has
// nobody to talk to.
func (d *delayer) survey(names []string) (delayPlan, error) {
	plan := delayPlan{Ends: map[string]linkEnd{}}
	directions := d.heard.Directions(names)
	err := onThread(func() error {
		if err := enter(d.layout, switchName, bridgeKinds); err != nil {
			return err
		}
		// Before there is any node: whoever starts a cluster with delays hears at once that there can be none.
		fd, err := packetSocket()
		if err != nil {
			return err
		}
		_ = unix.Close(fd)
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("listing the links of the cluster: %w", err)
		}
		for _, l := range links {
			switch a := l.Attrs(); {
			case a.Name == bridgeName:
				plan.Bridge = string(a.HardwareAddr)
			case slices.Contains(names, a.Name):
				plan.Ends[a.Name] = linkEnd{Index: a.Index}
			}
		}
		return nil
	})
	if err != nil {
		return plan, err
	}
	for name, end := range plan.Ends {
		err := d.inNode(name, func() error {
			link, err := netlink.LinkByName(nodeLink)
			if err != nil {
				return fmt.Errorf("finding the link of node %s: %w", name, err)
			}
			end.Addr = string(link.Attrs().HardwareAddr)
			if !slices.ContainsFunc(directions, func(dir cluster.Direction) bool { return dir.From == name }) {
				return nil
			}
			d.plain[name] = true
			if err := plainFrames(true); err != nil {
				return fmt.Errorf("making node %s send frames that can be delayed: %w", name, err)
			}
			return nil
		})
		switch {
		case err == nil:
			plan.Ends[name] = end
		case isPinned(d.layout, name, []string{"net"}):
			return plan, err
		default: // it is just going away, and its end here as well
			delete(plan.Ends, name)
		}
	}
	for _, dir := range directions {
		_, from := plan.Ends[dir.From]
		_, to := plan.Ends[dir.To]
		if from && to {
			plan.Directions = append(plan.Directions, dir)
		}
	}
	return plan, nil
}

func (d *delayer) inNode(name string, fn func() error) error {
	return onThread(func() error {
		if err := enter(d.layout, name, []string{"net"}); err != nil {
			return err
		}
		return fn()
	})
}

// release lets nodes whose frames are not held any more send as they like again.
func (d *delayer) release(plan delayPlan) {
	for name := range d.plain {
		if slices.ContainsFunc(plan.Directions, func(dir cluster.Direction) bool { return dir.From == name }) {
			continue
		}
		if err := d.inNode(name, func() error { return plainFrames(false) }); err != nil { // it is gone, most likely
			d.log.Info("a node goes on sending plain frames", "node", name, "err", err)
		}
		delete(d.plain, name)
	}
}

// plainFrames makes the kernel finish what a node sends before it leaves the node: otherwise links within a machine carry 64 KiB at
// once, without checksums, and a packet socket would lose how such a thing is to be taken apart. Without checksums by the
// "hardware" Linux turns off all that builds upon them: segmentation of TCP, UDP and tunnels.
func plainFrames(on bool) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("opening a socket to change the link: %w", err)
	}
	defer e.Close()
	have, err := e.Features(nodeLink)
	if err != nil {
		return fmt.Errorf("asking for the features of the link: %w", err)
	}
	change := map[string]bool{}
	for _, f := range []string{"tx-checksum-ip-generic", "tx-checksum-sctp"} {
		if is, known := have[f]; known && is == on {
			change[f] = !on
		}
	}
	if len(change) == 0 {
		return nil
	}
	if err := e.Change(nodeLink, change); err != nil {
		return fmt.Errorf("changing the features of the link: %w", err)
	}
	return nil
}

// packetSocket sees nothing yet.
func packetSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a packet socket, which delays need (CONFIG_PACKET of the kernel): %w", err)
	}
	// Before Linux 4.20 one would see one's own.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("choosing what a packet socket sees, which delays need (Linux 4.20): %w", err)
	}
	return fd, nil
}

// openNodeLink sees what a node sends, as far as the filter lets it through, and what is written to it the node receives. The thread is
// in the bridge's namespace.
func openNodeLink(index int, filter []bpf.RawInstruction) (*os.File, error) {
	fd, err := packetSocket()
	if err != nil {
		return nil, err
	}
	code := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		code[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("choosing what is seen at a node's link: %w", err)
	}
	// More than is allowed to others; the usual room is better than none.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBuffer)
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listening at a node's link: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

// start carries what the plan says until close.
func (d *delayer) start(plan delayPlan) error {
	ctx, stop := context.WithCancel(context.Background())
	d.stop, d.done = stop, &sync.WaitGroup{}
	d.lines, d.taps, d.lost = map[[2]string]*delayline.Line{}, map[string]*os.File{}, map[string]uint64{}
	err := onThread(func() error {
		if err := enter(d.layout, switchName, bridgeKinds); err != nil {
			return err
		}
		for _, dir := range plan.Directions {
			for _, name := range []string{dir.From, dir.To} {
				if d.taps[name] != nil {
					continue
				}
				filter, err := bpf.Assemble(otherwise(plan.undelayed(name)))
				if err != nil {
					return fmt.Errorf("choosing what is seen of node %s: %w", name, err)
				}
				tap, err := openNodeLink(plan.Ends[name].Index, filter)
				if err != nil {
					return fmt.Errorf("delaying what node %s says: %w", name, err)
				}
				d.taps[name] = tap
			}
		}
		return nil
	})
	if err != nil {
		return err // change closes
	}
	room := delayline.NewRoom(maxHeld)
	routes := map[string]*route{}
	for _, dir := range plan.Directions {
		to := d.taps[dir.To]
		line := delayline.New(time.Duration(dir.Delay.Delay), time.Duration(dir.Delay.Jitter), room, func(frame []byte) error {
			_, err := to.Write(frame)
			if down(err) {
				return nil // there is nobody to lose it
			}
			return err
		})
		d.lines[[2]string{dir.From, dir.To}] = line
		d.done.Go(func() { line.Run(ctx) })
		if routes[dir.From] == nil {
			routes[dir.From] = &route{to: map[string]*delayline.Line{}}
		}
		routes[dir.From].add(plan.Ends[dir.To].Addr, line)
	}
	d.log.Info("delaying", "cluster", d.layout.cluster, "directions", len(plan.Directions))
	for name, r := range routes {
		d.done.Go(func() { d.read(ctx, name, d.taps[name], r) })
	}
	return nil
}

// down tells that a link is down, or gone: its node was stopped.
func down(err error) bool {
	return errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// read takes in what a node sends until ctx ends and the tap is closed.
func (d *delayer) read(ctx context.Context, name string, tap *os.File, r *route) {
	buf := make([]byte, 64<<10)
	for {
		n, err := tap.Read(buf)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return
		case down(err): // told once
			continue
		default:
			d.log.Error("a node is not heard any more", "node", name, "err", err)
			return
		}
		if lines := r.lines(buf[:n]); len(lines) > 0 {
			frame := bytes.Clone(buf[:n])
			for _, l := range lines {
				l.Put(frame)
			}
		}
	}
}

// undelayed are the addresses of those who hear a node at once.
func (p delayPlan) undelayed(from string) []string {
	addrs := map[string]bool{p.Bridge: true}
	for _, end := range p.Ends {
		addrs[end.Addr] = true
	}
	for _, dir := range p.Directions {
		if dir.From == from {
			delete(addrs, p.Ends[dir.To].Addr)
		}
	}
	return slices.Sorted(maps.Keys(addrs))
}

// otherwise is a filter for what is not to these addresses: the kernel keeps no copy of the rest, for which there may be no room.
func otherwise(addrs []string) []bpf.Instruction {
	// From the scratch memory, because loads from packets become long programs, and there is a limit for those (net.core.optmem_max).
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 2}, bpf.StoreScratch{Src: bpf.RegA, N: 0},
		bpf.LoadAbsolute{Off: 2, Size: 4}, bpf.StoreScratch{Src: bpf.RegA, N: 1},
	}
	for _, a := range addrs {
		out = append(out,
			bpf.LoadScratch{Dst: bpf.RegA, N: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32([]byte(a[2:])), SkipTrue: 3},
			bpf.LoadScratch{Dst: bpf.RegA, N: 0},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16([]byte(a))), SkipTrue: 1},
			bpf.RetConstant{Val: 0},
		)
	}
	return append(out, bpf.RetConstant{Val: math.MaxUint32})
}

// route is where the frames of one node go that are delayed.
type route struct {
	all []*delayline.Line
	to  map[string]*delayline.Line // to single nodes, by their addresses
}

const macLen = 6

func (r *route) add(addr string, l *delayline.Line) {
	r.all = append(r.all, l)
	r.to[addr] = l
}

// lines are those a frame goes down that has passed the filter. What is for many, or for an address that is no node's, goes to all, as
// from a bridge that does not know where somebody is.
func (r *route) lines(frame []byte) []*delayline.Line {
	if len(frame) < 2*macLen+2 {
		return nil
	}
	if to := r.to[string(frame[:macLen])]; to != nil {
		return []*delayline.Line{to}
	}
	return r.all
}

// close ends all delaying, and waits for that.
func (d *delayer) close() {
	if d.stop == nil {
		return
	}
	d.stop()
	for _, t := range d.taps {
		_ = t.Close()
	}
	d.done.Wait()
	d.stop, d.done, d.lines, d.taps, d.lost, d.plan = nil, nil, nil, nil, nil, delayPlan{}
}

// tick says when to tell again.
func (d *delayer) tick() <-chan time.Time {
	if d.stop == nil {
		return nil
	}
	return time.After(time.Second)
}

// tell writes how the delays fare, if that has changed.
func (d *delayer) tell() error {
	for name, t := range d.taps {
		if c, err := t.SyscallConn(); err == nil {
			_ = c.Control(func(fd uintptr) {
				if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
					d.lost[name] += uint64(st.Drops) // since the last time
				}
			})
		}
	}
	now := linkState{PID: os.Getpid(), Links: d.heard, Problem: d.problem}
	for _, delay := range d.heard.Delays {
		s := cluster.Delayed{Delay: delay, Problem: d.problem}
		from := map[string]bool{}
		for _, dir := range d.plan.Directions {
			if dir.Delay == delay {
				s.Dropped += d.lines[[2]string{dir.From, dir.To}].Lost()
				from[dir.From] = true
			}
		}
		for name := range from { // it is not known for whom they were
			s.Dropped += d.lost[name]
		}
		now.Delayed = append(now.Delayed, s)
	}
	if reflect.DeepEqual(now, d.last) && fileExists(d.layout.links()) {
		return nil
	}
	b, err := json.Marshal(now)
	if err == nil {
		err = durable.WriteFile(d.layout.links(), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("telling how delayed links fare: %w", err)
	}
	d.last = now
	return nil
}
