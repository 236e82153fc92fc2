package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/supervise"
	"k1s.io/k1s/internal/wait"
)

// rotationRecord is the ConfigMap of kube-system that has what the servers agree about. There is no key in it.
const (
	rotationRecord    = "k1s-rotation"
	rotationRecordKey = "record"
)

// lookForRotation is how often one of several servers looks whether another one replaces the authorities; lookAgainAfter, while that is so.
const (
	lookForRotation = 3 * time.Second
	// askWorking is how often it is looked whether the control plane works that was started anew.
	askWorking = 200 * time.Millisecond
	// workingLimit is after how long without it this server looks again at what is agreed about: it may have been called off.
	workingLimit = time.Minute
)

// replacer is this node as one of several servers that replace the cluster's authorities together.
type replacer struct{ d *Daemon }

// isSeveral tells that this server is one of several, or was.
func (d *Daemon) isSeveral() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.in.Several
}

// record is what the servers agree about, nil for nothing yet.
func (w replacer) record(ctx context.Context) (*rotation.Record, error) {
	m, err := w.d.client().ConfigMap(ctx, systemNamespace, rotationRecord)
	if errs.Is(err, errs.NotFound) {
		w.agreed(rotation.State{})
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("finding out what the servers agree about the cluster's CA: %w", err)
	}
	r, err := rotation.UnmarshalRecord([]byte(m.Data[rotationRecordKey]))
	if err != nil {
		return nil, errs.Hint(fmt.Errorf("the configmap %s/%s is damaged: %w", systemNamespace, rotationRecord, err),
			"delete it: k1s kubectl -n %s delete configmap %s; the servers make it anew from what they know", systemNamespace, rotationRecord)
	}
	r.Version = m.Metadata.ResourceVersion
	w.agreed(r.State)
	return &r, nil
}

// agree writes what the servers agree about in the place of what was read; an error of kind errs.Exists says that another one was faster.
func (w replacer) agree(ctx context.Context, r rotation.Record) error {
	err := w.d.client().WriteConfigMap(ctx, systemNamespace, kubeapi.ConfigMap{
		Metadata: kubeapi.SecretMeta{Name: rotationRecord, ResourceVersion: r.Version}, Data: map[string]string{rotationRecordKey: string(r.Marshal())},
	})
	if errs.Is(err, errs.Exists) {
		return errs.Hint(errs.New(errs.Exists, "another server has said in the same moment how the replacement of the cluster's CA goes on"), "see: k1s certs rotate-ca --status")
	}
	if err != nil {
		return fmt.Errorf("letting the servers agree about the cluster's CA: %w", err)
	}
	w.d.log.Info("the servers agree about the cluster's CA", "state", r.State.String(), "serial", r.Serial, "turn", r.Turn, "joint", r.Joint)
	w.agreed(r.State)
	return nil
}

func (w replacer) agreed(s rotation.State) {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	w.d.rotating.agreed = s
}

// heldFile tells which replacement the keys in its directory are of, on one of several servers. Written last, it says that all are there.
func heldFile(p paths.Paths) string { return p.PKI("rotation", "of.json") }

// hold writes it.
func hold(p paths.Paths, s rotation.State) error {
	if err := writeIfChanged(heldFile(p), s.Marshal(), 0o600); err != nil {
		return fmt.Errorf("keeping the new authorities: %w", err)
	}
	return nil
}

// held is the replacement whose keys are here.
func held(p paths.Paths) (rotation.State, error) {
	b, err := os.ReadFile(heldFile(p))
	if err != nil {
		return rotation.State{}, err
	}
	return rotation.Unmarshal(b)
}

// holds is the pin of the new CA whose key is here, "" for none.
func holds(p paths.Paths) string {
	s, err := held(p)
	if err != nil { // one that cannot be read is asked for again
		return ""
	}
	return s.NewCA()
}

// authorities is what this server tells the others of itself.
func (d *Daemon) authorities() (join.Authorities, error) {
	d.mu.Lock()
	in, s := d.in, d.rotating
	d.mu.Unlock()
	keys, err := pki.KeyPins(in.Paths)
	if err != nil {
		return join.Authorities{}, err
	}
	trusted, err := pki.ReadTrusted(in.Paths)
	if err != nil {
		return join.Authorities{}, err
	}
	return join.Authorities{
		Node: in.Facts.NodeName, State: s.state.Marshal(), Runs: in.Trust, Ready: d.working(), Moving: s.moving, Holds: holds(in.Paths), Trusts: pki.Pins(trusted), Keys: keys,
	}, nil
}

