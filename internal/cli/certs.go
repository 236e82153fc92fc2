package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/printer"
)

type certsOptions struct {
	deps   Deps
	format printer.Format
}

func newCertsCmd(deps Deps, runF func(certsOptions) error) *cobra.Command {
	o := certsOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Show this node's certificates and how long they last; renew them; replace the cluster's CA",
		Long: "Shows every certificate of this node. Those that are no authority are renewed by themselves when a third of\n" +
			"their lifetime is left, at start and while the node runs; nothing is restarted for that.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return runF(o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "Show this node's certificates, who signed them, and how long they last", Args: noArgs, RunE: cmd.RunE}
	ls.Flags().VarP(&o.format, "output", "o", "output format")
	cmd.AddCommand(ls, newCertsRenewCmd(deps, runCertsRenew), newCertsRotateCmd(deps, runCertsRotate))
	return cmd
}

func runCerts(o certsOptions) error {
	all, err := pki.List(o.deps.Paths())
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return errs.Hint(errs.New(errs.NotRunning, "there are no certificates yet: this node has never started (%s)", o.deps.Paths().PKI()), "run: k1s server")
	}
	return printer.Print(o.deps.Streams.Out, o.format, all, func(w io.Writer) error {
		var rows [][]string
		for _, c := range all {
			left, expires := c.Problem, ""
			if c.Problem == "" {
				left, expires = "expired", c.NotAfter.UTC().Format(time.DateOnly)
				if d := time.Until(c.NotAfter); d > 0 {
					left = printer.Age(d)
				}
			}
			name, issuer := c.Name, strings.TrimPrefix(c.Issuer, "CN=")
			if c.Also > 0 {
				name += " (also trusted)"
			}
			if c.Authority && c.Issuer == c.Subject {
				issuer = "itself"
			}
			rows = append(rows, []string{name, expires, left, issuer, c.Subject})
		}
		return printer.Columns(w, []string{"NAME", "EXPIRES", "LEFT", "ISSUER", "SUBJECT"}, rows)
	})
}

type certsRenewOptions struct {
	deps Deps
	all  bool
}

func newCertsRenewCmd(deps Deps, runF func(context.Context, certsRenewOptions) error) *cobra.Command {
	o := certsRenewOptions{deps: deps}
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "Renew the certificates that are due now, or all of them; nothing is restarted",
		Long: "Lets the running node renew the certificates of whose lifetime less than a third is left, as it does by\n" +
			"itself every hour, or with --all every one that is no authority. The administrator's kubeconfig is\n" +
			"written anew with its certificate; copies of it that were made elsewhere go on working until theirs ends.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "renew all, whatever is left of their lifetime")
	return cmd
}

func runCertsRenew(ctx context.Context, o certsRenewOptions) error {
	r, err := control.NewClient(o.deps.Paths().ControlSocket()).Renew(ctx, control.RenewRequest{All: o.all})
	if err != nil {
		return err
	}
	for _, c := range r.Certificates {
		fmt.Fprintf(o.deps.Streams.Out, "%s: %s\n", c.Name, c.Reason)
	}
	for _, c := range r.Postponed {
		fmt.Fprintf(o.deps.Streams.ErrOut, "%s is not renewed (%s): the key of its authority is not on this machine\n", c.Name, c.Reason)
	}
	switch {
	case len(r.Certificates) == 0 && len(r.Postponed) == 0:
		fmt.Fprintln(o.deps.Streams.ErrOut, "no certificate is due")
	case len(r.Certificates) > 0:
		fmt.Fprintf(o.deps.Streams.ErrOut, "%d certificates are renewed\n", len(r.Certificates))
	}
	if !r.Next.IsZero() {
		fmt.Fprintf(o.deps.Streams.ErrOut, "the next is due on %s, and is renewed by itself\n", r.Next.UTC().Format(time.DateOnly))
	}
	return nil
}
