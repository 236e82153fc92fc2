package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/encryption"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/wait"
)

const (
	// askMetrics is how often the API server is asked whether it has loaded its encryption configuration. It looks
	// at the file every five seconds, and its metrics are a few hundred kilobytes.
	askMetrics = 2 * time.Second
	// loadTime is after how long without it something is wrong, and told.
	loadTime = time.Minute
	// goOnAfter is how long a change pauses that could not go on.
	goOnAfter = 5 * time.Second
	// providerArg is the API server's own argument; a user who sets it manages keys in another way, such as KMS.
	providerArg = "encryption-provider-config"
)

// secretsState is what the daemon knows of the encryption of Secrets; Daemon.mu guards it.
type secretsState struct {
	state     encryption.State
	kept      bool // there is a file with keys, or was when we started
	done, all int
	note      string
	wake      chan struct{}
}

// keysError is a file of keys that cannot be used.
type keysError struct {
	file string
	err  error
}

func (e *keysError) Error() string {
	return fmt.Sprintf("the keys that Secrets are encrypted with cannot be read from %s: %v", e.file, e.err)
}
func (e *keysError) Unwrap() error { return e.err }

// HealthCode is the code of this problem in package health.
func (e *keysError) HealthCode() string { return string(health.EncryptionKeys) }

// readKeys reads the state, and tells whether there is one. A missing file is the zero state, unless the API server's
// copy shows that keys have been there.
func readKeys(p paths.Paths) (encryption.State, bool, error) {
	bad := func(err error) error {
		return errs.Hint(&keysError{p.EncryptionKeys(), err}, "put %s back from a backup; k1s does not make new keys, because what the old ones encrypted could not be read any more", path.Dir(p.EncryptionKeys()))
	}
	b, err := os.ReadFile(p.EncryptionKeys())
	if errors.Is(err, os.ErrNotExist) {
		derived, e := os.ReadFile(p.EncryptionConfig())
		if e == nil && !bytes.Equal(derived, encryption.State{}.File()) {
			return encryption.State{}, false, bad(errors.New("it is gone"))
		}
		return encryption.State{}, false, nil
	}
	if err != nil {
		return encryption.State{}, false, bad(err)
	}
	s, err := encryption.Unmarshal(b)
	if err != nil {
		return encryption.State{}, false, bad(err)
	}
	return s, true, nil
}

// prepareEncryption writes the configuration an API server starts with. Only a cluster that has no database yet starts
// with a new key; an existing one is encrypted while it runs.
func (d *Daemon) prepareEncryption(in component.Input) error {
	s, kept, err := readKeys(in.Paths)
	if err != nil {
		return err
	}
	if want := in.Config.Spec.Secrets.Encryption; want != "" && !kept && !ownProviders(in) && !hasDatabase(in) && !in.Several {
		if s.Key, err = encryption.NewKey(encryption.Provider(want), time.Now(), rand.Reader); err != nil {
			return err
		}
		kept = true
	}
	d.mu.Lock()
	d.secrets = secretsState{state: s, kept: kept, wake: make(chan struct{}, 1)}
	d.mu.Unlock()
	return keep(in.Paths, s, kept)
}

// keep writes the keys, and then what an API server reads, so that a key is never used that is not kept.
func keep(p paths.Paths, s encryption.State, keys bool) error {
	if keys {
		if err := writeIfChanged(p.EncryptionKeys(), s.Marshal(), 0o600); err != nil {
			return fmt.Errorf("keeping the keys of Secrets: %w", err)
		}
	}
	if err := writeIfChanged(p.EncryptionConfig(), s.File(), 0o600); err != nil {
		return fmt.Errorf("writing the API server's encryption configuration: %w", err)
	}
	return durable.CleanTemp(path.Dir(p.EncryptionKeys()))
}

// hasDatabase tells that there may be Secrets already: of a database elsewhere nothing is known yet.
func hasDatabase(in component.Input) bool {
	dir := ""
	switch in.Config.Spec.Datastore.Endpoint {
	case "sqlite":
		dir = in.Paths.DB()
	case "etcd":
		dir = in.Paths.Etcd()
	default:
		return true
	}
	entries, err := os.ReadDir(dir)
	return err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0
}

// ownProviders tells that the user gives the API server an encryption configuration.
func ownProviders(in component.Input) bool {
	_, ok := in.Config.Spec.Components["kube-apiserver"].Args[providerArg]
	return ok
}

// watchEncryption tells when Secrets cannot be read, and does the changes that are asked for.
func (d *Daemon) watchEncryption(ctx context.Context) {
	d.mu.Lock()
	in, wake := d.in, d.secrets.wake
	d.mu.Unlock()
	if ownProviders(in) || d.sup.Wait(ctx, "kube-apiserver", component.Open) != nil {
		return
	}
	// It is not in the way of the start.
	_ = wait.Until(ctx, time.Second, "Secrets to be readable", d.secretsReadable)
	d.mu.Lock()
	changing := d.secrets.state.Change != nil
	d.mu.Unlock()
	if want := in.Config.Spec.Secrets.Encryption; want != "" && !changing && ctx.Err() == nil {
		if _, err := d.ChangeEncryption(ctx, control.EncryptionRequest{Action: string(encryption.Enable), Provider: want}); err != nil {
			d.log.Warn("secrets are not encrypted as configured", "err", err)
			d.reportStuck(err)
		}
	}
	for {
		for d.finishChange(ctx) != nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(goOnAfter):
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
	}
}

