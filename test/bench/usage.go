package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/platform"
)

// process is what one process used.
type process struct {
	PID int `json:"pid"`
	// Part is what it belongs to: a unit or component, "daemon", "shims", or "pods".
	Part    string  `json:"part"`
	Command string  `json:"command"`
	AnonMB  float64 `json:"anonMB"`
	PSSMB   float64 `json:"pssMB"`
	FileMB  float64 `json:"fileMB"` // the part of PSS that files stand behind
	CPU     float64 `json:"cpu"`    // in % of one core, over the window
}

// idle is what an idle node used.
type idle struct {
	Kind      string    `json:"kind"`
	What      string    `json:"what"`
	Processes []process `json:"processes"`
	CPU       float64   `json:"cpu"` // of all, % of one core, from the cgroup
	Foreign   float64   `json:"foreign"`
	Seconds   float64   `json:"seconds"`
}

// sum adds up the processes of the given parts; none means all.
func (i idle) sum(value func(process) float64, parts ...string) float64 {
	total := 0.0
	for _, p := range i.Processes {
		if len(parts) == 0 || slices.Contains(parts, p.Part) {
			total += value(p)
		}
	}
	return total
}

func anon(p process) float64  { return p.AnonMB }
func pss(p process) float64   { return p.PSSMB }
func cpuOf(p process) float64 { return p.CPU }

// measureIdle measures nodes side by side: each has its own copy of the programs, so they share no memory.
func measureIdle(ctx context.Context, nodes []*node, whats []string, settle, window time.Duration) ([]idle, error) {
	if !sleep(ctx, settle) {
		return nil, context.Cause(ctx)
	}
	type before struct {
		cpu   time.Duration
		procs map[int]time.Duration
	}
	first := make([]before, len(nodes))
	busy0, at := busy(), time.Now()
	for i, n := range nodes {
		pids, err := n.pids()
		if err != nil {
			return nil, err
		}
		first[i] = before{cpuTime(n.cgroup()), map[int]time.Duration{}}
		for _, pid := range pids {
			first[i].procs[pid] = scheduled(pid)
		}
	}
	if !sleep(ctx, window) {
		return nil, context.Cause(ctx)
	}
	elapsed := time.Since(at).Seconds()
	foreign := (busy() - busy0).Seconds()
	out := make([]idle, len(nodes))
	for i, n := range nodes {
		used := (cpuTime(n.cgroup()) - first[i].cpu).Seconds()
		foreign -= used
		out[i] = idle{Kind: n.kind, What: whats[i], CPU: 100 * used / elapsed, Seconds: elapsed}
		pids, err := n.pids()
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			p, ok, err := n.look(pid)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			if was, ok := first[i].procs[pid]; ok {
				p.CPU = 100 * (scheduled(pid) - was).Seconds() / elapsed
			}
			out[i].Processes = append(out[i].Processes, p)
		}
	}
	for i := range out {
		out[i].Foreign = max(0, foreign/elapsed)
	}
	return out, nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// pids are all processes of the node.
func (n *node) pids() ([]int, error) {
	cg, err := platform.DetectCgroups()
	if err != nil {
		return nil, err
	}
	return cg.At(n.cgroup()).Procs()
}

// look tells what a process is and uses; false when it is not one of the node's: the sandbox's own first
// process, the daemon of the baseline, or one that has just ended.
func (n *node) look(pid int) (process, bool, error) {
	argv := strings.Split(text(fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00")
	p := process{PID: pid, Command: strings.TrimSpace(strings.Join(argv[:min(3, len(argv))], " "))}
	base := path.Base(argv[0])
	arg := ""
	if len(argv) > 1 {
		arg = argv[1]
	}
	switch {
	case argv[0] == "":
		return p, false, nil // gone, or a kernel thread
	case strings.Contains(text(fmt.Sprintf("/proc/%d/cgroup", pid)), "/kubepods"):
		p.Part = "pods"
	case base == "containerd-shim-runc-v2":
		p.Part = "shims"
	case base == "k1s-kube" && arg == "group" && len(argv) > 2:
		p.Part = strings.TrimSuffix(path.Base(argv[2]), ".json")
	case base == "k1s-kube":
		p.Part = arg
	case base == "k1s" && (arg == "cluster" || n.kind == baseline):
		return p, false, nil
	case base == "k1s":
		p.Part = "daemon"
	default:
		p.Part = base
	}
	kb, err := rollup(pid)
	if errors.Is(err, os.ErrNotExist) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("measuring process %d: %w", pid, err)
	}
	p.AnonMB, p.PSSMB, p.FileMB = kb["Anonymous:"]/1024, kb["Pss:"]/1024, kb["Pss_File:"]/1024
	return p, len(kb) > 0, nil
}

// rollup is what a process' memory consists of, in kB, by the kernel's names.
func rollup(pid int) (map[string]float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	kb := map[string]float64{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) == 3 && w[2] == "kB" {
			kb[w[0]], _ = strconv.ParseFloat(w[1], 64)
		}
	}
	return kb, sc.Err()
}

// scheduled is the time all threads of a process have run, in the kernel's own fine count.
func scheduled(pid int) time.Duration {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0
	}
	var total time.Duration
	for _, t := range tasks {
		ran, _, _ := strings.Cut(text(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name())), " ")
		n, _ := strconv.ParseInt(ran, 10, 64)
		total += time.Duration(n)
	}
	return total
}
