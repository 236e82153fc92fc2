package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// unmount detaches a mount even when somebody still looks into it: nothing of ours runs any more.
func unmount(at string) error {
	err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // gone with one above it
	}
	return err
}

func removeTables(ctx context.Context, nft string, tables []string) error {
	if _, err := os.Stat(nft); err != nil {
		return nil // never unpacked, so nothing was ever made with it
	}
	var failed []error
	for _, t := range tables {
		// "destroy" would not fail on what is not there, but nft before 1.0.7 does not know it; adding first
		// makes deleting succeed.
		out, err := exec.CommandContext(ctx, nft, "add table "+t+"; delete table "+t).CombinedOutput()
		if err != nil {
			failed = append(failed, fmt.Errorf("removing nftables table %s: %w: %s", t, err, lastLine(string(out))))
		}
	}
	return errors.Join(failed...)
}

// stopUnit stops a unit of systemd and all that requires it; one that is not there is stopped.
func stopUnit(ctx context.Context, name string) error {
	if out, err := exec.CommandContext(ctx, "systemctl", "stop", name).CombinedOutput(); err != nil {
		return fmt.Errorf("stopping the systemd unit %s: %w: %s", name, err, lastLine(string(out)))
	}
	return nil
}
