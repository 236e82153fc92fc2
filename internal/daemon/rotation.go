package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/token"
)

const (
	// lookAgainAfter is how often a stage that is to end is looked at, and lookLaterAfter one that lasts for days.
	lookAgainAfter = time.Second
	lookLaterAfter = 30 * time.Second
	// slowStage is after how long a stage that is to end by itself is told of as a problem.
	slowStage = 15 * time.Minute
	// askTrustEvery is how often an agent asks whether the cluster trusts other CAs. It is a TLS handshake for each.
	askTrustEvery = 10 * time.Second
)

// rotationState is what the daemon knows of the replacement of its authorities; Daemon.mu guards it.
type rotationState struct {
	state rotation.State
	facts rotation.Facts // as they were seen last
	waits []string
	note  string // why nothing is known now
	wake  chan struct{}
	// agreed is the stage to which several servers are brought together, as it was read last, and moving tells that this one goes over to it.
	agreed rotation.State
	moving bool
	// ledAt is when this server has last decided how it goes on, and ledSerial of what.
	ledAt     time.Time
	ledSerial int64
}

// shown is the state that users and other servers are told of.
func (r rotationState) shown(several bool) rotation.State {
	if several && r.agreed.Number > 0 {
		return r.agreed
	}
	return r.state
}

// replacing tells that the authorities are being replaced, here or as the servers have agreed.
func (r rotationState) replacing() bool { return r.state.Active() || r.agreed.Active() }

// readRotation reads the state; a missing file is the zero state.
func readRotation(p paths.Paths) (rotation.State, error) {
	b, err := os.ReadFile(p.Rotation())
	if errors.Is(err, fs.ErrNotExist) {
		return rotation.State{}, nil
	}
	var s rotation.State
	if err == nil {
		s, err = rotation.Unmarshal(b)
	}
	if err != nil {
		return s, errs.Hint(fmt.Errorf("reading how far the replacement of the cluster's CA is: %w", err), "restore %s from a backup, with the directory it is in", p.Rotation())
	}
	return s, nil
}

func replacements(all []rotation.Authority) []pki.Replacement {
	out := make([]pki.Replacement, 0, len(all))
	for _, a := range all {
		out = append(out, pki.Replacement(a))
	}
	return out
}

func authorities(all []pki.Replacement) []rotation.Authority {
	out := make([]rotation.Authority, 0, len(all))
	for _, r := range all {
		out = append(out, rotation.Authority(r))
	}
	return out
}

// phaseOf is what the files of a stage are like.
func phaseOf(s rotation.Stage) pki.Phase {
	switch s {
	case rotation.Trusting:
		return pki.TrustBoth
	case rotation.Overlapping:
		return pki.SignNew
	case rotation.Draining:
		return pki.KeepTokens
	case rotation.Aborting:
		return pki.TrustOld
	}
	return pki.TrustNew
}

// prepareRotation lets a start find the authorities of the stage a replacement is in: an earlier daemon may have been killed
// between any two files.
func (d *Daemon) prepareRotation(ctx context.Context, in *component.Input) error {
	s, err := readRotation(in.Paths)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.rotating = rotationState{state: s, wake: make(chan struct{}, 1)}
	d.mu.Unlock()
	in.Trust = s.Epoch()
	if !s.Active() && in.Several && holds(in.Paths) != "" {
		return nil // whether it has begun only the others can tell
	}
	if !s.Active() {
		return forgetUnkept(ctx, in.Paths)
	}
	return pki.InstallReplacement(ctx, in.Paths, replacements(s.Authorities), phaseOf(s.Stage))
}

// forgetUnkept removes the keys of a replacement that was made and never kept, or that is at its end: a daemon may have been
// killed in between.
func forgetUnkept(ctx context.Context, p paths.Paths) error {
	if _, err := os.Stat(p.PKI("rotation")); errors.Is(err, fs.ErrNotExist) {
		return nil // nor may there be a directory to lock
	}
	return pki.ForgetReplacement(ctx, p)
}

