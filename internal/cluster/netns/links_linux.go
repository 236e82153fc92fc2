package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/wait"
)

// linkTable is the table of the cluster's bridge that drops what is not for the bridge to forward: what crosses a cut, and
// what the delayer carries.
const linkTable = "k1s-cuts"

func linksOf(s cluster.Spec) cluster.Links { return cluster.Links{Cuts: s.Cuts, Delays: s.Delays} }

// SetLinks implements cluster.LinkSetter.
func (p *Provider) SetLinks(ctx context.Context, name string, change func(cluster.Links) (cluster.Links, error)) error {
	unlock, err := p.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	l := p.layout(name)
	spec, err := readRecord(l)
	if err != nil {
		return err
	}
	old := linksOf(spec)
	want, err := change(old.Clone())
	if err != nil {
		return err
	}
	keep := func(links cluster.Links) error {
		spec.Cuts, spec.Delays = links.Cuts, links.Delays
		return writeRecord(l, spec)
	}
	if !isPinned(l, switchName, bridgeKinds) { // a stopped cluster gets them when it is started
		return keep(want)
	}
	rec, err := readProc(l.proc(switchName))
	if err != nil {
		return err
	}
	// A cluster without delays does without the switch here: that may be one of an older k1s, or dead.
	delayed := len(old.Delays)+len(want.Delays) > 0
	if delayed && !rec.alive() {
		if len(want.Delays) > 0 && !slices.Equal(old.Delays, want.Delays) {
			return errs.Hint(errs.New(errs.NotRunning, "the switch of cluster %s, which holds what is delayed, does not run", name), "run: k1s cluster start %s", name)
		}
		delayed = false
	}
	first := want
	if delayed {
		// While the delayer changes, the bridge carries neither what that carries now nor what it will: nothing arrives twice.
		first = cluster.Links{Cuts: slices.Concat(old.Cuts, want.Cuts), Delays: slices.Concat(old.Delays, want.Delays)}
	}
	// Who is killed from here on leaves links that carry nothing and that nobody asked for.
	if err := os.WriteFile(l.changing(), nil, 0o600); err != nil {
		return err
	}
	if err := p.setRules(ctx, l, first); err != nil {
		if ctx.Err() == nil { // nft does all or nothing; one that was killed may have done either
			err = errors.Join(err, os.Remove(l.changing()))
		}
		return err
	}
	asked, answers := false, false
	err = keep(want)
	if err == nil && delayed {
		asked = true
		err = p.tellSwitch(ctx, l, rec, want)
		answers = !errs.Is(err, errs.Timeout)
		if err == nil {
			err = p.setRules(ctx, l, want)
		}
	}
	if err == nil {
		return os.Remove(l.changing())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*hearing)
	defer cancel()
	back := keep(old)
	switch {
	case asked && answers && rec.alive():
		back = errors.Join(back, p.tellSwitch(ctx, l, rec, old))
	case asked:
		back = errors.Join(back, rec.signal(unix.SIGHUP)) // should it listen one day
	}
	if back = errors.Join(back, p.setRules(ctx, l, old)); back != nil {
		return errs.Hint(errors.Join(err, fmt.Errorf("going back to the links of before: %w", back)), "run: k1s cluster start %s", name)
	}
	return errors.Join(err, os.Remove(l.changing()))
}

// mendLinks makes links be as the record says where changing them broke off: the bridge, and the switch if it runs.
func (p *Provider) mendLinks(ctx context.Context, l layout, spec cluster.Spec) error {
	if !fileExists(l.changing()) {
		return nil
	}
	if err := p.setRules(ctx, l, linksOf(spec)); err != nil {
		return err
	}
	rec, err := readProc(l.proc(switchName))
	if err == nil && rec.alive() {
		err = rec.signal(unix.SIGHUP)
	}
	if err != nil {
		return err
	}
	return os.Remove(l.changing())
}

