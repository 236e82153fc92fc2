// Package rotation is how the certificate authorities of a running cluster are replaced: a state machine, what each stage
// waits for, and the file that keeps it. It signs nothing and touches nothing: what a stage needs done is asked of a World,
// which the daemon is; the files of a stage are package pki's. docs/adr/0029-replacing-authorities.md says why it is so.
package rotation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
)

// Stage of a replacement, in the order it goes through them.
type Stage string

// The stages. Each is safe to be in for any time, and to be begun again.
const (
	None        Stage = ""
	Trusting    Stage = "trusting"    // the old ones sign, and everybody learns to trust the new ones too
	Overlapping Stage = "overlapping" // the new ones sign, and the old ones are still trusted
	Draining    Stage = "draining"    // as removing, but tokens that the old key of service accounts has signed are still good
	Removing    Stage = "removing"    // the old ones are not trusted any more
	Aborting    Stage = "aborting"    // after trusting: the new ones are not trusted any more, and never sign
)

// CA is the name of the authority that nodes and users know: their Trusts and Issuer are about it.
const CA = "ca"

// DefaultKeep is for how long the old authorities are trusted beside the new ones: as long as the certificates of nodes
// last, so that a node that is away for less comes back as if nothing had been.
const DefaultKeep = 30 * 24 * time.Hour

// Settle is how long running programs may take until they have read an authority's file again: client-go 1.36 looks every
// five minutes, and a kubelet brings a ConfigMap into a pod within two. Before the old authority goes it is always waited for,
// and before the new one signs where what it signs is not accepted because of the old one.
const Settle = 10 * time.Minute

// TokensLast is for how long a kubelet at most gives a pod the same token of its service account: its token manager asks for
// another one after 80% of its time, and after 24 hours.
const TokensLast = 24 * time.Hour

// Authority is one that is replaced, or the key of service accounts.
type Authority struct {
	Name string `json:"name"`
	// Old and New are the SHA-256 of the public keys, base64url, as the pin in a token. New is "" where it is yet to be made.
	Old string `json:"old"`
	New string `json:"new,omitempty"`
	// OldEnds and NewEnds are when their certificates end; zero for keys.
	OldEnds time.Time `json:"oldEnds,omitzero"`
	NewEnds time.Time `json:"newEnds,omitzero"`
	// Own tells that the new one was brought by the user.
	Own bool `json:"own,omitempty"`
	// Below tells that the new one is below another authority, which is not trusted.
	Below bool `json:"below,omitempty"`
	// Chained tells that programs that trust only the old one accept what the new one signs.
	Chained bool `json:"chained"`
}

// isKey tells that it is no authority but the key of service accounts.
func (a Authority) isKey() bool { return a.OldEnds.IsZero() }

// State is all there is to know. The zero State is a cluster whose authorities were never replaced.
type State struct {
	// Number counts replacements, with the one on its way.
	Number int       `json:"number"`
	Stage  Stage     `json:"stage,omitempty"`
	Began  time.Time `json:"began,omitzero"`
	// Since is when the stage began.
	Since time.Time `json:"since,omitzero"`
	// Keep is for how long the old ones stay trusted, in nanoseconds, and Until what follows from it once it is known.
	Keep  time.Duration `json:"keep,omitempty"`
	Until time.Time     `json:"until,omitzero"`
	// Switched is since when the new ones sign.
	Switched time.Time `json:"switched,omitzero"`
	// Hurry tells that the user does not want to wait for Until.
	Hurry bool `json:"hurry,omitempty"`
	// DropTokens tells that the user does not want to wait for kubelets to give pods other tokens either.
	DropTokens  bool        `json:"dropTokens,omitempty"`
	Authorities []Authority `json:"authorities,omitempty"`
	// Aborted tells that the last one was called off.
	Aborted bool `json:"aborted,omitempty"`
	// Ended is when the last one was complete.
	Ended time.Time `json:"ended,omitzero"`
	// Serial is that of the Record it follows; 0 where there never was more than one server.
	Serial int64 `json:"serial,omitempty"`
}

