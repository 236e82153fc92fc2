package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inside opens connections in a node's network namespace. One thread of ours lives there until close.
type inside struct{ work chan func() }

// enter begins to live in the network namespace of a process.
func enter(pid int) (*inside, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("opening the node's network: %w", err)
	}
	defer f.Close()
	in, entered := &inside{work: make(chan func())}, make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		entered <- err
		if err != nil {
			return
		}
		for do := range in.work {
			do()
		}
	}()
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("entering the node's network: %w", err)
	}
	return in, nil
}

// dial is net.Dialer.DialContext in the namespace; addr is an address, not a name.
func (in *inside) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var (
		c    net.Conn
		err  error
		done = make(chan struct{})
	)
	in.work <- func() {
		defer close(done)
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
	}
	<-done
	return c, err
}

// listen accepts TCP connections in the namespace; addr is an address, not a name.
func (in *inside) listen(ctx context.Context, addr string) (net.Listener, error) {
	var (
		l    net.Listener
		err  error
		done = make(chan struct{})
	)
	in.work <- func() {
		defer close(done)
		var plain net.ListenConfig
		plain.SetMultipathTCP(false)
		l, err = plain.Listen(ctx, "tcp", addr)
	}
	<-done
	return l, err
}

func (in *inside) close() { close(in.work) }

// inotifyNeeded is what one node takes of the machine's inotify instances, with a margin. The kernel allows
// 128 for root unless fs.inotify.max_user_instances says otherwise, and a node without them does not start.
const inotifyNeeded = 45

// roomForNode tells whether another node would get the inotify instances it needs.
func roomForNode() bool {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range inotifyNeeded {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return false
		}
		fds = append(fds, fd)
	}
	return true
}

// forgetFile gives up what the page cache has of f.
func forgetFile(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
