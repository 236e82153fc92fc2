package netns

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// cutTable is the table of the cluster's bridge that drops what crosses a cut.
const cutTable = "k1s-cuts"

// SetCuts implements cluster.Links.
func (p *Provider) SetCuts(ctx context.Context, name string, cuts []cluster.Cut) error {
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
	spec.Cuts = cuts
	if isPinned(l, switchName, bridgeKinds) { // a stopped cluster gets them when it is started
		if err := p.applyCuts(ctx, l, spec); err != nil {
			return err
		}
	}
	return writeRecord(l, spec)
}

// cutRules replaces the table by one with these cuts. Frames between nodes pass the bridge's forward hook, whatever is in
// them; what this machine says to a node does not.
func cutRules(cuts []cluster.Cut) string {
	var b strings.Builder
	// Made before it is deleted, so that deleting it cannot fail.
	fmt.Fprintf(&b, "add table bridge %[1]s\ndelete table bridge %[1]s\n", cutTable)
	if len(cuts) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "table bridge %s {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n", cutTable)
	for _, c := range cuts {
		if c.B == "" {
			fmt.Fprintf(&b, "\t\tiifname %q drop\n\t\toifname %q drop\n", c.A, c.A)
			continue
		}
		fmt.Fprintf(&b, "\t\tiifname %q oifname %q drop\n\t\tiifname %q oifname %q drop\n", c.A, c.B, c.B, c.A)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// applyCuts makes the bridge have the cuts of the spec.
func (p *Provider) applyCuts(ctx context.Context, l layout, spec cluster.Spec) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, p.opts.NFT, "-f", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(cutRules(spec.Cuts)), &out, &out
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
		return errs.Hint(fmt.Errorf("cutting links of cluster %s: %w: %s", spec.Name, err, strings.TrimSpace(out.String())),
			"the kernel needs nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE)")
	}
	return nil
}