// Active tells that there is something to do, or to wait for.
func (s State) Active() bool { return s.Stage != None }

// Epoch differs between any two stages of any two replacements. Programs that read authorities only when they start are
// started again when it changes. "" before the first replacement; the end of one changes nothing for them.
func (s State) Epoch() string {
	if s.Number == 0 {
		return ""
	}
	stage := s.Stage
	switch {
	case stage == None && s.Aborted:
		stage = Aborting
	case stage == None:
		stage = Removing
	}
	return fmt.Sprintf("%d-%s", s.Number, stage)
}

// TokensUntil is until when tokens that the old key of service accounts has signed are good; zero where they end with the
// old authorities.
func (s State) TokensUntil() time.Time {
	if s.DropTokens || s.Switched.IsZero() || !slices.ContainsFunc(s.Authorities, Authority.isKey) {
		return time.Time{}
	}
	return s.Switched.Add(TokensLast)
}

func (s State) String() string {
	if !s.Active() {
		return fmt.Sprintf("replaced %d times", s.Number)
	}
	return fmt.Sprintf("replacement %d is %s", s.Number, s.Stage)
}

// ca is that authority of the replacement on its way.
func (s State) ca() Authority {
	for _, a := range s.Authorities {
		if a.Name == CA {
			return a
		}
	}
	return Authority{}
}

// chained tells that nobody has to have learned of the new authorities for the switch.
func (s State) chained() bool {
	return !slices.ContainsFunc(s.Authorities, func(a Authority) bool { return !a.isKey() && !a.Chained })
}

// Begin is the state in which a replacement has begun. The error is of kind errs.Exists while there is one.
func (s State) Begin(all []Authority, keep time.Duration, now time.Time) (State, error) {
	if err := s.MayBegin(); err != nil {
		return s, err
	}
	if keep < 0 {
		return s, errs.New(errs.Usage, "the old CA cannot be trusted for %s", keep)
	}
	now = now.UTC().Truncate(time.Second)
	return State{Number: s.Number + 1, Stage: Trusting, Began: now, Since: now, Keep: keep, Authorities: all, Ended: s.Ended, Serial: s.Serial}, nil
}

// MayBegin is an error of kind errs.Exists while there is a replacement on its way.
func (s State) MayBegin() error {
	if !s.Active() {
		return nil
	}
	return errs.Hint(errs.New(errs.Exists, "the cluster's CA is being replaced already, since %s; its stage is %q", s.Began.Format(time.RFC3339), s.Stage), "%s", s.Sooner())
}

// Sooner tells a user how to come to the end of a stage.
func (s State) Sooner() string {
	switch s.Stage {
	case Overlapping:
		return "to stop trusting the old one now, on the server: k1s certs rotate-ca --finish"
	case Trusting:
		return "see for whom it waits: k1s certs rotate-ca --status; to call it off, on the server: k1s certs rotate-ca --abort"
	case Draining:
		return "it ends when the tokens of pods are of the new key; to end them now, which pods notice until they are started anew, on the server: k1s certs rotate-ca --finish --drop-tokens"
	}
	return "it goes on by itself; see: k1s certs rotate-ca --status"
}

// Finish is the state in which Until is not waited for, and with tokens the end of pods' tokens neither. Asking twice is no
// error; at a stage at which it cannot be done it is one of kind errs.Failure.
func (s State) Finish(tokens bool) (State, error) {
	switch s.Stage {
	case Overlapping, Draining:
		s.Hurry, s.DropTokens = true, s.DropTokens || tokens
		return s, nil
	case Removing:
		return s, nil
	case Aborting:
		return s, errs.Hint(errs.New(errs.Failure, "the replacement is called off, and the old CA stays"), "see: k1s certs rotate-ca --status")
	case Trusting:
		return s, errs.Hint(errs.New(errs.Failure, "the new CA does not sign yet, so the old one cannot go"), "see for whom it waits: k1s certs rotate-ca --status")
	}
	return s, errs.New(errs.NotFound, "no CA is being replaced")
}

