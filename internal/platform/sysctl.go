package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/ledger"
)

// Sysctl is a kernel setting something of ours needs.
type Sysctl struct {
	Name  string // "net.ipv4.ip_forward"
	Value string
	// AtLeast accepts any larger number too.
	AtLeast bool
}

func sysctlFile(root, name string) string {
	return path.Join(root, strings.ReplaceAll(name, ".", "/"))
}

// met tells whether what is set now is what is wanted.
func (s Sysctl) met(now string) bool {
	if now == s.Value {
		return true
	}
	have, err := strconv.ParseInt(now, 10, 64)
	want, err2 := strconv.ParseInt(s.Value, 10, 64)
	return s.AtLeast && err == nil && err2 == nil && have >= want
}

// SetSysctls sets what is not as wanted and remembers in l what it was before. Settings this kernel does
// not have are left out.
func SetSysctls(ctx context.Context, l *ledger.Ledger, want ...Sysctl) error {
	return setSysctls(ctx, "/proc/sys", l, want)
}

func setSysctls(ctx context.Context, root string, l *ledger.Ledger, want []Sysctl) error {
	var failed []error
	for _, s := range want {
		file := sysctlFile(root, s.Name)
		raw, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("reading %s: %w", s.Name, err))
			continue
		}
		now := strings.TrimSpace(string(raw))
		if s.met(now) {
			continue
		}
		if err := l.Add(ctx, ledger.Entry{Kind: ledger.Sysctl, Name: s.Name, Old: now}); err != nil {
			return fmt.Errorf("remembering %s: %w", s.Name, err)
		}
		if err := os.WriteFile(file, []byte(s.Value), 0o644); err != nil {
			failed = append(failed, errs.Hint(fmt.Errorf("setting %s to %s: %w", s.Name, s.Value, err), "set it yourself: sysctl -w %s=%s", s.Name, s.Value))
		}
	}
	return errors.Join(failed...)
}

// RestoreSysctls puts back what SetSysctls has changed, by what l remembers.
func RestoreSysctls(ctx context.Context, l *ledger.Ledger) error {
	return restoreSysctls(ctx, "/proc/sys", l)
}

func restoreSysctls(ctx context.Context, root string, l *ledger.Ledger) error {
	entries, err := l.List(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		if e.Kind != ledger.Sysctl {
			continue
		}
		if err := os.WriteFile(sysctlFile(root, e.Name), []byte(e.Old), 0o644); err != nil {
			failed = append(failed, fmt.Errorf("setting %s back to %s: %w", e.Name, e.Old, err))
			continue
		}
		failed = append(failed, l.Remove(ctx, e.Kind, e.Name))
	}
	return errors.Join(failed...)
}