// watchRotation goes on with a replacement there is, and with those that are asked for.
func (d *Daemon) watchRotation(ctx context.Context) {
	d.mu.Lock()
	wake, s := d.rotating.wake, d.rotating.state
	d.mu.Unlock()
	if s.Number == 0 && !d.isSeveral() {
		select { // the first one
		case <-ctx.Done():
			return
		case <-wake:
		}
	}
	if d.sup.Await(ctx, "kube-apiserver", component.Open) != nil {
		return
	}
	for {
		if d.isSeveral() {
			var later <-chan time.Time
			if pause := d.replaceTogether(ctx); pause > 0 {
				later = time.After(pause)
			} else {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-wake:
			case <-later:
			}
			continue
		}
		d.mu.Lock()
		s := d.rotating.state
		d.mu.Unlock()
		err := rotation.Run(ctx, rotator{d}, s)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			d.log.Warn("replacing the cluster's CA does not go on", "err", err)
			d.noteRotation(nil, err)
		} else if s.Active() {
			d.noteRotation(nil, nil)
			d.mu.Lock()
			end := d.rotating.state
			d.mu.Unlock()
			d.log.Info("a replacement of the cluster's CA is at its end", "number", end.Number, "called off", end.Aborted)
		}
		var again <-chan time.Time
		if err != nil {
			again = time.After(goOnAfter)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again:
		}
	}
}

// ends is until when a stage lasts in any case, as far as that is known; zero for those that end by themselves.
func ends(s rotation.State) time.Time {
	switch {
	case s.Stage == rotation.Overlapping && !s.Hurry:
		return s.Until
	case s.Stage == rotation.Draining:
		return s.TokensUntil()
	}
	return time.Time{}
}

// noteRotation tells what is waited for.
func (d *Daemon) noteRotation(waits []string, err error) {
	note := ""
	if err != nil {
		note = err.Error()
	}
	d.mu.Lock()
	d.rotating.waits, d.rotating.note = waits, note
	s, f := d.rotating.shown(d.in.Several), d.rotating.facts
	d.mu.Unlock()
	var problems []health.Problem
	slow := s.Active() && time.Since(s.Since) > slowStage && time.Since(ends(s)) > slowStage
	present, away := rotation.Behind(s, f)
	switch {
	case err != nil && slow:
		problems = []health.Problem{health.FromError(err, health.CARotation, "")}
	case slow:
		problems = []health.Problem{health.New(health.CARotation, "replacing the cluster's CA waits in the stage %q: %s", s.Stage, strings.Join(waits, "; "))}
	case s.Active() && time.Since(s.Since) > slowStage && len(present) > 0:
		problems = []health.Problem{health.New(health.CARotation, "the cluster's CA was replaced, and these nodes have no certificates of the new one yet, or trust the old one still: %s", strings.Join(append(present, away...), ", "))}
	}
	d.board.Report("rotation", problems)
}

// rotator is this server as the World of a replacement.
type rotator struct{ d *Daemon }

var _ rotation.World = rotator{}

func (r rotator) Keep(s rotation.State) error {
	if err := r.keep(s); err != nil {
		return err
	}
	r.d.log.Info("replacing the cluster's CA", "state", s.String())
	return nil
}

// keep puts the state in the place of that which it follows from. What the user has said since then counts.
func (r rotator) keep(s rotation.State) error {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	now := r.d.rotating.state
	if now.Stage == rotation.Aborting && s.Stage != rotation.None {
		return errs.New(errs.Exists, "the replacement was called off in the same moment")
	}
	s.Hurry, s.DropTokens = s.Hurry || now.Hurry && now.Number == s.Number, s.DropTokens || now.DropTokens && now.Number == s.Number
	if err := keepRotation(r.d.o.Paths, s); err != nil {
		return err
	}
	r.d.rotating.state = s
	return nil
}

func keepRotation(p paths.Paths, s rotation.State) error {
	if err := writeIfChanged(p.Rotation(), s.Marshal(), 0o600); err != nil {
		return fmt.Errorf("keeping how far the replacement of the cluster's CA is: %w", err)
	}
	return nil
}

// Install brings the files first and then what runs to the stage: a restart that finds the files as they are to be is the
// only one.
func (r rotator) Install(ctx context.Context, s rotation.State) error {
	d := r.d
	// A control plane that is stopped for something else would be started, and in its old place.
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.unmoved(); err != nil {
		return err
	}
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	if err := d.installRotation(ctx, in, s); err != nil {
		return err
	}
	if in.Trust == s.Epoch() {
		return nil
	}
	in.Trust = s.Epoch()
	d.log.Info("the control plane restarts: it reads authorities only then", "stage", string(s.Stage))
	if err := d.restarted(ctx, in); err != nil {
		return err
	}
	d.mu.Lock()
	d.in.Trust = in.Trust
	d.mu.Unlock()
	return nil
}

