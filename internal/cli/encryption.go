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
	"k1s.io/k1s/internal/printer"
)

type encryptionOptions struct {
	deps   Deps
	format printer.Format
}

func newEncryptionCmd(deps Deps) *cobra.Command {
	cmd := newEncryptionStatusCmd(deps, "encryption", runEncryption)
	cmd.Short = "Encrypt Secrets in the database; show, rotate or remove their key"
	cmd.Long = "Shows whether Secrets are encrypted in the database, with which key, and which change is on its way. Changes are\n" +
		"made while everything runs: nothing is restarted, and every Secret can be read and written all the time."
	cmd.AddCommand(newEncryptionStatusCmd(deps, "status", runEncryption))
	for _, c := range []struct{ action, short, long string }{
		{"enable", "Encrypt Secrets from now on, and those that are there",
			"Makes a key, lets the API server use it, and writes every Secret again so that it is encrypted."},
		{"rotate", "Replace the key, write every Secret with the new one, forget the old one",
			"Makes a new key, lets the API server use it, writes every Secret again with it, and removes the old key when\nnothing needs it any more."},
		{"disable", "Write Secrets unencrypted again, and forget the key",
			"Lets the API server write without a key, writes every Secret again, and removes the key."},
	} {
		cmd.AddCommand(newEncryptionChangeCmd(deps, c.action, c.short, c.long, runEncryptionChange))
	}
	return cmd
}

func newEncryptionStatusCmd(deps Deps, use string, runF func(context.Context, encryptionOptions) error) *cobra.Command {
	o := encryptionOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   use,
		Short: "Show whether Secrets are encrypted, the keys by name, and what is being changed",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runEncryption(ctx context.Context, o encryptionOptions) error {
	e, err := control.NewClient(o.deps.Paths().ControlSocket()).Encryption(ctx)
	if err != nil {
		return err
	}
	return printEncryption(o.deps.Streams.Out, o.format, e)
}

func printEncryption(w io.Writer, f printer.Format, e control.Encryption) error {
	return printer.Print(w, f, e, func(w io.Writer) error {
		var head strings.Builder
		switch {
		case e.Change != nil:
			fmt.Fprintf(&head, "%s: %s\n", e.Change.Action, progress(*e.Change))
		case e.Enabled:
			fmt.Fprintf(&head, "Secrets are encrypted in the database.\n")
		default:
			fmt.Fprintf(&head, "Secrets are not encrypted in the database.\n")
		}
		if c := e.Checked; c != nil && e.Change == nil {
			with := "without encryption"
			if c.Key != "" {
				with = "with the key " + c.Key
			}
			fmt.Fprintf(&head, "On %s all %d were found to be written %s: no other key is needed for them.\n", c.At.UTC().Format(time.DateTime), c.Objects, with)
		}
		if _, err := io.WriteString(w, head.String()+"\n"); err != nil {
			return err
		}
		var rows [][]string
		for _, k := range e.Keys {
			use, name := "reads", k.Name
			if k.Writes {
				use = "writes, reads"
			}
			if name == "" {
				name = "-"
			}
			rows = append(rows, []string{name, k.Provider, use})
		}
		if err := printer.Columns(w, []string{"KEY", "PROVIDER", "USE"}, rows); err != nil || len(e.Servers) == 0 {
			return err
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
		var servers [][]string
		for _, s := range e.Servers {
			state := "uses these keys"
			switch {
			case s.Error != "":
				state = "does not answer: " + s.Error
			case !s.Loaded:
				state = "has not loaded them yet"
			}
			servers = append(servers, []string{s.Name, state})
		}
		return printer.Columns(w, []string{"SERVER", "KEYS"}, servers)
	})
}

// progress is a change's stage for a person.
func progress(c control.EncryptionChange) string {
	to := "the key " + c.Key
	if c.Key == "" {
		to = "no key"
	}
	s := map[string]string{
		"adding":    "the API servers learn to read what is written with " + to,
		"switching": "the API servers learn to write with " + to,
		"rewriting": "every Secret is written again with " + to,
		"removing":  "the API servers forget what is not needed any more",
	}[c.Stage]
	if s == "" {
		s = c.Stage
	}
	if c.Leader != "" {
		s += ", led by " + c.Leader
	}
	if c.All > 0 {
		s += fmt.Sprintf(", %d of %d", c.Done, c.All)
	}
	if c.Note != "" {
		s += " (" + c.Note + ")"
	}
	return s
}

type encryptionChangeOptions struct {
	deps     Deps
	format   printer.Format
	action   string
	provider string
}

// askProgress is how often a change is asked how far it is.
const askProgress = 500 * time.Millisecond

func newEncryptionChangeCmd(deps Deps, action, short, long string, runF func(context.Context, encryptionChangeOptions) error) *cobra.Command {
	o := encryptionChangeOptions{deps: deps, format: printer.Table, action: action}
	cmd := &cobra.Command{
		Use:   action,
		Short: short,
		Long: long + "\n\nThe API server looks for new keys every few seconds; Secrets can be used all the time. When\n" +
			"this command is interrupted, or k1s is, the change goes on when k1s runs; the same command shows how far it is.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	if action != "disable" {
		cmd.Flags().StringVar(&o.provider, "provider", "", "how to encrypt: secretbox or aescbc; if empty as configured, or as now, or secretbox")
	}
	return cmd
}

func runEncryptionChange(ctx context.Context, o encryptionChangeOptions) error {
	if p := o.provider; p != "" && p != "secretbox" && p != "aescbc" {
		return errs.New(errs.Usage, "there is no provider %q: it is secretbox or aescbc", p)
	}
	c := control.NewClient(o.deps.Paths().ControlSocket())
	e, err := c.ChangeEncryption(ctx, control.EncryptionRequest{Action: o.action, Provider: o.provider})
	if err != nil {
		return err
	}
	if e.Change == nil {
		fmt.Fprintln(o.deps.Streams.ErrOut, "nothing is to be changed")
	}
	last := ""
	for e.Change != nil {
		if s := progress(*e.Change); s != last {
			fmt.Fprintln(o.deps.Streams.ErrOut, s)
			last = s
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(o.deps.Streams.ErrOut, "the change goes on; see: k1s encryption")
			return context.Cause(ctx)
		case <-time.After(askProgress):
		}
		if e, err = c.Encryption(ctx); err != nil {
			return errs.Hint(fmt.Errorf("asking how far the change is: %w", err), "it goes on when k1s runs; the same command shows how far it is")
		}
	}
	return printEncryption(o.deps.Streams.Out, o.format, e)
}
