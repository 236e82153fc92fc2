package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
)

// numbers are the values of one cell, in the unit of its row.
type numbers []float64

func (n numbers) sorted() numbers {
	out := slices.Clone(n)
	sort.Float64s(out)
	return out
}

// quantile of the nearest rank; 0.5 is the median, the mean of the middle two when there are two.
func (n numbers) quantile(q float64) float64 {
	s := n.sorted()
	if len(s) == 0 {
		return 0
	}
	if q == 0.5 && len(s)%2 == 0 {
		return (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	return s[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}

// mostSamples is how many of very many values are kept.
const mostSamples = 1000

// spread is at most that many of the values, evenly out of their order, the least and the greatest among them: quantiles
// stay what they are.
func (n numbers) spread(most int) numbers {
	s := n.sorted()
	if len(s) <= most {
		return s
	}
	out := make(numbers, most)
	for i := range out {
		out[i] = s[i*(len(s)-1)/(most-1)]
	}
	return out
}

// ratio is b in terms of a; nothing when one of them is not known.
func ratio(a, b float64) string {
	if a <= 0 || b <= 0 {
		return ""
	}
	return figure(b/a) + "×"
}

// show writes the median, and how far the others are from it.
func (n numbers) show(unit string) string {
	if len(n) == 0 {
		return "–"
	}
	s := n.sorted()
	if len(s) == 1 {
		return figure(s[0]) + " " + unit
	}
	return fmt.Sprintf("%s %s (%s–%s)", figure(n.quantile(0.5)), unit, figure(s[0]), figure(s[len(s)-1]))
}

// figure has as many digits as mean something.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func (n numbers) times(f float64) numbers {
	out := make(numbers, len(n))
	for i, v := range n {
		out[i] = v * f
	}
	return out
}

// moment are the times, or the CPU seconds, at which starts reached a moment.
func (r *results) moment(kind, what, moment string) numbers {
	return r.starts(kind, what, func(s start) (float64, bool) { v, ok := s.At[moment]; return v, ok })
}

func (r *results) starts(kind, what string, value func(start) (float64, bool)) numbers {
	var out numbers
	for _, s := range r.Starts {
		if s.Kind == kind && s.What == what {
			if v, ok := value(s); ok {
				out = append(out, v)
			}
		}
	}
	return out
}

// idleOf is one value of the idle node of a kind; none where it was not measured.
func (r *results) idleOf(kind, what string, value func(idle) float64) numbers {
	for _, i := range r.Idle {
		if i.Kind == kind && i.What == what {
			return numbers{value(i)}
		}
	}
	return nil
}

// agentParts are the units a worker without control plane has, in grouped and in component isolation.
var agentParts = []string{"node", "containerd", "kubelet", "kube-proxy", "flannel", "images", "network-policy"}

// row is one line of the table of budgets.
type row struct {
	name, budget, then, unit string
	of                       func(kind string) numbers
	at                       float64 // which quantile counts; 0 is the median
}

func (r *results) rows() []row {
	seconds := func(what, moment string) func(string) numbers {
		return func(kind string) numbers { return r.moment(kind, what, moment) }
	}
	sample := func(name string, factor float64) func(string) numbers {
		return func(kind string) numbers { return numbers(r.Samples[kind+" "+name]).times(factor) }
	}
	memory := func(what string, value func(process) float64, parts ...string) func(string) numbers {
		return func(kind string) numbers {
			return r.idleOf(kind, what, func(i idle) float64 { return i.sum(value, parts...) })
		}
	}
	useful := func(kind string) numbers {
		return r.starts(kind, whatCold, func(s start) (float64, bool) {
			return max(s.At[mDNS], s.At[mRunning]), s.At[mDNS] > 0 && s.At[mRunning] > 0
		})
	}
	idleCPU := func(what string) func(string) numbers {
		return func(kind string) numbers { return r.idleOf(kind, what, func(i idle) float64 { return i.CPU }) }
	}
	// Of fewer than twenty values the 95th percentile is the greatest, and says nothing.
	twenty := func(of func(string) numbers) func(string) numbers {
		return func(kind string) numbers {
			if n := of(kind); len(n) >= 20 {
				return n
			}
			return nil
		}
	}
	onlyK1s := func(of func(string) numbers) func(string) numbers {
		return func(kind string) numbers {
			if kind != k1s {
				return nil
			}
			return of(kind)
		}
	}
	return []row{
		{"the file", "70 MB", "60 MB", "MB", onlyK1s(func(string) numbers { return numbers{float64(r.FileBytes) / 1e6} }), 0},
		{"cold start to node Ready", "2 s", "1.5 s", "s", seconds(whatCold, mReady), 0},
		{"… to cluster DNS answering and first pod Running", "4 s", "2.5 s", "s", useful, 0},
		{"… to cluster DNS answering", "", "", "s", seconds(whatCold, mDNS), 0},
		{"… to first pod Running", "", "", "s", seconds(whatCold, mRunning), 0},
		{"first run ever, with unpacking, to node Ready", "4 s", "3 s", "s", seconds(whatFirst, mReady), 0},
		{"warm start to node Ready", "1.5 s", "1 s", "s", seconds(whatWarm, mReady), 0},
		{"server without worker to /readyz", "", "", "s", seconds(whatServer, mReadyz), 0},
		{"new pod to Ready, median", "0.7 s", "0.4 s", "s", sample("pod", 1), 0},
		{"new pod to Ready, p95", "", "", "s", twenty(sample("pod", 1)), 0.95},
		{"anonymous memory, no add-ons", "180 MB", "130 MB", "MB", memory(idleBare, anon), 0},
		{"anonymous memory, with add-ons, their pods and shims", "220 MB", "160 MB", "MB", memory(idleFull, anon), 0},
		{"PSS, no add-ons", "270 MB", "200 MB", "MB", memory(idleBare, pss), 0},
		{"PSS, with add-ons, their pods and shims", "330 MB", "250 MB", "MB", memory(idleFull, pss), 0},
		{"agent's part of anonymous memory", "70 MB", "50 MB", "MB", memory(idleBare, anon, agentParts...), 0},
		{"idle CPU, no add-ons", "2.5 %", "1 %", "% of a core", idleCPU(idleBare), 0},
		{"idle CPU, with add-ons", "", "", "% of a core", idleCPU(idleFull), 0},
		{"consistent LIST after a write, median", "10 ms", "", "ms", sample("list", 1000), 0},
		{"consistent LIST after a write, slowest", "", "", "ms", sample("list", 1000), 1},
		{"cluster of a server and four agents, command to all Ready and DNS", "20 s", "", "s", sample(sampleFive, 1), 0},
		{"one more agent, command to Ready", "", "", "s", sample(sampleAdded, 1), 0},
		{"… its daemon's start to Ready, joining included", "", "", "s", sample(sampleJoined, 1), 0},
		{"cluster of three servers and two agents, command to all Ready and DNS", "20 s", "", "s", sample(sampleServers, 1), 0},
		{"one more server, command to Ready", "", "", "s", sample(sampleServerAdded, 1), 0},
		{"the server that leads is killed, to the first write acknowledged after it, median", "", "", "s", sample(sampleFailOver, 1), 0},
		{"… p95", "", "", "s", twenty(sample(sampleFailOver, 1)), 0.95},
		{"anonymous memory of an idle agent", "70 MB", "50 MB", "MB", sample(sampleMemory, 1), 0},
		{"`k1s version`", "100 ms", "30 ms", "ms", sample("version", 1000), 0},
		{"`k1s status`", "100 ms", "30 ms", "ms", sample("status", 1000), 0},
	}
}

// report prints the tables, and writes everything where it was asked for.
func (b *bench) report() error {
	r := &b.results
	w := &strings.Builder{}
	m := r.Machine
	fmt.Fprintf(w, "%s, %d CPUs (%s), %s, kernel %s, %s. %s; %d runs of each start, idle %s after %s; took %s.\n\n",
		r.Began.UTC().Format("2006-01-02"), m.CPUs, m.CPU, m.Memory, m.Kernel, m.OS, m.Go, r.Runs, r.Window, r.Settle, r.Took)
	fmt.Fprintf(w, "| | budget | then | k1s | baseline | ratio |\n|---|---|---|---|---|---|\n")
	for _, row := range r.rows() {
		mine, plain := row.of(k1s), row.of(baseline)
		q := cmp.Or(row.at, 0.5)
		ratio, show := "", func(n numbers) string {
			if row.at > 0 && len(n) > 0 {
				return figure(n.quantile(row.at)) + " " + row.unit
			}
			return n.show(row.unit)
		}
		if len(mine) > 0 && len(plain) > 0 && mine.quantile(q) > 0 {
			ratio = fmt.Sprintf("%.1f×", plain.quantile(q)/mine.quantile(q))
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", row.name, limit(row.budget), limit(row.then), show(mine), show(plain), ratio)
	}
	r.timeline(w)
	r.isolation(w)
	r.memory(w)
	r.writesTable(w)
	r.networkTable(w)
	r.policiesTable(w)
	for _, f := range r.Failures {
		fmt.Fprintf(w, "\nNot measured: %s\n", f)
	}
	if _, err := os.Stdout.WriteString(w.String()); err != nil {
		return err
	}
	if b.o.json == "" {
		return nil
	}
	return writeJSON(b.o.json, r)
}

func limit(s string) string {
	if s == "" {
		return ""
	}
	return "≤ " + s
}

// timeline shows the medians of everything seen during the cold starts, in order.
func (r *results) timeline(w *strings.Builder) {
	if len(r.moment(k1s, whatCold, mReady)) == 0 {
		return
	}
	fmt.Fprintf(w, "\nTimeline of cold starts: medians of seconds, and in brackets of CPU seconds the node had used. "+
		"Moments are seen from outside, components are as the daemon tells.\n\n| | k1s | baseline |\n|---|---|---|\n")
	cpu := func(kind, moment string) numbers {
		return r.starts(kind, whatCold, func(s start) (float64, bool) { v, ok := s.CPU[moment]; return v, ok })
	}
	type line struct {
		name, mine, plain string
		at                float64
	}
	var lines []line
	for _, m := range []string{mPort, mReadyz, mRegistered, mReady, mCreated, mRunning, mDNS} {
		cell := func(kind string) string {
			at := r.moment(kind, whatCold, m)
			if len(at) == 0 {
				return "–"
			}
			return fmt.Sprintf("%s (%s)", figure(at.quantile(0.5)), figure(cpu(kind, m).quantile(0.5)))
		}
		lines = append(lines, line{"**" + m + "**", cell(k1s), cell(baseline), r.moment(k1s, whatCold, m).quantile(0.5)})
	}
	names := map[string]bool{}
	for _, s := range r.Starts {
		for c := range s.Components {
			names[c] = true
		}
	}
	for c := range maps.Keys(names) {
		at := r.starts(k1s, whatCold, func(s start) (float64, bool) { v, ok := s.Components[c]; return v, ok })
		if len(at) > 0 {
			lines = append(lines, line{c, figure(at.quantile(0.5)), "", at.quantile(0.5)})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	for _, l := range lines {
		fmt.Fprintf(w, "| %s | %s | %s |\n", l.name, l.mine, l.plain)
	}
	foreign := r.starts(k1s, whatCold, func(s start) (float64, bool) { return s.Foreign, true })
	fmt.Fprintf(w, "\nOther work on the machine during k1s' cold starts, and our own looking: %s; during the baseline's: %s.\n", foreign.show("cores"),
		r.starts(baseline, whatCold, func(s start) (float64, bool) { return s.Foreign, true }).show("cores"))
}

// isolation compares the modes, without add-ons.
func (r *results) isolation(w *strings.Builder) {
	if len(r.moment(k1s, "isolation none", mReady)) == 0 {
		return
	}
	fmt.Fprintf(w, "\n| isolation, without add-ons | cold start to node Ready | CPU until then | anonymous | PSS | idle CPU |\n|---|---|---|---|---|---|\n")
	for _, mode := range isolations {
		what := "isolation " + mode
		in := what
		if mode == "grouped" {
			in = idleBare
		}
		cpu := r.starts(k1s, what, func(s start) (float64, bool) { v, ok := s.CPU[mReady]; return v, ok })
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", mode, r.moment(k1s, what, mReady).show("s"), cpu.show("s"),
			r.idleOf(k1s, in, func(i idle) float64 { return i.sum(anon) }).show("MB"),
			r.idleOf(k1s, in, func(i idle) float64 { return i.sum(pss) }).show("MB"),
			r.idleOf(k1s, in, func(i idle) float64 { return i.CPU }).show("%"))
	}
}

// memory shows who uses what on the idle nodes.
func (r *results) memory(w *strings.Builder) {
	for _, i := range r.Idle {
		fmt.Fprintf(w, "\n| idle: %s, %s | processes | anonymous MB | PSS MB | CPU %% |\n|---|---|---|---|---|\n", i.Kind, i.What)
		parts := map[string]int{}
		for _, p := range i.Processes {
			parts[p.Part]++
		}
		for _, name := range slices.Sorted(maps.Keys(parts)) {
			fmt.Fprintf(w, "| %s | %d | %s | %s | %s |\n", name, parts[name], figure(i.sum(anon, name)), figure(i.sum(pss, name)), figure(i.sum(cpuOf, name)))
		}
		fmt.Fprintf(w, "| all | %d | %s | %s | %s |\n", len(i.Processes), figure(i.sum(anon)), figure(i.sum(pss)), figure(i.CPU))
	}
}