// newAuthorities are the keys of the new authorities, for another server.
func (d *Daemon) newAuthorities() (pki.Bundle, error) {
	s, err := held(d.o.Paths)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "this server has no new authorities")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the new authorities: %w", err)
	}
	return pki.ReadReplacement(d.o.Paths, replacements(s.Authorities))
}

// restarting are the components that read authorities only when they start. A node has those of them that it needs.
var restarting = []string{"etcd", "kube-apiserver", "kube-controller-manager"}

// working tells that the control plane works, as it was started last.
func (d *Daemon) working() bool {
	if d.works != nil {
		return d.works()
	}
	for _, c := range d.sup.Snapshot() {
		if slices.Contains(restarting, c.Component) && c.State != supervise.Ready {
			return false
		}
	}
	return true
}

// reports asks all servers how far they are. The error says that one has come or gone meanwhile.
func (w replacer) reports(ctx context.Context) ([]rotation.Report, error) {
	before, err := (changer(w)).servers(ctx)
	if err != nil {
		return nil, err
	}
	out := w.ask(ctx, before)
	// Who has become known meanwhile was let in by one that may have told about itself before.
	after, err := (changer(w)).servers(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after))) {
		return nil, errs.New(errs.NotRunning, "servers come or go in this moment: %s; then %s",
			strings.Join(slices.Sorted(maps.Keys(before)), ", "), strings.Join(slices.Sorted(maps.Keys(after)), ", "))
	}
	return out, nil
}

// ask asks servers, by name and where their APIs are, all at once; "" is this one.
func (w replacer) ask(ctx context.Context, servers map[string]string) []rotation.Report {
	ctx, cancel := context.WithTimeoutCause(ctx, askServer, fmt.Errorf("no answer within %s", askServer))
	defer cancel()
	w.d.mu.Lock()
	in := w.d.in
	w.d.mu.Unlock()
	identity, err := pki.Identity(in.Paths)
	cas, caErr := pki.ReadTrusted(in.Paths)
	err = errors.Join(err, caErr)
	names := slices.Sorted(maps.Keys(servers))
	out, told := make([]rotation.Report, len(names)), make([]string, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		at := servers[name]
		all.Go(func() {
			var a join.Authorities
			err := err
			switch {
			case err != nil:
			case at == "":
				a, err = w.d.authorities()
			default:
				a, err = join.Client{Server: at, CAs: cas}.Authorities(ctx, identity, in.Facts.NodeName)
			}
			out[i] = report(name, a, err)
			out[i].Unknown, told[i] = name == at, a.Node
		})
	}
	all.Wait()
	var known []rotation.Report
	for i, r := range out {
		if at, ok := servers[told[i]]; r.Unknown && ok && at != told[i] {
			continue // one of them, which has its API at an address of its own choice too
		}
		known = append(known, r)
	}
	return known
}

// report is what a server has told, for the decisions.
func report(name string, a join.Authorities, err error) rotation.Report {
	r := rotation.Report{Server: name, Err: err, Runs: a.Runs, Ready: a.Ready, Moving: a.Moving, Holds: a.Holds, Trusts: a.Trusts, Keys: a.Keys}
	if err == nil {
		r.State, r.Err = rotation.Unmarshal(a.State)
	}
	return r
}

// trusts are the pins that servers have told, by name.
func trusts(all []rotation.Report) map[string][]string {
	out := map[string][]string{}
	for _, r := range all {
		if r.Err == nil && !r.Unknown {
			out[r.Server] = r.Trusts
		}
	}
	return out
}

// replaceTogether brings this server to where the servers have agreed to be, and decides how it goes on where it is the one to do so. The
// answer is after what time there is something to do again.
func (d *Daemon) replaceTogether(ctx context.Context) time.Duration {
	d.together.Lock()
	pause, waits, err := replacer{d}.goOn(ctx)
	d.together.Unlock()
	if ctx.Err() != nil {
		return lookForRotation
	}
	d.mu.Lock()
	active, news := d.rotating.shown(true).Active() || d.rotating.state.Active(), err != nil && err.Error() != d.rotating.note
	d.mu.Unlock()
	switch {
	case errs.Is(err, errs.Exists): // another server was faster: what it has said counts
		d.log.Debug("another server has said how the replacement of the cluster's CA goes on", "err", err)
		return lookAgainAfter
	case err != nil && !active: // what is wrong with the API shows elsewhere
		d.log.Debug("not known whether the cluster's CA is replaced", "err", err)
		return lookForRotation
	case news:
		d.log.Warn("replacing the cluster's CA does not go on", "err", err)
	}
	d.noteRotation(waits, err)
	if err != nil {
		return goOnAfter
	}
	return pause
}