// Abort is the state in which the replacement is called off. That can be done while nothing has been signed by the new ones,
// later the error is of kind errs.Failure. Asking twice is no error.
func (s State) Abort(now time.Time) (State, error) {
	switch s.Stage {
	case Aborting:
		return s, nil
	case Trusting:
		s.Stage, s.Since, s.Aborted = Aborting, now.UTC().Truncate(time.Second), true
		return s, nil
	case None:
		return s, errs.New(errs.NotFound, "no CA is being replaced")
	}
	return s, errs.Hint(errs.New(errs.Failure, "the new CA signs already, so the replacement cannot be called off"), "%s; another one brings other CAs after that", s.Sooner())
}

// Node is what is known of a node of the cluster.
type Node struct {
	Name   string
	Server bool
	// Present tells that it is Ready: it can be waited for. One that is away finds its way when it comes back.
	Present bool
	// Trusts are the pins of the CAs it has told it trusts, Issuer that of the CA its certificates are of. Empty is not known.
	Trusts []string
	Issuer string
}

// Facts are all there is to decide by.
type Facts struct {
	Now   time.Time
	Nodes []Node
	// Unpublished are the namespaces in which pods are still given another bundle than this stage's.
	Unpublished []string
	// Extended are the authorities whose old certificates aggregated API servers are still told to believe, by name, though
	// this stage's files do not have them any more.
	Extended []string
	// BehindAt is when a node that is there was last seen not to be where its stage wanted it; zero for not seen.
	BehindAt time.Time
}

// settled is when programs know what their node knows since the stage began, on the last node too: those on one that learned late have
// had no more time than it.
func settled(s State, f Facts) time.Time {
	since := s.Since
	if f.BehindAt.After(since) {
		since = f.BehindAt
	}
	return since.Add(Settle)
}

// Behind are those nodes that are not where the stage wants them, those that are there and those that are away.
func Behind(s State, f Facts) (present, away []string) {
	ca := s.ca()
	for _, n := range f.Nodes {
		ok := true
		switch s.Stage {
		case Trusting:
			ok = slices.Contains(n.Trusts, ca.New)
		case Overlapping:
			ok = n.Issuer == ca.New
		case Draining, Removing:
			ok = n.Issuer == ca.New && !slices.Contains(n.Trusts, ca.Old)
		case Aborting:
			ok = !slices.Contains(n.Trusts, ca.New)
		}
		switch {
		case ok || ca.New == "":
		case n.Present:
			present = append(present, n.Name)
		default:
			away = append(away, n.Name)
		}
	}
	return present, away
}

// Next is the state that follows, the same one while there is something to wait for, which is told.
func Next(s State, f Facts) (State, []string) {
	var waits []string
	wait := func(format string, a ...any) { waits = append(waits, fmt.Sprintf(format, a...)) }
	present, _ := Behind(s, f)
	if len(f.Unpublished) > 0 && s.Active() {
		wait("pods of %s are not given this stage's bundle yet", shorten(f.Unpublished))
	}
	switch s.Stage {
	case None:
		return s, nil
	case Trusting:
		if len(present) > 0 {
			wait("%s: has not learned of the new CA yet", strings.Join(present, ", "))
		}
		if at := settled(s, f); !s.chained() && f.Now.Before(at) {
			wait("running programs read the CA again by %s (the old CA allows no chain)", at.Format(time.RFC3339))
		}
	case Overlapping:
		if at := settled(s, f); f.Now.Before(at) {
			wait("running programs read the new CA by %s; they know nobody if the old one goes before", at.Format(time.RFC3339))
		}
		if !s.Hurry && f.Now.Before(s.Until) {
			wait("the old CA is trusted until %s", s.Until.Format(time.RFC3339))
		}
		if len(present) > 0 {
			wait("%s: has no certificates of the new CA yet", strings.Join(present, ", "))
		}
	case Draining, Removing:
		// Who has the old key could still show them what it signs, until they know better; those away learn it when they come back.
		if len(present) > 0 {
			wait("%s: trusts the old CA still", strings.Join(present, ", "))
		}
		if len(f.Extended) > 0 {
			wait("aggregated API servers are told to believe the old %s", strings.Join(f.Extended, ", "))
		}
		if at := s.TokensUntil(); s.Stage == Draining && f.Now.Before(at) {
			wait("tokens of pods that the old key has signed are good until %s", at.Format(time.RFC3339))
		}
	case Aborting:
		if len(present) > 0 {
			wait("%s: trusts the new CA still", strings.Join(present, ", "))
		}
		if len(f.Extended) > 0 {
			wait("aggregated API servers are told to believe the new %s", strings.Join(f.Extended, ", "))
		}
	}
	if len(waits) > 0 {
		return s, waits
	}
	now := f.Now.UTC().Truncate(time.Second)
	s.Since = now
	switch s.Stage {
	case Trusting:
		s.Stage, s.Switched, s.Until = Overlapping, now, now.Add(s.Keep)
	case Overlapping:
		if s.Stage = Removing; now.Before(s.TokensUntil()) {
			s.Stage = Draining
		}
	case Draining:
		s.Stage = Removing
	case Aborting:
		s.Stage = None
	default:
		s.Stage, s.Ended = None, now
	}
	return s, nil
}

