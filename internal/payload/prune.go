package payload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

var idPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Prune removes unpacked payloads under root that nothing needs: not the current one, not the ones in
// keep (IDs), none that is held (see Unpack), and none from which a process runs or which a process has mounted. It returns
// the IDs it removed. What cannot be removed does not keep the others from being removed; the errors are joined.
// Of others' processes those of this PID namespace and the ones below it are seen.
func Prune(ctx context.Context, root string, keep ...string) ([]string, error) {
	if old, err := superseded(root, keep); err != nil || len(old) == 0 {
		return nil, err // without waiting for somebody who unpacks
	}
	unlock, err := lock(ctx, filepath.Join(root, lockName))
	if err != nil {
		return nil, fmt.Errorf("removing old payloads under %s: %w", root, err)
	}
	defer unlock()
	old, err := superseded(root, keep)
	if err != nil || len(old) == 0 {
		return nil, err
	}
	var removed []string
	var errList []error
	// First who holds them: who lets go has started what he wanted to start, and that is seen afterwards.
	old = slices.DeleteFunc(old, func(id string) bool {
		held, err := isHeld(filepath.Join(root, id))
		if err != nil {
			errList = append(errList, fmt.Errorf("removing old payload: finding out whether it is held: %w", err))
		}
		return held || err != nil
	})
	used, err := inUse(ctx, root, old)
	if err != nil {
		return nil, fmt.Errorf("removing old payloads: finding out who uses them: %w", err)
	}
	for _, id := range old {
		if used[id] {
			continue
		}
		// Renamed first: a half-removed payload must not look like a complete one.
		doomed := filepath.Join(root, tempMark+"old-"+id)
		err := os.Rename(filepath.Join(root, id), doomed)
		if err == nil {
			err = os.RemoveAll(doomed)
		}
		if err != nil {
			errList = append(errList, fmt.Errorf("removing old payload: %w", err))
			continue
		}
		removed = append(removed, id)
	}
	return removed, errors.Join(errList...)
}

// superseded are the payloads under root that are neither current nor to be kept.
func superseded(root string, keep []string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing was ever unpacked here
	}
	if err != nil {
		return nil, fmt.Errorf("removing old payloads: %w", err)
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return !e.IsDir() || !idPattern.MatchString(e.Name()) })
	if len(entries) == 0 {
		return nil, nil
	}
	cur, err := os.Readlink(filepath.Join(root, current))
	if err != nil {
		// Without knowing which one is current none is known to be old.
		return nil, fmt.Errorf("removing old payloads: finding the current one: %w", err)
	}
	var old []string
	for _, e := range entries {
		if e.Name() != filepath.Base(cur) && !slices.Contains(keep, e.Name()) {
			old = append(old, e.Name())
		}
	}
	return old, nil
}