// goOn is one look at what is agreed about, and one thing that follows from it.
func (w replacer) goOn(ctx context.Context) (pause time.Duration, waits []string, err error) {
	d := w.d
	r, err := w.record(ctx)
	if err != nil {
		return 0, nil, err
	}
	d.mu.Lock()
	own := rotation.Own{Name: d.in.Facts.NodeName, State: d.rotating.state, Runs: d.in.Trust}
	d.mu.Unlock()
	own.Holds = holds(d.o.Paths)
	duty, err := rotation.Follow(own, r)
	if err != nil {
		return 0, nil, err
	}
	// What this server cannot do now keeps it from nothing else: it may be that nobody can, and that it is the one to say so.
	var undone error
	defer func() {
		if err == nil {
			err = undone
		}
	}()
	switch duty {
	case rotation.Publish:
		all, err := w.reports(ctx)
		if err != nil {
			return 0, nil, err
		}
		next, err := rotation.Republish(own.Name, r, all)
		if err == nil {
			d.log.Warn("what the servers agree about the cluster's CA was gone, or of another time", "state", next.State.String())
			err = w.agree(ctx, next)
		}
		return 0, nil, err
	case rotation.Fetch:
		if undone = w.fetch(ctx, r.State); undone == nil {
			return 0, nil, nil
		}
	case rotation.Step:
		if undone = w.step(ctx, own.Name, *r); undone == nil {
			return 0, nil, nil
		}
	case rotation.End:
		s := own.State
		if s.Active() {
			s, s.Serial = r.State, r.Serial
			if err := w.keep(s); err != nil {
				return 0, nil, err
			}
			d.log.Info("a replacement of the cluster's CA is at its end", "number", s.Number, "called off", s.Aborted)
		}
		return 0, nil, pki.ForgetReplacement(ctx, d.o.Paths)
	case rotation.Hold: // the user may have said something
		s := r.State
		if s.Serial = r.Serial; own.State.Serial != s.Serial {
			if err := w.keep(s); err != nil {
				return 0, nil, err
			}
		}
	}
	if r == nil || !r.State.Active() {
		return lookForRotation, nil, nil
	}
	if pause = lookPause(r.State, time.Now()); !r.Joint { // it lasts for as long as servers take, whatever it is to wait for then
		pause = lookAgainAfter
	}
	names, err := (changer(w)).Servers(ctx)
	if err != nil {
		return 0, nil, err
	}
	if !rotation.Leads(own.Name, *r, names) {
		return min(pause, lookForRotation), []string{r.Leader + " decides how it goes on, see there or: k1s certs rotate-ca --status"}, nil
	}
	// What a stage waits for that lasts for days is looked at seldom; what is agreed about meanwhile, at once.
	d.mu.Lock()
	known := d.rotating
	d.mu.Unlock()
	if known.ledSerial == r.Serial && known.note == "" && time.Since(known.ledAt) < pause {
		return min(pause, lookForRotation), known.waits, nil
	}
	next, waits, err := w.lead(ctx, *r)
	if err != nil || next.Serial == r.Serial {
		d.mu.Lock()
		d.rotating.ledAt, d.rotating.ledSerial = time.Now(), r.Serial
		d.mu.Unlock()
		return min(pause, lookForRotation), waits, err
	}
	next.Leader = own.Name
	return lookAgainAfter, waits, w.agree(ctx, next)
}

// lead decides how it goes on; r itself while there is something to wait for.
func (w replacer) lead(ctx context.Context, r rotation.Record) (rotation.Record, []string, error) {
	all, err := w.reports(ctx)
	if err != nil {
		return r, nil, err
	}
	next, waits := rotation.Guide(r, all, time.Now())
	if next.Serial != r.Serial || len(waits) > 0 {
		return next, waits, nil
	}
	// Only where all servers run the stage: what another one publishes would be of the stage before.
	f, err := w.look(ctx, all)
	if err != nil {
		return r, nil, err
	}
	if seen := r.Seen(f); seen.Serial != r.Serial {
		_, waits := r.Advance(f)
		return seen, waits, nil
	}
	next, waits = r.Advance(f)
	return next, waits, nil
}