// undecryptable are parts of what upstream's providers say of an object they have no key for; other failures pass.
var undecryptable = []string{"transform", "tried to read encrypted data", "no matching"}

// secretsReadable asks for all of them, and returns an error where nothing is known yet.
func (d *Daemon) secretsReadable(ctx context.Context) error {
	err := d.client().Readable(ctx, "secrets")
	var st *kubeapi.StatusError
	switch {
	case err == nil:
		d.board.Report("secrets", nil)
	case errors.As(err, &st) && st.Code == http.StatusInternalServerError && slices.ContainsFunc(undecryptable, func(s string) bool { return strings.Contains(st.Message, s) }):
		d.log.Error("secrets cannot be read", "err", err)
		d.board.Report("secrets", []health.Problem{health.New(health.SecretsUnreadable, "Secrets in the database cannot be read: %v", err)})
	default:
		return err // it is starting
	}
	return nil
}

// finishChange goes on with the change there is, if any, to its end.
func (d *Daemon) finishChange(ctx context.Context) error {
	d.mu.Lock()
	s, p := d.secrets.state, d.in.Paths
	d.mu.Unlock()
	if s.Change == nil {
		return nil
	}
	// Somebody may have damaged the file meanwhile; going on would write it anew.
	if _, _, err := readKeys(p); err != nil {
		d.reportStuck(err)
		return err
	}
	err := encryption.Run(ctx, changer{d}, s)
	if ctx.Err() != nil {
		return err
	}
	d.reportStuck(err)
	if err != nil {
		d.log.Warn("the change of the encryption of secrets does not go on", "err", err)
		return err
	}
	d.log.Info("the encryption of secrets is changed", "action", string(s.Change.Action), "after", time.Since(s.Change.Since).Round(time.Second))
	return nil
}

func (d *Daemon) reportStuck(err error) {
	var problems []health.Problem
	note := ""
	if err != nil {
		problems, note = []health.Problem{health.FromError(err, health.EncryptionStuck, "")}, err.Error()
	}
	d.board.Report("encryption", problems)
	d.mu.Lock()
	d.secrets.note = note
	d.mu.Unlock()
}

func (d *Daemon) client() *kubeapi.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.api
}

// changer is this node as the World of a change.
type changer struct{ d *Daemon }

var _ encryption.World = changer{}

func (c changer) Keep(s encryption.State) error {
	if err := keep(c.d.o.Paths, s, true); err != nil {
		return err
	}
	c.d.mu.Lock()
	c.d.secrets.state, c.d.secrets.kept, c.d.secrets.done, c.d.secrets.all = s, true, 0, 0
	c.d.mu.Unlock()
	c.d.log.Info("encryption of secrets", "state", s.String())
	return nil
}

func (c changer) Loaded(ctx context.Context, file []byte) error {
	want := encryption.Hash(file)
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	return wait.Until(ctx, askMetrics, "the API server to load its encryption configuration", func(ctx context.Context) error {
		got, err := c.d.client().EncryptionConfig(ctx)
		if err == nil && got != want {
			err = errors.New("it looks at the file every few seconds")
		}
		c.note(err)
		return err
	})
}

func (c changer) Rewrite(ctx context.Context) (encryption.Check, error) {
	found := encryption.Check{}
	for _, resource := range encryption.Resources() {
		n, err := c.d.client().Rewrite(ctx, resource, func(done, all int) {
			c.d.mu.Lock()
			c.d.secrets.done, c.d.secrets.all, c.d.secrets.note = done, all, ""
			c.d.mu.Unlock()
		})
		if err != nil {
			return found, fmt.Errorf("writing %s again: %w", resource, err)
		}
		found.Objects += n.Objects
		found.Rewritten += n.Written
	}
	found.At = time.Now().UTC().Truncate(time.Second)
	return found, nil
}

func (c changer) note(err error) {
	note := ""
	if err != nil {
		note = err.Error()
	}
	c.d.mu.Lock()
	c.d.secrets.note = note
	c.d.mu.Unlock()
}