// tellSwitch makes the switch read the record and waits until it has done what that says about links.
func (p *Provider) tellSwitch(ctx context.Context, l layout, rec procRecord, want cluster.Links) error {
	if err := os.Remove(l.links()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := rec.signal(unix.SIGHUP); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, hearing, fmt.Errorf("it did not within %s", hearing))
	defer cancel()
	err := wait.Until(ctx, 5*time.Millisecond, "the switch of cluster "+l.cluster+" to change links", func(context.Context) error {
		st, err := readLinkState(l)
		switch {
		case err == nil && st.PID == rec.PID && st.Equal(want) && st.Problem != "":
			return wait.Permanent(errors.New(st.Problem))
		case err == nil && st.PID == rec.PID && st.Equal(want):
			return nil
		case !rec.alive():
			return wait.Permanent(errors.New("it has ended"))
		}
		return errors.New("it has not heard yet")
	})
	if errs.Is(err, errs.Timeout) {
		err = errs.Hint(err, "is it of an older k1s, which knows no delays? run: k1s cluster stop %[1]s && k1s cluster start %[1]s", l.cluster)
	}
	return errs.WithLog(err, l.log(switchName))
}

// linkState is what the switch tells of links.
type linkState struct {
	PID           int `json:"pid"` // of the switch
	cluster.Links     // as it has heard of them
	// Delayed are those of Links, and how they fare.
	Delayed []cluster.Delayed `json:"delayed,omitempty"`
	// Problem: they are not delayed but carry nothing.
	Problem string `json:"problem,omitempty"`
}

func readLinkState(l layout) (st linkState, err error) {
	b, err := os.ReadFile(l.links())
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	return st, err
}

// notTold is the problem of a delay of which the switch has told nothing.
const notTold = "the switch has not told yet"

// Delayed implements cluster.LinkSetter.
func (p *Provider) Delayed(_ context.Context, name string) ([]cluster.Delayed, error) {
	l := p.layout(name)
	spec, err := readRecord(l)
	if err != nil || len(spec.Delays) == 0 || !isPinned(l, switchName, bridgeKinds) {
		return nil, err
	}
	rec, err := readProc(l.proc(switchName))
	if err != nil {
		return nil, err
	}
	problem := ""
	st, err := readLinkState(l)
	switch {
	case !rec.alive():
		problem = "the switch does not run, so nothing gets through; run: k1s cluster start " + name
	case err != nil || st.PID != rec.PID:
		problem = notTold
	case fileExists(l.changing()):
		problem = "links are being changed, or a command that did so broke off: run: k1s cluster start " + name
	}
	out := make([]cluster.Delayed, len(spec.Delays))
	for i, d := range spec.Delays {
		out[i] = cluster.Delayed{Delay: d, Problem: problem}
		if problem != "" {
			continue
		}
		out[i].Problem = notTold
		if j := slices.IndexFunc(st.Delayed, func(o cluster.Delayed) bool { return o.Delay == d }); j >= 0 {
			out[i] = st.Delayed[j]
		}
	}
	return out, nil
}

// linkRules replaces the table by one for these links. Frames between nodes pass the bridge's forward hook, whatever is in
// them; what this machine says to a node does not. What is delayed is taken from the node's link by the delayer, before the bridge
// has it. That carries nothing to and from the way out, which is not a node.
func linkRules(links cluster.Links) string {
	var b strings.Builder
	// Made before it is deleted, so that deleting it cannot fail.
	fmt.Fprintf(&b, "add table bridge %[1]s\ndelete table bridge %[1]s\n", linkTable)
	if len(links.Cuts)+len(links.Delays) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "table bridge %s {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n", linkTable)
	between := func(e cluster.Ends) {
		fmt.Fprintf(&b, "\t\tiifname %q oifname %q drop\n\t\tiifname %q oifname %q drop\n", e.A, e.B, e.B, e.A)
	}
	for _, c := range links.Cuts {
		if c.B == "" {
			fmt.Fprintf(&b, "\t\tiifname %q drop\n\t\toifname %q drop\n", c.A, c.A)
			continue
		}
		between(c.Ends)
	}
	for _, d := range links.Delays {
		if d.B == "" {
			fmt.Fprintf(&b, "\t\tiifname %q oifname != %q drop\n\t\tiifname != %q oifname %q drop\n", d.A, tapName, tapName, d.A)
			continue
		}
		between(d.Ends)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// setRules makes the bridge leave alone what these links say.
func (p *Provider) setRules(ctx context.Context, l layout, links cluster.Links) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, p.opts.NFT, "-f", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(linkRules(links)), &out, &out
	err := onThread(func() error {
		if err := enter(l, switchName, bridgeKinds); err != nil {
			return err
		}
		return cmd.Start() // a child lives where the thread that starts it lives
	})
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return errs.Hint(fmt.Errorf("changing links of cluster %s: %w: %s", l.cluster, err, strings.TrimSpace(out.String())),
			"the kernel needs nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE)")
	}
	return nil
}
