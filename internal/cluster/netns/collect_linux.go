package netns

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// Kill implements cluster.Killer.
func (p *Provider) Kill(ctx context.Context, name, node string) error {
	unlock, err := p.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	return p.wipeNode(p.layout(name), node)
}

// Logs implements cluster.LogCollector.
func (p *Provider) Logs(_ context.Context, name string) ([]cluster.LogFile, error) {
	l := p.layout(name)
	if !fileExists(l.stateDir()) && !fileExists(l.runDir()) {
		return nil, errs.New(errs.NotFound, "there is no cluster %q", name)
	}
	var out []cluster.LogFile
	add := func(pattern string, call func(path string) string) error {
		files, err := filepath.Glob(pattern)
		for _, f := range files {
			if st, err := os.Lstat(f); err == nil && st.Mode().IsRegular() {
				out = append(out, cluster.LogFile{Name: call(f), Path: f})
			}
		}
		return err
	}
	nodes := p.nodeNames(l)
	err := add(l.log("*")+"*", func(f string) string { // of first processes, and of the switch
		base := filepath.Base(f)
		if node, rest, _ := strings.Cut(base, "."); slices.Contains(nodes, node) {
			return filepath.Join(node, "daemon."+rest)
		}
		return base
	})
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		below := func(dir, as string) func(string) string {
			return func(f string) string { return filepath.Join(n, as, strings.TrimPrefix(f, dir)) }
		}
		logs, pods, etc := filepath.Join(l.nodeVar(n), "lib/k1s/log"), filepath.Join(l.nodeVar(n), "log/pods"), l.nodeEtc(n)
		for _, err := range []error{
			add(filepath.Join(logs, "*.log*"), below(logs, "")),
			add(filepath.Join(pods, "*/*/*.log*"), below(pods, "pods")),
			add(filepath.Join(etc, "*.yaml"), below(etc, "etc")),
			add(filepath.Join(etc, "config.d/*.yaml"), below(etc, "etc")),
		} {
			if err != nil {
				return nil, err
			}
		}
	}
	// What was asked of the API may hold anything.
	return slices.DeleteFunc(out, func(f cluster.LogFile) bool { return strings.HasPrefix(filepath.Base(f.Path), "audit") }), nil
}
