package netns

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"k1s.io/k1s/internal/ledger"
	"k1s.io/k1s/internal/platform"
)

// limitsFile remembers which limits of the machine were raised. It is one for all clusters, wherever they
// keep their state, and like the limits it is gone after a reboot.
const limitsFile = "/run/k1s-limits.json"

// raiseLimits raises what all nodes of a machine share: a node watches some thirty files, and the kernel's
// default of 128 watchers for a user ends at the fourth node.
func raiseLimits(ctx context.Context) error {
	return platform.SetSysctls(ctx, ledger.Open(limitsFile),
		platform.Sysctl{Name: "fs.inotify.max_user_instances", Value: "8192", AtLeast: true})
}

// restoreLimits puts the limits back.
func restoreLimits(ctx context.Context) error {
	if err := platform.RestoreSysctls(ctx, ledger.Open(limitsFile)); err != nil {
		return err
	}
	for _, f := range []string{limitsFile, limitsFile + ".lock"} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