// look finds out how far the nodes are, and what pods and aggregated API servers are told.
func (w replacer) look(ctx context.Context, all []rotation.Report) (rotation.Facts, error) {
	f, err := lookAtTrust(ctx, w.d.client(), w.d.o.Paths, w.d.self(), trusts(all))
	if err == nil && len(f.Extended) > 0 {
		// They count as told of until they are seen to be gone: an API server might put them back.
		_, err = extended(ctx, w.d.client(), w.d.o.Paths, true)
	}
	if err == nil {
		w.d.mu.Lock()
		w.d.rotating.facts = f
		w.d.mu.Unlock()
	}
	return f, err
}

// fetch gets the keys of the new authorities from the other servers.
func (w replacer) fetch(ctx context.Context, s rotation.State) error {
	d := w.d
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	others, err := d.otherServers(ctx)
	if err != nil {
		return err
	}
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		return err
	}
	cas, err := pki.ReadTrusted(in.Paths)
	if err != nil {
		return err
	}
	all := replacements(s.Authorities)
	var failed []error
	for _, server := range others {
		keys, err := join.Client{Server: server, CAs: cas}.AuthorityKeys(ctx, identity, in.Facts.NodeName)
		if err == nil {
			d.renewing.Lock()
			err = pki.KeepReplacement(ctx, in.Paths, all, keys)
			d.renewing.Unlock()
		}
		if err == nil {
			d.log.Info("the keys of the new authorities are here", "from", server)
			return hold(in.Paths, s) // last: all are there
		}
		failed = append(failed, fmt.Errorf("%s: %w", server, err))
	}
	return errs.New(errs.NotFound, "the keys of the new authorities are not on this server, and no other one gives them: %w", errors.Join(failed...))
}

// step brings this server to the stage.
func (w replacer) step(ctx context.Context, self string, was rotation.Record) error {
	d := w.d
	moving := func(is bool) {
		d.mu.Lock()
		d.rotating.moving = is
		d.mu.Unlock()
	}
	moving(true)
	defer moving(false)
	// Read again since it is told that this one moves: whoever takes its turn away after that sees it, and gives nobody another one.
	r, err := w.record(ctx)
	if err != nil {
		return err
	}
	if r == nil || r.Turn != self || r.Serial < was.Serial || !r.State.Same(was.State) || r.State.Stage != was.State.Stage {
		return nil // look again
	}
	s := r.State
	s.Serial = r.Serial
	// Who joins through this server is known to the others before this one is at the stage, or is refused.
	d.admitting.Lock()
	err = w.keep(s)
	d.admitting.Unlock()
	if err != nil {
		return err
	}
	if err := rotator(w).Install(ctx, s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, workingLimit, fmt.Errorf("not within %s", workingLimit))
	defer cancel()
	return wait.Until(ctx, askWorking, "the control plane to work at the stage "+string(s.Stage), func(context.Context) error {
		if !d.working() {
			return errs.New(errs.NotRunning, "it is starting")
		}
		return nil
	})
}

func (w replacer) keep(s rotation.State) error {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	if err := keepRotation(w.d.o.Paths, s); err != nil {
		return err
	}
	if before := w.d.rotating.state; before.Stage != s.Stage || before.Number != s.Number {
		w.d.log.Info("replacing the cluster's CA", "state", s.String(), "serial", s.Serial)
	}
	w.d.rotating.state = s
	return nil
}

// rotationTogether is Rotation for one of several: every one of them can tell, because each asks all.
func (d *Daemon) rotationTogether(ctx context.Context, in component.Input, api *kubeapi.Client) (control.Rotation, error) {
	w := replacer{d}
	r, err := w.record(ctx)
	d.mu.Lock()
	known := d.rotating
	d.mu.Unlock()
	out := control.Rotation{State: known.shown(true), Note: known.note}
	if err != nil {
		out.Note = err.Error()
		return out, nil
	}
	all, err := w.reports(ctx)
	var f rotation.Facts
	if err == nil {
		f, err = lookAtTrust(ctx, api, in.Paths, in.Facts.NodeName, trusts(all))
	}
	if err != nil {
		f, out.Note = known.facts, err.Error()
	}
	if r != nil && err == nil {
		var next rotation.Record
		if next, out.Waits = rotation.Guide(*r, all, time.Now()); next.Serial == r.Serial && len(out.Waits) == 0 {
			_, out.Waits = r.Advance(f)
		}
	}
	wireTrust(&out, f)
	wireServers(&out, r, all)
	return out, nil
}

