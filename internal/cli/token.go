package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/token"
)

// defaultTTL is how long a token can be used when nothing else is said: for as long as it takes to carry it to a
// machine, with a night in between.
const defaultTTL = 24 * time.Hour

func newTokenCmd(deps Deps) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Create, list and revoke the tokens with which machines join this cluster",
		Long: "A token lets machines join: it tells them which cluster is the right one, and the cluster that they may. It is\n" +
			"needed once; nodes that have joined keep their own credentials, and stay when it expires or is revoked.",
	}
	cmd.AddCommand(newTokenCreateCmd(deps, runTokenCreate), newTokenLsCmd(deps, runTokenLs), newTokenRevokeCmd(deps, runTokenRevoke))
	return cmd
}

type tokenCreateOptions struct {
	deps        Deps
	role        string
	description string
	ttl         time.Duration
	format      printer.Format
}

func newTokenCreateCmd(deps Deps, runF func(context.Context, tokenCreateOptions) error) *cobra.Command {
	o := tokenCreateOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a token, and print it",
		Long: "Prints a token on stdout. It is seen this once: the cluster keeps what is needed to recognise it, and nothing\n" +
			"from which it could be made again.",
		Example: "  k1s token create\n  k1s token create --ttl 1h --description 'edge, building 7' > token",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().StringVar(&o.role, "role", string(token.Agent), "what machines become with it: agent, or server, which gets the cluster's keys")
	cmd.Flags().StringVar(&o.description, "description", "", "for whom or what it is, as the list shows it")
	cmd.Flags().DurationVar(&o.ttl, "ttl", defaultTTL, "how long it can be used; 0 is for ever")
	cmd.Flags().VarP(&o.format, "output", "o", "output format; the table is the token alone")
	return cmd
}

func runTokenCreate(ctx context.Context, o tokenCreateOptions) error {
	role, err := token.ParseRole(o.role)
	if err != nil {
		return err
	}
	if o.ttl < 0 {
		return errs.Hint(errs.New(errs.Usage, "a token cannot be valid for %s", o.ttl), "give --ttl a time such as 1h, or 0 for ever")
	}
	t, err := control.NewClient(o.deps.Paths().ControlSocket()).CreateToken(ctx, control.TokenRequest{Role: string(role), Description: o.description, TTL: o.ttl})
	if err != nil {
		return err
	}
	err = printer.Print(o.deps.Streams.Out, o.format, t, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, t.Text)
		return err
	})
	if err == nil && o.format == printer.Table {
		until := "for ever"
		if !t.Expires.IsZero() {
			until = "until " + t.Expires.Local().Format(time.DateTime)
		}
		fmt.Fprintf(o.deps.Streams.ErrOut, "\nvalid %s; write it to a file on the machine that is to join, and run there:\n  k1s %s --server %s --token-file FILE\n", until, role, t.Server)
	}
	return err
}

type tokenLsOptions struct {
	deps   Deps
	format printer.Format
}

func newTokenLsCmd(deps Deps, runF func(context.Context, tokenLsOptions) error) *cobra.Command {
	o := tokenLsOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List tokens, without what makes them work", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runTokenLs(ctx context.Context, o tokenLsOptions) error {
	all, err := control.NewClient(o.deps.Paths().ControlSocket()).Tokens(ctx)
	if err != nil {
		return err
	}
	return printer.Print(o.deps.Streams.Out, o.format, all, func(w io.Writer) error {
		var rows [][]string
		for _, t := range all {
			rows = append(rows, tokenRow(t, time.Now()))
		}
		return printer.Columns(w, []string{"ID", "ROLE", "AGE", "EXPIRES IN", "DESCRIPTION"}, rows)
	})
}

func tokenRow(t control.Token, now time.Time) []string {
	if t.Problem != "" {
		return []string{t.ID, "", "", "", t.Problem}
	}
	left := "never"
	switch {
	case t.Record.Expired(now):
		left = "expired"
	case !t.Expires.IsZero():
		left = printer.Age(t.Expires.Sub(now))
	}
	return []string{t.ID, string(t.Role), printer.Age(now.Sub(t.Created)), left, t.Description}
}

type tokenRevokeOptions struct {
	deps Deps
	ids  []string
}

func newTokenRevokeCmd(deps Deps, runF func(context.Context, tokenRevokeOptions) error) *cobra.Command {
	o := tokenRevokeOptions{deps: deps}
	return &cobra.Command{
		Use: "revoke ID…", Aliases: []string{"rm", "delete"}, Short: "Revoke tokens; nodes that joined with them stay",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errs.Hint(errs.New(errs.Usage, "say which token to revoke"), "see: k1s token ls")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.ids = args
			return runF(cmd.Context(), o)
		},
	}
}

func runTokenRevoke(ctx context.Context, o tokenRevokeOptions) error {
	c := control.NewClient(o.deps.Paths().ControlSocket())
	var failed []error
	for _, id := range o.ids {
		// Who has the token at hand may give it as it is.
		if t, err := token.Parse(id); err == nil {
			id = t.ID
		}
		err := c.RevokeToken(ctx, id)
		if errs.Is(err, errs.NotRunning) || ctx.Err() != nil { // it would be the same for all
			return errors.Join(append(failed, err)...)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(o.deps.Streams.ErrOut, "token %s is revoked\n", id)
	}
	return errors.Join(failed...)
}
