package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/ledger"
	"k1s.io/k1s/internal/paths"
)

// sysctls a worker needs, with the value: pods are routed.
var sysctls = map[string]string{"net.ipv4.ip_forward": "1"}

func sysctlFile(name string) string {
	return path.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
}

// enableForwarding sets what a worker needs and remembers what it was before.
func enableForwarding(ctx context.Context, in component.Input) error {
	if in.Config.Spec.NoWorker {
		return nil
	}
	for name, want := range sysctls {
		old, err := os.ReadFile(sysctlFile(name))
		if errors.Is(err, os.ErrNotExist) {
			continue // not a system with sysctls
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if strings.TrimSpace(string(old)) == want {
			continue
		}
		e := ledger.Entry{Kind: ledger.Sysctl, Name: name, Old: strings.TrimSpace(string(old))}
		if err := ledger.Open(in.Paths.Ledger()).Add(ctx, e); err != nil {
			return fmt.Errorf("remembering %s: %w", name, err)
		}
		if err := os.WriteFile(sysctlFile(name), []byte(want), 0o644); err != nil {
			return errs.Hint(fmt.Errorf("cannot route pods: setting %s: %w", name, err), "set it yourself: sysctl -w %s=%s", name, want)
		}
	}
	return nil
}

// restoreSysctls puts back what enableForwarding has changed.
func restoreSysctls(ctx context.Context, p paths.Paths) error {
	l := ledger.Open(p.Ledger())
	entries, err := l.List(ctx)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		if e.Kind != ledger.Sysctl {
			continue
		}
		if err := os.WriteFile(sysctlFile(e.Name), []byte(e.Old), 0o644); err != nil {
			failed = append(failed, fmt.Errorf("setting %s back to %s: %w", e.Name, e.Old, err))
			continue
		}
		failed = append(failed, l.Remove(ctx, e.Kind, e.Name))
	}
	return errors.Join(failed...)
}
