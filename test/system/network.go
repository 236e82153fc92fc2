//go:build system

package system

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// network is a network namespace in which the test has sockets and programs of its own.
type network struct{ file *os.File }

// newNetwork makes one with nothing in it; it goes with the test.
func newNetwork(t *testing.T) network {
	t.Helper()
	var n network
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		var err error
		n.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.file.Close() })
	return n
}

// networkOf is that of a process.
func networkOf(t *testing.T, pid int) network {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return network{f}
}

// network is that of the node.
func (c *Cluster) network(t *testing.T) network { t.Helper(); return networkOf(t, c.where().PID) }

// do runs fn inside. Sockets fn opens stay inside, processes it starts too.
func (n network) do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on a thread that ends with it.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		// The main thread cannot end. It is held here so that the other goroutine gets another one.
		done <- onThread(fn)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// listen opens a listening socket inside; it is closed with the test.
func (n network) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := n.do(func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// listenPacket is listen for UDP.
func (n network) listenPacket(t *testing.T, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	err := n.do(func() (err error) {
		c, err = net.ListenPacket("udp4", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dial connects from inside to an address, not a name.
func (n network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// start starts a program inside. It must not have a Pdeathsig: the thread that starts it ends at once.
func (n network) start(cmd *exec.Cmd) error { return n.do(cmd.Start) }