// restarted starts what has changed anew. It returns when that is under way.
func (d *Daemon) restarted(ctx context.Context, in component.Input) error {
	if d.restart != nil {
		return d.restart(ctx, in)
	}
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	return d.sup.Apply(ctx, plan)
}

func (d *Daemon) installRotation(ctx context.Context, in component.Input, s rotation.State) error {
	d.renewing.Lock()
	defer d.renewing.Unlock()
	if err := pki.InstallReplacement(ctx, in.Paths, replacements(s.Authorities), phaseOf(s.Stage)); err != nil {
		return err
	}
	// The chain to the old CA is in the certificates, and is to go with it.
	report, err := certificates(ctx, d.log, in, s.Stage == rotation.Draining || s.Stage == rotation.Removing)
	if err == nil {
		d.reportCertificates(report)
	}
	return err
}

func (r rotator) Look(ctx context.Context, s rotation.State) (rotation.Facts, error) {
	f, err := lookAtTrust(ctx, r.d.client(), r.d.o.Paths, r.d.self(), nil)
	if err == nil && len(f.Extended) > 0 {
		// They count as told of until they are seen to be gone: the API server might put them back.
		if _, err := extended(ctx, r.d.client(), r.d.o.Paths, true); err != nil {
			return f, err
		}
	}
	if err == nil {
		r.d.mu.Lock()
		f.BehindAt = r.d.rotating.facts.BehindAt
		if present, _ := rotation.Behind(s, f); len(present) > 0 {
			f.BehindAt = f.Now
		}
		r.d.rotating.facts = f
		r.d.mu.Unlock()
	}
	return f, err
}

// self is this node's name.
func (d *Daemon) self() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.in.Facts.NodeName
}

// lookAtTrust finds out what the nodes have said of themselves, and what pods are given. told are the pins that other servers have said
// they trust; they do not join as agents do, and what stands in the cluster about them may be of another time.
func lookAtTrust(ctx context.Context, api *kubeapi.Client, p paths.Paths, self string, told map[string][]string) (rotation.Facts, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("no answer within %s", lookTime))
	defer cancel()
	f := rotation.Facts{Now: time.Now()}
	want, err := os.ReadFile(pki.CertFile(p, pki.CA))
	if err != nil {
		return f, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	published, err := api.RootCAs(ctx)
	if err != nil {
		return f, fmt.Errorf("asking which CA pods are given: %w", err)
	}
	for ns, got := range published {
		if got != string(want) {
			f.Unpublished = append(f.Unpublished, ns)
		}
	}
	slices.Sort(f.Unpublished)
	if f.Extended, err = extended(ctx, api, p, false); err != nil {
		return f, err
	}
	store := clusterStore{api: api}
	bindings, err := store.Bindings(ctx)
	if err != nil {
		return f, fmt.Errorf("asking which CA nodes trust: %w", err)
	}
	nodes, err := store.Nodes(ctx)
	if err != nil {
		return f, fmt.Errorf("asking which nodes are there: %w", err)
	}
	trusts := map[string][]string{self: pki.PinsOf(want)}
	maps.Copy(trusts, told)
	f.Nodes = trustOf(bindings, nodes, trusts)
	return f, nil
}

// extended finds what aggregated API servers are told to believe though it is not trusted any more, and takes it out if that
// is wanted. The API server only ever adds to this ConfigMap, until a certificate ends (combinedClusterAuthenticationInfo in
// upstream's pkg/controlplane/controller/clusterauthenticationtrust, 1.36).
func extended(ctx context.Context, api *kubeapi.Client, p paths.Paths, remove bool) ([]string, error) {
	const namespace, name = "kube-system", "extension-apiserver-authentication"
	m, err := api.ConfigMap(ctx, namespace, name)
	if errs.Is(err, errs.NotFound) {
		return nil, nil // the API server has not told anybody yet
	}
	if err != nil {
		return nil, fmt.Errorf("asking which CAs aggregated API servers believe: %w", err)
	}
	var stale []string
	for _, in := range []struct{ authority, key string }{{pki.CA, "client-ca-file"}, {pki.FrontProxyCA, "requestheader-client-ca-file"}} {
		left, gone, err := pki.Stale(p, in.authority, []byte(m.Data[in.key]))
		if err != nil {
			return nil, err
		}
		if gone {
			stale = append(stale, in.authority)
			m.Data[in.key] = string(left)
		}
	}
	if len(stale) == 0 || !remove {
		return stale, nil
	}
	// The API server may have written it in the same moment: then the next look finds it.
	if err := api.WriteConfigMap(ctx, namespace, m); err != nil && !errs.Is(err, errs.Exists) {
		return nil, fmt.Errorf("telling aggregated API servers not to believe the old CA: %w", err)
	}
	return stale, nil
}

