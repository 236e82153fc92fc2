package netns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
)

// tapName is the way out's end on the bridge, in the bridge's namespace.
const tapName = "egress"

// openTap makes the tap device through which a program on this machine speaks on the cluster's bridge. It
// lives as long as the file is open.
func openTap(l layout) (*os.File, error) {
	var tap *os.File
	err := onThread(func() error {
		if err := enter(l, switchName, bridgeKinds); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening /dev/net/tun for the way out: %w", err)
		}
		tap = os.NewFile(uintptr(fd), "/dev/net/tun")
		req, err := unix.NewIfreq(tapName)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return fmt.Errorf("making the tap device for the way out: %w", err)
		}
		return joinBridge()
	})
	if err != nil && tap != nil {
		tap.Close()
	}
	return tap, err
}

func joinBridge() error {
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("finding the cluster's bridge: %w", err)
	}
	link, err := netlink.LinkByName(tapName)
	if err == nil {
		err = netlink.LinkSetMTU(link, linkMTU)
	}
	if err == nil {
		err = netlink.LinkSetMaster(link, br)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("joining the way out to the cluster's bridge: %w", err)
	}
	return nil
}

// egressArgs is what the egress program is told; the tap is its file descriptor 3.
func egressArgs(s cluster.Spec) []string {
	deny := make([]string, len(s.Private))
	for i, p := range s.Private {
		deny[i] = p.String()
	}
	return []string{
		"--tap-fd=3", "--mtu=" + strconv.Itoa(linkMTU),
		"--gateway=" + netip.PrefixFrom(cluster.GatewayAddr(s.Subnet), s.Subnet.Bits()).String(),
		"--deny=" + strings.Join(deny, ","),
	}
}

// runEgress keeps the egress program running until ctx ends. On the first start of all it is not there yet:
// the node unpacks it.
func runEgress(ctx context.Context, log *slog.Logger, argv []string, tap *os.File) {
	backOff := minBackOff
	for ctx.Err() == nil {
		if !fileExists(argv[0]) {
			pause(ctx, minBackOff)
			continue
		}
		began := time.Now()
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env, cmd.Dir = nodeEnv(""), "/"
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		cmd.ExtraFiles = []*os.File{tap}
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		cmd.WaitDelay = 5 * time.Second
		err := cmd.Run()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			backOff = minBackOff
		}
		log.Error("the way out ended and is started again", "err", err, "after", backOff)
		pause(ctx, backOff)
		backOff = min(2*backOff, maxBackOff)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
