package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/rotation"
)

type certsRotateOptions struct {
	deps                        Deps
	format                      printer.Format
	dryRun, status, finish, yes bool
	dropTokens, abort           bool
	dir                         string
	keep                        time.Duration
}

func newCertsRotateCmd(deps Deps, runF func(context.Context, certsRotateOptions) error) *cobra.Command {
	o := certsRotateOptions{deps: deps, format: printer.Table, keep: rotation.DefaultKeep}
	cmd := &cobra.Command{
		Use:   "rotate-ca",
		Short: "Replace the cluster's certificate authorities while everything runs",
		Long: "Replaces the authorities of the cluster (the CA, the front proxy's, etcd's) and the key of service accounts. First every\n" +
			"node and every pod is told to trust the new ones too, then they sign, and later the old ones are not trusted any more.\n" +
			"The old CA vouches for the new one, so nodes that are away, tokens to join and kubeconfigs made before go on working:\n" +
			"kubeconfigs until the old one goes, nodes and tokens also after that. At each of the three steps the control plane\n" +
			"restarts once, which takes a second or two; pods are not touched. The old CA is trusted for ten minutes at least, and tokens\n" +
			"that the old key of service accounts has signed for a day, because running programs learn of the new ones by then. When this command is interrupted, or k1s is, the\n" +
			"replacement goes on when k1s runs. Several servers do it together: each step ends when all of them have taken it, one restarts at\n" +
			"a time, and every one of them can be asked, or told to finish it or to call it off.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.VarP(&o.format, "output", "o", "output format")
	f.BoolVar(&o.dryRun, "dry-run", false, "show what would be done")
	f.BoolVar(&o.status, "status", false, "show how far it is, and who is behind")
	f.BoolVar(&o.finish, "finish", false, "stop trusting the old ones now")
	f.BoolVar(&o.abort, "abort", false, "call it off; as long as the new ones do not sign")
	f.BoolVar(&o.yes, "yes", false, "do not ask")
	f.StringVar(&o.dir, "ca-dir", "", "take authorities of your own from this directory: ca.crt and ca.key, and if they are there\nfront-proxy-ca, etcd/ca, sa.key; what is not there is made")
	f.BoolVar(&o.dropTokens, "drop-tokens", false, "end the tokens of pods together with the old CA, not a day later; pods have to be started\nanew then, or are refused for up to an hour. For when the key of service accounts is in wrong hands")
	f.DurationVar(&o.keep, "trust-old", o.keep, "for how long the old ones are trusted beside the new ones")
	return cmd
}

func runCertsRotate(ctx context.Context, o certsRotateOptions) error {
	switch {
	case o.keep < 0:
		return errs.New(errs.Usage, "the old CA cannot be trusted for %s", o.keep)
	case o.abort && (o.finish || o.dropTokens || o.dir != ""):
		return errs.New(errs.Usage, "--abort calls a replacement off; give it alone")
	case o.status && (o.finish || o.abort || o.dryRun || o.dropTokens || o.dir != ""):
		return errs.New(errs.Usage, "--status only shows how far it is; give it alone")
	case o.finish && o.dir != "":
		return errs.New(errs.Usage, "--finish ends a replacement, and --ca-dir begins one; give one of them")
	}
	c := control.NewClient(o.deps.Paths().ControlSocket())
	s := o.deps.Streams
	if o.status {
		r, err := c.Rotation(ctx)
		if err != nil {
			return err
		}
		return printer.Print(s.Out, o.format, r, func(w io.Writer) error { return printRotation(w, r) })
	}
	req := control.RotateRequest{Keep: o.keep, Finish: o.finish, DropTokens: o.dropTokens, Abort: o.abort}
	if o.dir != "" {
		var err error
		if req.Dir, err = filepath.Abs(o.dir); err != nil {
			return err
		}
	}
	if o.dryRun || !o.yes {
		try := req
		try.DryRun = true
		r, err := c.RotateCA(ctx, try)
		if err != nil {
			return err
		}
		err = printer.Print(s.Out, o.format, r, func(w io.Writer) error {
			if o.finish || o.abort {
				return printRotation(w, r)
			}
			return printRotationPlan(w, r)
		})
		if err != nil || o.dryRun {
			return err
		}
		question := "Replace them?"
		if o.finish {
			question = "Stop trusting the old CA now?"
		}
		if o.finish && o.dropTokens {
			question = "Stop trusting the old CA now, and end the tokens of pods?"
		}
		if o.abort {
			question = "Call it off, and keep the old CA?"
		}
		if err := confirm(ctx, s, question); err != nil {
			return err
		}
	}
	r, err := c.RotateCA(ctx, req)
	if err != nil {
		return err
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(s.ErrOut, "note:", w)
	}
	if r, err = followRotation(ctx, o, c, r); err != nil {
		return err
	}
	return printer.Print(s.Out, o.format, r, func(w io.Writer) error { return printRotation(w, r) })
}

// followRotation tells how it goes on until there is nothing to wait for but the end of the time the old ones are trusted for.
func followRotation(ctx context.Context, o certsRotateOptions, c *control.Client, r control.Rotation) (control.Rotation, error) {
	last := ""
	for {
		hurry := o.finish || o.keep == 0
		rests := r.State.Stage == rotation.Overlapping && !hurry || r.State.Stage == rotation.Draining && !r.State.DropTokens
		if !r.State.Active() && r.Note == "" || rests && len(r.Behind) == 0 && r.Note == "" {
			return r, nil
		}
		if s := rotationProgress(r) + rotationWait(r); s != last {
			fmt.Fprintln(o.deps.Streams.ErrOut, s)
			last = s
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(o.deps.Streams.ErrOut, "the replacement goes on; see: k1s certs rotate-ca --status")
			return r, context.Cause(ctx)
		case <-time.After(askProgress):
		}
		next, err := c.Rotation(ctx)
		if err != nil {
			return r, errs.Hint(fmt.Errorf("asking how far the replacement is: %w", err), "it goes on when k1s runs; see: k1s certs rotate-ca --status")
		}
		r = next
	}
}

// rotationProgress is a stage for a person.
func rotationProgress(r control.Rotation) string {
	text := map[rotation.Stage]string{
		rotation.Trusting:    "everybody learns to trust the new CA beside the old one",
		rotation.Overlapping: "the new CA signs, and the old one is still trusted",
		rotation.Draining:    "the old CA is not trusted any more, and tokens of pods that the old key has signed are still good",
		rotation.Aborting:    "the replacement is called off, and everybody forgets the new CA",
		rotation.Removing:    "the old CA is forgotten",
	}[r.State.Stage]
	if text == "" && r.State.Aborted {
		return "the CA stays"
	}
	if text == "" {
		return "the CA is replaced"
	}
	if at := r.State.Since.Add(rotation.Settle); r.State.Stage == rotation.Overlapping && (r.State.Hurry || r.State.Until.Before(at)) {
		text += " until running programs know the new one, " + at.UTC().Format(time.TimeOnly) + " UTC"
	}
	if len(r.Behind) > 0 {
		text += "; not so far yet: " + strings.Join(r.Behind, ", ")
	}
	return text
}

// rotationWait is what comes behind the stage for somebody who watches: what the server waits for first, or why it does not know.
func rotationWait(r control.Rotation) string {
	switch {
	case !r.State.Active():
		return ""
	case r.Note != "":
		return " (" + r.Note + ")"
	case len(r.Waits) > 0:
		return " (" + r.Waits[0] + ")"
	}
	return ""
}

func printRotation(w io.Writer, r control.Rotation) error {
	st := r.State
	var head strings.Builder
	switch {
	case !st.Active() && st.Ended.IsZero():
		head.WriteString("The cluster's CA was never replaced.\n")
	case !st.Active():
		fmt.Fprintf(&head, "The cluster's CA was last replaced on %s.\n", day(st.Ended))
	default:
		fmt.Fprintf(&head, "The cluster's CA is being replaced, since %s: %s.\n", st.Began.UTC().Format(time.DateTime), rotationProgress(r))
		if st.Stage == rotation.Overlapping && !st.Hurry {
			fmt.Fprintf(&head, "The old one is trusted until %s UTC; sooner with: k1s certs rotate-ca --finish\n", st.Until.UTC().Format(time.DateTime))
			head.WriteString("Kubeconfigs made before work until then; the new one: k1s kubeconfig\n")
		}
		if st.Stage == rotation.Draining && !st.DropTokens {
			fmt.Fprintf(&head, "They are good until %s UTC; pods are given others by then.\n", st.TokensUntil().UTC().Format(time.DateTime))
		}
		if st.Stage == rotation.Removing || st.Stage == rotation.Draining {
			for _, name := range r.Away {
				fmt.Fprintf(&head, "%s is away, and trusts the old CA until it comes back\n", name)
			}
		}
		for _, wait := range r.Waits {
			fmt.Fprintf(&head, "waits: %s\n", wait)
		}
		if r.Note != "" {
			fmt.Fprintf(&head, "note: %s\n", r.Note)
		}
	}
	if _, err := io.WriteString(w, head.String()+"\n"); err != nil {
		return err
	}
	return errors.Join(printRotationServers(w, r), printRotationNodes(w, r))
}

// printRotationServers tells how far each of several servers is.
func printRotationServers(w io.Writer, r control.Rotation) error {
	if len(r.Servers) == 0 {
		return nil
	}
	var rows [][]string
	for _, s := range r.Servers {
		does := "waits for its turn"
		switch {
		case s.Error != "":
			does = "does not answer: " + s.Error
		case !s.Ready:
			does = "its control plane starts"
		case s.There:
			does = "there"
		case s.Turn:
			does = "goes over"
		}
		if s.Leader {
			does += ", leads"
		}
		rows = append(rows, []string{s.Name, orDash(s.Stage), does})
	}
	if err := printer.Columns(w, []string{"SERVER", "STAGE", "IS"}, rows); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func printRotationNodes(w io.Writer, r control.Rotation) error {
	var rows [][]string
	for _, n := range r.Nodes {
		role, ready := "agent", "away"
		if n.Server {
			role = "server"
		}
		if n.Ready {
			ready = "there"
		}
		rows = append(rows, []string{n.Name, role, ready, orUnknown(strings.Join(n.Trusts, ", ")), orUnknown(n.Issuer)})
	}
	return printer.Columns(w, []string{"NODE", "ROLE", "IS", "TRUSTS", "CERTIFICATES OF"}, rows)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}

func printRotationPlan(w io.Writer, r control.Rotation) error {
	var rows [][]string
	for _, a := range r.State.Authorities {
		by, ends := "made by k1s", "ten years from now"
		if a.Own {
			by, ends = "yours", day(a.NewEnds)
		}
		if a.OldEnds.IsZero() {
			ends = ""
		}
		rows = append(rows, []string{a.Name, orDash(day(a.OldEnds)), by, orDash(ends)})
	}
	if err := printer.Columns(w, []string{"AUTHORITY", "ENDS", "THE NEW ONE IS", "AND ENDS"}, rows); err != nil {
		return err
	}
	var b strings.Builder
	if len(r.Servers) > 1 {
		fmt.Fprintf(&b, "\n%d servers do it together: a step ends when all of them have taken it, and one control plane restarts at a time\n", len(r.Servers))
	}
	fmt.Fprintf(&b, "\n1. nodes that are there, and pods, learn to trust the new CA beside the old one; the control plane restarts\n"+
		"2. the new one signs: every certificate is issued anew, and the control plane restarts\n"+
		"3. after %s, or with --finish, and ten minutes at least, the old one is not trusted any more; the control plane restarts\n", printer.Age(max(r.State.Keep, rotation.Settle)))
	if r.State.DropTokens {
		b.WriteString("4. tokens that the old key of service accounts has signed end with it: pods are refused then until they are started anew, or for up to an hour\n\n")
	} else {
		b.WriteString("4. a day after step 2 at the earliest tokens that the old key of service accounts has signed end; the control plane restarts if that is later\n\n")
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(&b, "note: %s\n", warning)
	}
	if len(r.Warnings) > 0 {
		b.WriteString("\n")
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return printRotationNodes(w, r)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
