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

// RememberSysctls notes in l what settings are that somebody else is about to change, upstream's components, so
// that they can be put back. Settings this kernel does not have, or does not let us see, are left out.
func RememberSysctls(ctx context.Context, l *ledger.Ledger, names ...string) error {
	return rememberSysctls(ctx, "/proc/sys", l, names)
}

func rememberSysctls(ctx context.Context, root string, l *ledger.Ledger, names []string) error {
	var entries []ledger.Entry
	for _, name := range names {
		raw, err := os.ReadFile(sysctlFile(root, name))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		entries = append(entries, ledger.Entry{Kind: ledger.Sysctl, Name: name, Old: strings.TrimSpace(string(raw))})
	}
	if err := l.Add(ctx, entries...); err != nil {
		return fmt.Errorf("remembering kernel settings: %w", err)
	}
	return nil
}

// RestoreSysctls puts back what l remembers: what SetSysctls has changed, and what RememberSysctls has noted.
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
		if err := restoreSysctl(sysctlFile(root, e.Name), e.Old); err != nil {
			failed = append(failed, fmt.Errorf("setting %s back to %s: %w", e.Name, e.Old, err))
			continue
		}
		failed = append(failed, l.Remove(ctx, e.Kind, e.Name))
	}
	return errors.Join(failed...)
}

// restoreSysctl does not write what is as it was: it may be readable only. A setting that is not there has gone
// with its module.
func restoreSysctl(file, old string) error {
	now, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case strings.TrimSpace(string(now)) == old:
		return nil
	}
	return os.WriteFile(file, []byte(old), 0o644)
}
