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
// keep (IDs), and none from which a process runs or which a process has mounted. It returns the IDs it removed. What
// cannot be removed does not keep the others from being removed; the errors are joined.
func Prune(ctx context.Context, root string, keep ...string) ([]string, error) {
	unlock, err := lock(ctx, filepath.Join(root, lockName))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil // nothing was ever unpacked here
		}
		return nil, fmt.Errorf("removing old payloads under %s: %w", root, err)
	}
	defer unlock()
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("removing old payloads: %w", err)
	}
	cur, err := os.Readlink(filepath.Join(root, current))
	if err != nil {
		// Without knowing which one is current none is known to be old.
		return nil, fmt.Errorf("removing old payloads: finding the current one: %w", err)
	}
	keep = append(slices.Clone(keep), filepath.Base(cur))
	var old []string
	for _, e := range entries {
		if e.IsDir() && idPattern.MatchString(e.Name()) && !slices.Contains(keep, e.Name()) {
			old = append(old, e.Name())
		}
	}
	if len(old) == 0 {
		return nil, nil
	}
	used, err := inUse(ctx, root, old)
	if err != nil {
		return nil, fmt.Errorf("removing old payloads: finding out who uses them: %w", err)
	}
	var removed []string
	var errList []error
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
