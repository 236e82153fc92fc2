package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/payload"
)

// leastFree is what nodes insist on finding free (platform's check "disk").
const leastFree = 500 << 20

// Preflight implements cluster.Preflight.
func (p *Provider) Preflight(ctx context.Context, spec cluster.Spec, nodes []cluster.NodeSpec) error {
	if _, err := p.Features(ctx); err != nil {
		return err
	}
	if err := p.program(); err != nil {
		return err
	}
	all := []error{socketsFit(p.layout(spec.Name)), p.free(ctx, spec)}
	seen := map[string]bool{} // one volume may be for many nodes
	for _, n := range nodes {
		if err := startable(spec, n); err != nil && !seen[err.Error()] {
			seen[err.Error()] = true
			all = append(all, err)
		}
	}
	return errors.Join(append(all, p.space(spec))...)
}

// space tells whether there is enough on the disk of the clusters.
func (p *Provider) space(spec cluster.Spec) error {
	dir := p.opts.State
	for !fileExists(dir) && dir != "/" {
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("looking for space at %s: %w", dir, err)
	}
	need := int64(leastFree)
	program := p.opts.Program
	if spec.Program != "" {
		program = spec.Program
	}
	if carried, err := payload.Open(program); err == nil && !fileExists(filepath.Join(p.Payloads(), carried.ID)) {
		need += carried.Size()
	}
	const mb = 1 << 20
	if have := int64(st.Bavail) * int64(st.Bsize); have < need {
		return diskFull(fmt.Errorf("%d MB are free at %s, %d MB are needed: %w", have/mb, dir, need/mb, unix.ENOSPC))
	}
	return nil
}

// diskFull says what to do where an error is about that.
func diskFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.Hint(err, "free some space, or keep clusters elsewhere: %s=DIR", cluster.EnvRoot)
	}
	return err
}

// startable tells whether what a node needs of this machine is there.
func startable(spec cluster.Spec, node cluster.NodeSpec) error {
	var all []error
	if spec.Program != "" {
		if st, err := os.Stat(spec.Program); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			all = append(all, errs.Hint(errs.New(errs.Invalid, "the nodes of cluster %s run %s, and there is no such program", spec.Name, spec.Program), "put it there"))
		}
	}
	for _, v := range spec.VolumesOf(node) {
		if _, err := os.Stat(v.Host); err != nil {
			all = append(all, errs.Hint(errs.New(errs.Invalid, "volume %s: %w", v, err), "make it first: mkdir -p %s", v.Host))
		}
	}
	return errors.Join(all...)
}