func shorten(all []string) string {
	const most = 3
	if len(all) > most {
		return fmt.Sprintf("%s and %d other namespaces", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}

// World is where a replacement happens. Each method may be called again for what is done already.
type World interface {
	// Keep puts the state on the disk; it survives a power cut when it returns.
	Keep(s State) error
	// Install brings what programs read, and the programs that read it only once, to the state's stage.
	Install(ctx context.Context, s State) error
	// Look finds out how far everybody is. An error says that it cannot be known now.
	Look(ctx context.Context, s State) (Facts, error)
	// Wait tells what is waited for, and returns when it is worth looking again. waits is nil after an error of Look. The
	// answer is the state as it is then, since the user may be in a hurry.
	Wait(ctx context.Context, waits []string, err error) (State, error)
	// Forget removes what was only there for the replacement.
	Forget(ctx context.Context) error
}

// Run goes on with a replacement to its end. After an error, or the end of the process at any point, it can be called again
// with the state that was kept last.
func Run(ctx context.Context, w World, s State) error {
	for s.Active() {
		if err := w.Install(ctx, s); err != nil {
			return err
		}
		stage := s.Stage
		for s.Stage == stage {
			f, err := w.Look(ctx, s)
			var waits []string
			if err == nil {
				var next State
				if next, waits = Next(s, f); next.Stage != stage {
					if err := w.Keep(next); err != nil {
						return err
					}
					s = next
					break
				}
			}
			if s, err = w.Wait(ctx, waits, err); err != nil {
				return err
			}
		}
	}
	return w.Forget(ctx)
}

// version of the state's file.
const version = 1

type file struct {
	Version int `json:"version"`
	State
}

// Marshal is the state as its file keeps it. There is no secret in it.
func (s State) Marshal() []byte {
	return record.Indented(file{version, s})
}

// Unmarshal reads what Marshal wrote, and refuses what could not be gone on with.
func Unmarshal(b []byte) (State, error) {
	var f file
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&f); err != nil {
		return State{}, err
	}
	if f.Version != version {
		return State{}, fmt.Errorf("it has version %d, and this k1s knows %d", f.Version, version)
	}
	if err := f.usable(); err != nil {
		return State{}, err
	}
	return f.State, nil
}

// usable is an error where a state could not be gone on with.
func (s State) usable() error {
	switch {
	case !slices.Contains([]Stage{None, Trusting, Overlapping, Draining, Removing, Aborting}, s.Stage):
		return fmt.Errorf("it has a stage %q, which this k1s does not know", s.Stage)
	case s.Active() && (s.ca().New == "" || s.Number == 0):
		return fmt.Errorf("it does not say what is replaced by what")
	}
	return nil
}

// NewCA is the pin of the CA that comes; "" for none.
func (s State) NewCA() string { return s.ca().New }