// wireServers tells of servers. Those that are not where all are to be are behind, too.
func wireServers(out *control.Rotation, r *rotation.Record, all []rotation.Report) {
	for _, s := range all {
		w := control.RotationServer{Name: s.Server, Stage: string(s.State.Stage), Number: s.State.Number, Ready: s.Ready, There: !out.State.Active()}
		if s.Err != nil {
			w.Error = s.Err.Error()
		}
		if r != nil && r.State.Active() {
			w.Turn, w.Leader, w.There = r.Turn == s.Server, r.Leader == s.Server, s.Err == nil && s.Ready && s.At(r.State)
		}
		if !w.There && out.State.Active() && !slices.Contains(out.Behind, s.Server) {
			out.Behind = append(out.Behind, s.Server)
		}
		out.Servers = append(out.Servers, w)
	}
	slices.Sort(out.Behind)
}

// rotateTogether is RotateCA for one of several.
func (d *Daemon) rotateTogether(ctx context.Context, in component.Input, api *kubeapi.Client, req control.RotateRequest) (control.Rotation, error) {
	w := replacer{d}
	if req.Finish || req.Abort {
		if err := w.endTogether(ctx, req); err != nil {
			return control.Rotation{}, err
		}
		return d.Rotation(ctx)
	}
	fail := func(err error) (control.Rotation, error) { return control.Rotation{}, err }
	d.together.Lock()
	defer d.together.Unlock()
	r, err := w.record(ctx)
	if err != nil {
		return fail(err)
	}
	if r != nil {
		if err := r.State.MayBegin(); err != nil {
			return fail(err)
		}
	}
	if err := d.unmoved(); err != nil {
		return fail(err)
	}
	all, err := pki.Replaceable(in.Paths, req.Dir, time.Now())
	if err != nil {
		return fail(fmt.Errorf("the cluster's CA cannot be replaced: %w", err))
	}
	servers, err := w.reports(ctx)
	if err != nil {
		return fail(err)
	}
	next, err := rotation.Propose(in.Facts.NodeName, r, servers, authorities(all), req.Keep, time.Now())
	if err != nil {
		return fail(err)
	}
	next.State.DropTokens = req.DropTokens
	warnings, err := d.rotationWarnings(ctx, api, req, all)
	if err != nil {
		return fail(err)
	}
	f, err := lookAtTrust(ctx, api, in.Paths, in.Facts.NodeName, trusts(servers))
	if err != nil {
		return fail(err)
	}
	if len(servers) == 2 {
		warnings = append(warnings, "etcd of two servers has no majority while one of them restarts: the API does not answer then, for a few seconds, six or eight times; with three it does")
	}
	answer := func() (control.Rotation, error) {
		out := control.Rotation{State: next.State, Warnings: warnings}
		wireTrust(&out, f)
		out.Behind = nil // nobody was asked for anything yet
		wireServers(&out, nil, servers)
		out.Behind = nil
		return out, nil
	}
	if req.DryRun {
		return answer()
	}
	d.renewing.Lock()
	all, err = pki.PrepareReplacement(ctx, in.Paths, req.Dir, time.Now())
	d.renewing.Unlock()
	forget := func(err error) (control.Rotation, error) { // keys that nobody knows of are not to lie about
		return control.Rotation{}, errors.Join(err, pki.ForgetReplacement(context.WithoutCancel(ctx), in.Paths))
	}
	if err != nil {
		return forget(err)
	}
	next.State.Authorities = authorities(all)
	if err := hold(in.Paths, next.State); err != nil {
		return forget(err)
	}
	// Keys that a Record names are always somewhere.
	err = w.agree(ctx, next)
	if errs.Is(err, errs.Exists) {
		return forget(err)
	}
	if err != nil { // it may have begun all the same, which shows in a moment
		d.wakeRotation()
		return fail(err)
	}
	d.log.Info("replacing the cluster's CA begins", "number", next.State.Number, "keep", next.State.Keep)
	d.wakeRotation()
	return answer()
}

// endTogether lets all servers know that the old authorities go now, or the new ones.
func (w replacer) endTogether(ctx context.Context, req control.RotateRequest) error {
	for {
		r, err := w.record(ctx)
		if err != nil {
			return err
		}
		if r == nil {
			r = &rotation.Record{}
		}
		next, err := r.Told(req.Abort, req.DropTokens, time.Now())
		if err != nil || req.DryRun || next.Serial == r.Serial {
			return err
		}
		err = w.agree(ctx, next)
		if errs.Is(err, errs.Exists) && ctx.Err() == nil {
			continue // what another server has said meanwhile is looked at first
		}
		w.d.wakeRotation()
		return err
	}
}