// trustOf brings together what is known of nodes. told are the pins that servers trust; they have certificates of the first.
func trustOf(bindings []join.Binding, nodes []join.Node, told map[string][]string) []rotation.Node {
	ready := map[string]bool{}
	for _, n := range nodes {
		ready[n.Name] = n.Ready
	}
	out := make([]rotation.Node, 0, len(bindings))
	for _, b := range bindings {
		n := rotation.Node{Name: b.Node, Server: b.Role == token.Server, Present: ready[b.Node], Trusts: strings.Fields(b.Trusts), Issuer: b.Issuer}
		if pins := told[b.Node]; len(pins) > 0 && n.Server {
			n.Trusts, n.Issuer = pins, pins[0]
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b rotation.Node) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// lookPause is how long to wait before a stage is looked at again: what has not come for minutes may not come for days, and a look
// lists what is given to every namespace.
func lookPause(s rotation.State, now time.Time) time.Duration {
	if now.Before(ends(s)) || now.Sub(s.Since) > slowStage {
		return lookLaterAfter
	}
	return lookAgainAfter
}

func (r rotator) Wait(ctx context.Context, waits []string, err error) (rotation.State, error) {
	d := r.d
	d.noteRotation(waits, err)
	d.mu.Lock()
	s, wake := d.rotating.state, d.rotating.wake
	d.mu.Unlock()
	select {
	case <-ctx.Done():
		return s, context.Cause(ctx)
	case <-wake:
	case <-time.After(lookPause(s, time.Now())):
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rotating.state, nil
}

// Forget leaves alone what the next replacement has made, which may have begun since the end of this one.
func (r rotator) Forget(ctx context.Context) error {
	r.d.admitting.Lock()
	defer r.d.admitting.Unlock()
	r.d.mu.Lock()
	s := r.d.rotating.state
	r.d.mu.Unlock()
	if s.Active() {
		return nil
	}
	return pki.ForgetReplacement(ctx, r.d.o.Paths)
}

// Rotation implements control.Backend.
func (d *Daemon) Rotation(ctx context.Context) (control.Rotation, error) {
	in, api, err := d.server()
	if err != nil {
		return control.Rotation{}, err
	}
	if in.Several {
		return d.rotationTogether(ctx, in, api)
	}
	d.mu.Lock()
	s := d.rotating
	d.mu.Unlock()
	out := control.Rotation{State: s.state, Waits: s.waits, Note: s.note}
	f, err := lookAtTrust(ctx, api, in.Paths, in.Facts.NodeName, nil)
	if err != nil {
		f, out.Note = s.facts, err.Error()
	}
	wireTrust(&out, f)
	return out, nil
}

// wireTrust tells of nodes in words instead of pins.
func wireTrust(out *control.Rotation, f rotation.Facts) {
	known := map[string]string{}
	for _, a := range out.State.Authorities {
		if a.Name == rotation.CA {
			known[a.Old], known[a.New] = "old", "new"
		}
	}
	word := func(pin string) string {
		switch {
		case pin == "":
			return ""
		case known[pin] != "":
			return known[pin]
		}
		return pin[:min(8, len(pin))]
	}
	out.Behind, out.Away = rotation.Behind(out.State, f)
	for _, n := range f.Nodes {
		w := control.RotationNode{Name: n.Name, Server: n.Server, Ready: n.Present, Issuer: word(n.Issuer)}
		for _, pin := range n.Trusts {
			w.Trusts = append(w.Trusts, word(pin))
		}
		out.Nodes = append(out.Nodes, w)
	}
}

// RotateCA implements control.Backend.
func (d *Daemon) RotateCA(ctx context.Context, r control.RotateRequest) (control.Rotation, error) {
	in, api, err := d.server()
	if err != nil {
		return control.Rotation{}, err
	}
	if !r.Finish && !r.Abort {
		if err := d.notUpgraded("replace the cluster's CA"); err != nil {
			return control.Rotation{}, err
		}
	}
	if in.Several {
		return d.rotateTogether(ctx, in, api, r)
	}
	if r.Finish || r.Abort {
		if err := d.endRotation(in, r); err != nil {
			return control.Rotation{}, err
		}
		return d.Rotation(ctx)
	}
	// From the look at what is kept until the replacement is: of two that are asked for at once the second finds the first.
	d.admitting.Lock()
	defer d.admitting.Unlock()
	d.mu.Lock()
	before := d.rotating.state
	d.mu.Unlock()
	if err := before.MayBegin(); err != nil {
		return control.Rotation{}, err
	}
	if err := errors.Join(d.alone(ctx, in, "replacing the cluster's CA"), noOtherServes(ctx, in, api), d.unmoved()); err != nil {
		return control.Rotation{}, err
	}
	all, err := pki.Replaceable(in.Paths, r.Dir, time.Now())
	if err != nil {
		return control.Rotation{}, fmt.Errorf("the cluster's CA cannot be replaced: %w", err)
	}
	warnings, err := d.rotationWarnings(ctx, api, r, all)
	if err != nil {
		return control.Rotation{}, err
	}
	next, err := before.Begin(authorities(all), r.Keep, time.Now())
	if err != nil {
		return control.Rotation{}, err
	}
	next.DropTokens = r.DropTokens
	f, err := lookAtTrust(ctx, api, in.Paths, in.Facts.NodeName, nil)
	if err != nil {
		return control.Rotation{}, err
	}
	if r.DryRun {
		out := control.Rotation{State: next, Warnings: warnings}
		wireTrust(&out, f)
		return out, nil
	}
	d.renewing.Lock()
	all, err = pki.PrepareReplacement(ctx, in.Paths, r.Dir, time.Now())
	d.renewing.Unlock()
	if err == nil {
		next.Authorities = authorities(all)
		err = keepRotation(in.Paths, next)
	}
	if err != nil { // keys that nobody knows of are not to lie about
		return control.Rotation{}, errors.Join(err, pki.ForgetReplacement(context.WithoutCancel(ctx), in.Paths))
	}
	d.mu.Lock()
	d.rotating.state, d.rotating.waits, d.rotating.note = next, nil, ""
	d.mu.Unlock()
	d.log.Info("replacing the cluster's CA begins", "number", next.Number, "keep", next.Keep)
	d.wakeRotation()
	out := control.Rotation{State: next, Warnings: warnings}
	wireTrust(&out, f)
	return out, nil
}

// noOtherServes is an error while an API server of another machine serves the cluster. One that was removed and runs on, as it can with
// a database of others, still issues certificates of the old CA and tells pods to trust that one only.
func noOtherServes(ctx context.Context, in component.Input, api *kubeapi.Client) error {
	all, err := api.Servers(ctx)
	if err != nil {
		return fmt.Errorf("finding out whether this is the only server: %w", err)
	}
	own := net.JoinHostPort(in.Facts.NodeIP.String(), strconv.Itoa(in.Config.Spec.API.Port))
	if others := slices.DeleteFunc(all, func(s string) bool { return s == own }); len(others) > 0 {
		return errs.Hint(errs.New(errs.Unsupported, "replacing the cluster's CA is not possible while other servers run that this one does not know: the API is also served at %s", strings.Join(others, ", ")),
			"stop k1s there, also if that server was removed from the cluster; what has stopped is not counted any more after 15 seconds")
	}
	return nil
}

// endRotation lets the old authorities go now, or the new ones.
func (d *Daemon) endRotation(in component.Input, r control.RotateRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next, err := d.rotating.state.Abort(time.Now())
	if !r.Abort {
		next, err = d.rotating.state.Finish(r.DropTokens)
	}
	if err != nil || r.DryRun {
		return err
	}
	if err := keepRotation(in.Paths, next); err != nil {
		return err
	}
	d.rotating.state = next
	d.wakeRotation()
	return nil
}

func (d *Daemon) wakeRotation() {
	select {
	case d.rotating.wake <- struct{}{}:
	default: // it is on its way
	}
}

// rotationWarnings is what a user has to know of before.
func (d *Daemon) rotationWarnings(ctx context.Context, api *kubeapi.Client, r control.RotateRequest, all []pki.Replacement) ([]string, error) {
	var out []string
	if r.Keep < rotation.TokensLast && !r.DropTokens {
		out = append(out, "the old key of service accounts is good for 24 hours after the switch, longer than the old CA: pods have tokens of it. Who else has it can be any service account until then; if it is in wrong hands, end it with the CA: --drop-tokens")
	}
	for _, a := range all {
		if a.Below {
			out = append(out, fmt.Sprintf("your %s is below another authority, which is not trusted here: it could sign for anybody. Programs of Go take the certificate by itself; some that use OpenSSL want one that is signed by itself (Python before 3.13), and cannot verify this cluster then", a.Name))
		}
		if a.Name == pki.CA && !a.Chained {
			out = append(out, "the CA in use allows no other one below it, so programs that read it only when they start, as some pods do, have to be started again before the new one signs; that is not before ten minutes have passed")
		}
	}
	legacy, err := api.ServiceAccountTokens(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking for tokens that do not end: %w", err)
	}
	if len(legacy) > 0 {
		out = append(out, fmt.Sprintf("tokens of service accounts in Secrets are signed by the old key and end with it; make them anew when the new one signs: %s", strings.Join(legacy, ", ")))
	}
	tokens, err := d.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	usable := 0
	for _, t := range tokens {
		if !t.Expired && t.Problem == "" {
			usable++
		}
	}
	if usable > 0 {
		out = append(out, fmt.Sprintf("%d tokens to join name the old CA and go on working: it vouches for the new one. If its key is in wrong hands, revoke them: k1s token revoke", usable))
	}
	return append(out, fmt.Sprintf("the cluster cannot be backed up until the replacement is at its end, %s or more from now; make a backup before: k1s backup create", rotationTakes(r))), nil
}

// rotationTakes is how long a replacement lasts at least.
func rotationTakes(r control.RotateRequest) time.Duration {
	takes := max(r.Keep, rotation.Settle)
	if !r.DropTokens {
		takes = max(takes, rotation.TokensLast)
	}
	return takes
}

// watchTrust lets an agent learn of other CAs soon, and find its way back to a cluster that has replaced its CA while this
// node was away. Servers are asked directly: the node's own way to them ends where their certificates are not trusted.
func (d *Daemon) watchTrust(ctx context.Context) {
	tick := time.NewTicker(askTrustEvery)
	defer tick.Stop()
	var last [sha256.Size]byte
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		in := d.in
		d.mu.Unlock()
		now, err := publishedCAs(ctx, in)
		if err == nil && now == last {
			continue
		}
		var away *join.Unreachable
		if errors.As(err, &away) {
			continue // the balancer tells that servers are away
		}
		// They trust something else, or are not trusted: what can be done about either is to ask as this node.
		if _, err = d.renew(ctx, false); err == nil {
			last, said = now, ""
			continue
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			d.log.Warn("which CAs the cluster trusts is not known", "err", err)
		}
	}
}

// strangersLimit is for how long a start waits to find out whether its servers are strangers to it: they may be away.
const strangersLimit = time.Second

// strangers tells that a server answers whose certificate is of no CA this node trusts.
func strangers(ctx context.Context, in component.Input) bool {
	ctx, cancel := context.WithTimeout(ctx, strangersLimit)
	defer cancel()
	k, err := readKept(in.Paths)
	if err != nil || k == nil {
		return false
	}
	in.Server = k.Server
	_, err = publishedCAs(ctx, in)
	return errs.Is(err, errs.Denied)
}

// publishedCAs identifies what one of the servers tells of the cluster's CAs, whichever is first. All are asked at once, for the first this
// node ever knew may be gone for good. When none answers, one of kind errs.Denied, which is a server that is a stranger, counts for more
// than those that are away.
func publishedCAs(ctx context.Context, in component.Input) ([sha256.Size]byte, error) {
	cas, err := pki.ReadTrusted(in.Paths)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	m := membership{kept: kept{Server: in.Server}}
	if k, err := readKept(in.Paths); err == nil && k != nil {
		m.kept.Servers = k.Servers
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	type answer struct {
		published []byte
		err       error
	}
	servers := m.candidates(in.Paths)
	answers := make(chan answer, len(servers))
	for _, s := range servers {
		all.Go(func() {
			b, err := join.Client{Server: s, CAs: cas}.Published(ctx)
			answers <- answer{b, err}
		})
	}
	var worst error
	for range servers {
		a := <-answers
		if a.err == nil {
			return sha256.Sum256(bytes.TrimSpace(a.published)), nil
		}
		if worst == nil || errs.Is(a.err, errs.Denied) {
			worst = a.err
		}
	}
	return [sha256.Size]byte{}, worst
}
