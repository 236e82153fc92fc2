package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// machine is where it was measured.
type machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
	OS     string `json:"os"`
	Go     string `json:"go"`
}

func thisMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), OS: runtime.GOOS + "/" + runtime.GOARCH}
	m.CPU = field("/proc/cpuinfo", "model name")
	m.Kernel = strings.TrimSpace(text("/proc/sys/kernel/osrelease"))
	if name := strings.Trim(field("/etc/os-release", "PRETTY_NAME"), `"`); name != "" {
		m.OS = name + ", " + m.OS
	}
	if kb, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		m.Memory = fmt.Sprintf("%.1f GiB", float64(kb)/(1<<20))
	}
	return m
}

func text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// field is the first value called name in a file of "name : value" or "name=value" lines.
func field(path, name string) string {
	for line := range strings.Lines(text(path)) {
		i := strings.IndexAny(line, ":=")
		if i > 0 && strings.TrimSpace(line[:i]) == name {
			return strings.TrimSpace(line[i+1:])
		}
	}
	return ""
}

// userHz is the unit of /proc/stat: 100 on every Linux that Go runs on.
const userHz = 100

// busy is the CPU time all processes of the machine have used.
func busy() time.Duration {
	line, _, _ := strings.Cut(text("/proc/stat"), "\n")
	var ticks int64
	for i, f := range strings.Fields(line) {
		// cpu user nice system idle iowait irq softirq steal; the guest times behind them are in user already.
		if i >= 1 && i <= 8 && i != 4 && i != 5 {
			n, _ := strconv.ParseInt(f, 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / userHz
}

// The machine counts as quiet when nothing uses more than this share of one core for this long.
const (
	quietShare = 0.15
	quietFor   = time.Second
)

// quiet waits until the machine is, at most as long as given, and tells whether it is.
func quiet(ctx context.Context, patience time.Duration) bool {
	for deadline := time.Now().Add(patience); ; {
		from, at := busy(), time.Now()
		select {
		case <-ctx.Done():
			return false
		case <-time.After(quietFor):
		}
		if float64(busy()-from)/float64(time.Since(at)) < quietShare {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// cpuTime is what a cgroup and everything below it has used since it was made.
func cpuTime(cgroup string) time.Duration {
	for _, mount := range []string{"cpuacct", "cpu,cpuacct", "cpuacct,cpu"} {
		if n, err := strconv.ParseInt(strings.TrimSpace(text(filepath.Join("/sys/fs/cgroup", mount, cgroup, "cpuacct.usage"))), 10, 64); err == nil {
			return time.Duration(n)
		}
	}
	for line := range strings.Lines(text(filepath.Join("/sys/fs/cgroup", cgroup, "cpu.stat"))) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}