// encryptionProblems compares the files with what is known: both are written by the daemon alone.
func (d *Daemon) encryptionProblems() []health.Problem {
	d.mu.Lock()
	known, in := d.secrets, d.in
	d.mu.Unlock()
	if known.wake == nil || ownProviders(in) {
		return nil
	}
	b, err := os.ReadFile(in.Paths.EncryptionKeys())
	derived, derivedErr := os.ReadFile(in.Paths.EncryptionConfig())
	d.mu.Lock()
	changing := known.state.Change != nil || d.secrets.state.Change != nil
	d.mu.Unlock()
	switch {
	case changing: // the files are ahead of what is known
		return nil
	case known.kept && (err != nil || !bytes.Equal(b, known.state.Marshal())):
		return []health.Problem{health.New(health.EncryptionKeys, "the file with the keys of Secrets, %s, is not as k1s wrote it; what runs has the keys, a restart would not", in.Paths.EncryptionKeys())}
	case derivedErr != nil || !bytes.Equal(derived, known.state.File()):
		return []health.Problem{health.New(health.EncryptionKeys, "the API server's encryption configuration, %s, is not as k1s wrote it", in.Paths.EncryptionConfig()).
			Fix("restart k1s: it writes the file again from %s", in.Paths.EncryptionKeys())}
	}
	return nil
}

// Encryption implements control.Backend.
func (d *Daemon) Encryption(context.Context) (control.Encryption, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.encryptionKnown(); err != nil {
		return control.Encryption{}, err
	}
	return wireEncryption(d.secrets, d.in.Config.Spec.Secrets), nil
}

// encryptionKnown is an error where this node does not manage keys, or not yet; d.mu is held.
func (d *Daemon) encryptionKnown() error {
	switch {
	case d.secrets.wake == nil || d.api == nil:
		return errs.Hint(errs.New(errs.NotRunning, "the node is starting; nothing is known about its keys yet"), "try again when it runs: k1s status")
	case ownProviders(d.in):
		return errs.Hint(errs.New(errs.Unsupported, "the API server has an encryption configuration of your own: spec.components.kube-apiserver.args sets %s", providerArg),
			"change that file; the API server loads it within seconds")
	}
	return nil
}

// ChangeEncryption implements control.Backend.
func (d *Daemon) ChangeEncryption(ctx context.Context, r control.EncryptionRequest) (control.Encryption, error) {
	action := encryption.Action(r.Action)
	d.mu.Lock()
	err := d.encryptionKnown()
	in, before := d.in, d.secrets.state
	d.mu.Unlock()
	if err != nil {
		return control.Encryption{}, err
	}
	spec := in.Config.Spec.Secrets
	if action == encryption.Disable && spec.Encryption != "" {
		return control.Encryption{}, errs.Hint(errs.New(errs.Invalid, "cannot disable the encryption of Secrets: spec.secrets.encryption is %q, which would enable it at the next start", spec.Encryption),
			"remove it from the configuration, restart k1s, and disable it then")
	}
	newKey := func() (encryption.Key, error) {
		p := encryption.Provider(r.Provider)
		switch {
		case p != "":
		case spec.Encryption != "":
			p = encryption.Provider(spec.Encryption)
		case !before.Key.None():
			p = before.Key.Provider
		default:
			p = encryption.Secretbox
		}
		return encryption.NewKey(p, time.Now(), rand.Reader)
	}
	if next, err := before.Begin(action, time.Now().UTC(), newKey); err != nil {
		return control.Encryption{}, err
	} else if next.Change != before.Change {
		d.admitting.Lock() // until the change is kept
		defer d.admitting.Unlock()
		if err := d.alone(ctx, in, "changing the encryption of Secrets"); err != nil {
			return control.Encryption{}, err
		}
		// A change that begins with Secrets nobody can read would not end.
		if _, _, err := readKeys(in.Paths); err != nil {
			return control.Encryption{}, err
		}
		if err := d.client().Readable(ctx, "secrets"); err != nil {
			return control.Encryption{}, errs.Hint(fmt.Errorf("cannot %s the encryption of Secrets: %w", action, err), "every Secret has to be readable first; see: k1s status")
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next, err := d.secrets.state.Begin(action, time.Now().UTC().Truncate(time.Second), newKey)
	if err != nil {
		return control.Encryption{}, err
	}
	if next.Change != d.secrets.state.Change {
		if err := keep(in.Paths, next, true); err != nil {
			return control.Encryption{}, err
		}
		d.secrets.state, d.secrets.kept, d.secrets.note = next, true, ""
		select {
		case d.secrets.wake <- struct{}{}:
		default:
		}
	}
	return wireEncryption(d.secrets, spec), nil
}

func wireEncryption(s secretsState, spec config.Secrets) control.Encryption {
	out := control.Encryption{Enabled: !s.state.Key.None(), Configured: spec.Encryption, Resources: encryption.Resources()}
	for i, k := range s.state.Providers() {
		out.Keys = append(out.Keys, control.EncryptionKey{Provider: string(k.Kind()), Name: k.Name, Writes: i == 0})
	}
	if c := s.state.Change; c != nil {
		out.Enabled = !c.To.None()
		out.Change = &control.EncryptionChange{Action: string(c.Action), Stage: string(c.Stage), Key: c.To.Name, Since: c.Since, Done: s.done, All: s.all, Note: s.note}
	}
	if c := s.state.Checked; c != nil {
		out.Checked = &control.EncryptionChecked{At: c.At, Objects: c.Objects, Rewritten: c.Rewritten, Key: c.Key}
	}
	return out
}
