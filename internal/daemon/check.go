package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/platform"
)

// Check runs the preflight checks without starting anything.
func Check(ctx context.Context, o Options) ([]health.Problem, error) {
	f, err := platform.DetectFacts(ctx, platform.FactsInput{
		DataDir: o.Paths.Data, NodeName: o.Config.Spec.Node.Name, NodeIP: o.Config.Spec.Node.IP, CgroupRoot: o.CgroupRoot,
	})
	if err != nil {
		return nil, fmt.Errorf("looking at this machine: %w", err)
	}
	programs, remove, err := checkPrograms(ctx, o)
	if err != nil {
		return nil, err
	}
	defer remove()
	in := component.Input{Config: o.Config, Paths: o.Paths, Facts: f, Payload: programs}
	running, err := runningPIDs(o.Paths)
	if err != nil {
		return nil, err
	}
	problems, err := preflight(ctx, in, running)
	if err != nil && len(health.Blocking(problems)) == 0 {
		return nil, err
	}
	return problems, nil
}

// checkPrograms names a directory with nft, which the checks run: the payload of this node, or, where nothing
// has been unpacked yet, a temporary one that remove removes. It is "" for a program without a payload.
func checkPrograms(ctx context.Context, o Options) (dir string, remove func(), err error) {
	keep := func() {}
	if _, err := os.Stat(path.Join(o.Paths.CurrentPayload(), "nft")); err == nil {
		return o.Paths.CurrentPayload(), keep, nil
	}
	p, err := payload.Open(o.Executable)
	if errors.Is(err, payload.ErrNone) {
		return "", keep, nil
	}
	if err != nil {
		return "", keep, err
	}
	dir, err = os.MkdirTemp("", "k1s-check-")
	if err != nil {
		return "", keep, fmt.Errorf("making a directory for the programs that check: %w", err)
	}
	temp := dir
	remove = func() { _ = os.RemoveAll(temp) } // at worst a few files are left where temporary files are
	dir, err = payload.Extract(ctx, p, dir, platform.AvailableMemory(), func(name string) bool {
		return name == "nft" || strings.HasPrefix(name, "nft.d/")
	})
	if err != nil {
		remove()
		return "", keep, err
	}
	return dir, remove, nil
}
