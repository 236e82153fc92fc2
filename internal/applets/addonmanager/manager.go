package addonmanager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/wait"
)

// Intervals. What happens on disk is noticed at once where the system tells; the scan is for where it does not.
const (
	scanEvery   = time.Minute
	verifyEvery = 10 * time.Minute
	debounce    = 150 * time.Millisecond
	firstRetry  = 500 * time.Millisecond
	lastRetry   = time.Minute
	atOnce      = 8 // requests per stack
)

// manager keeps all stacks. Only the goroutine in run touches it; work on several stacks at once gets a state
// each.
type manager struct {
	o       options
	cluster *cluster
	log     *slog.Logger
	skip    []string
	states  map[stackID]*state
	// gone says why a directory cannot be trusted, by origin.
	gone       map[origin]error
	lastStatus []byte
}

// state is one stack: what is on disk, what was applied, how it went.
type state struct {
	id       stackID
	source   source // as of the last scan
	present  bool   // in the last scan
	stack    stack  // the parsed source, when parseErr is nil
	parseErr error
	inv      inventory
	err      error // of the last try
	attempts int
	retry    time.Time // not before, while err is set
	verified time.Time // when all objects were last seen to be there; zero is never in this run
	notReady error
	asked    time.Time // for readiness
	changed  time.Time // when something was applied last
	noted    string    // the error there is an event of
}

func newManager(o options, c *cluster, log *slog.Logger) *manager {
	m := &manager{o: o, cluster: c, log: log, states: map[stackID]*state{}, gone: map[origin]error{}}
	for name := range strings.SplitSeq(o.disable, ",") {
		if name = strings.TrimSpace(name); name != "" {
			m.skip = append(m.skip, name)
		}
	}
	return m
}

// run works until ctx ends.
func (m *manager) run(ctx context.Context) error {
	w := newWatcher(m.log, m.o.packaged, m.o.manifests)
	defer w.close()
	m.log.Debug("reading what was applied before")
	err := wait.Until(ctx, 200*time.Millisecond, "what was applied before", func(ctx context.Context) error {
		all, broken, err := m.cluster.loadInventories(ctx)
		if err != nil {
			m.log.Debug("not yet", "err", err)
			return err
		}
		for _, err := range broken {
			m.log.Warn("an inventory is broken; nothing will be removed because of it", "err", err)
		}
		clear(m.states)
		for id, inv := range all {
			m.states[id] = &state{id: id, inv: inv}
		}
		return nil
	})
	if err != nil {
		return nil //nolint:nilerr // only ctx ends it
	}
	scan := true
	for ctx.Err() == nil {
		if scan {
			m.scan()
			w.follow(m.subdirectories())
		}
		m.pass(ctx)
		if err := m.writeStatus(); err != nil {
			m.log.Error("status not written", "file", m.o.statusFile, "err", err)
		}
		scan = w.wait(ctx, m.next(time.Now()))
	}
	return nil
}

// scan looks at both directories and parses what is new.
func (m *manager) scan() {
	before := map[*state]bool{}
	for _, s := range m.states {
		before[s], s.present = s.present, false
	}
	for _, d := range []struct {
		origin origin
		path   string
		skip   []string
	}{{packaged, m.o.packaged, m.skip}, {user, m.o.manifests, nil}} {
		dir := scan(os.DirFS(d.path), d.origin, d.skip)
		if dir.gone != nil && m.gone[d.origin] == nil {
			m.log.Debug("nothing is removed because of what is not in a directory", "directory", d.path, "reason", dir.gone)
		}
		m.gone[d.origin] = dir.gone
		if d.origin == user && len(dir.sources) > 0 {
			mark(d.path)
		}
		for _, src := range dir.sources {
			s, ok := m.states[src.id]
			if !ok {
				s = &state{id: src.id}
				m.states[src.id] = s
			}
			s.update(src)
		}
	}
	for s, was := range before {
		if was && !s.present { // what it failed with says nothing about removing it
			s.err, s.attempts, s.retry = nil, 0, time.Time{}
		}
	}
}

// update takes in what is on disk now.
func (s *state) update(src source) {
	same := s.source.hash == src.hash && src.err == nil && s.source.err == nil && src.hash != ""
	s.present, s.source = true, src
	s.source.files = nil // the parsed stack is all that is needed from here on
	if same {
		return
	}
	s.stack, s.parseErr = parse(src)
	s.err, s.attempts, s.retry = nil, 0, time.Time{}
}

func (m *manager) subdirectories() []string {
	var out []string
	for _, s := range m.states {
		dir := m.o.manifests
		if s.id.origin == packaged {
			dir = m.o.packaged
		}
		if s.present {
			out = append(out, dir+"/"+s.id.name)
		}
	}
	return out
}

// sorted returns the states in a stable order.
func (m *manager) sorted() []*state {
	out := make([]*state, 0, len(m.states))
	for _, s := range m.states {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *state) int { return strings.Compare(a.id.String(), b.id.String()) })
	return out
}

// pass does what is due.
func (m *manager) pass(ctx context.Context) {
	now := time.Now()
	all := m.sorted()
	var stacks []stack
	unread := map[origin]string{} // a stack that cannot be read, by origin
	for _, s := range all {
		switch {
		case s.present && s.parseErr != nil:
			unread[s.id.origin] = s.id.name
		case s.present:
			stacks = append(stacks, s.stack)
		}
	}
	wanted := wantedBy(stacks)

	var work errgroup.Group
	work.SetLimit(4)
	for _, s := range all {
		if s.present && s.parseErr == nil && s.due(now) {
			work.Go(func() error {
				s.try(m.log, func() error { return m.sync(ctx, s, wanted, unread[s.id.origin]) })
				return nil
			})
		}
	}
	_ = work.Wait() // errors are in the states
	for _, s := range all {
		if s.present || ctx.Err() != nil {
			continue
		}
		switch why, name := m.gone[s.id.origin], unread[s.id.origin]; {
		case why != nil:
			s.fail(errs.Hint(fmt.Errorf("kept although its manifests are not there: %w", why),
				"if that is meant to be so, make an empty file %s in the directory", marker))
		case name != "":
			s.fail(fmt.Errorf("its manifests are gone; kept until %s can be read, which may want the same objects", name))
		case !now.Before(s.retry):
			s.try(m.log, func() error { return m.uninstall(ctx, s, wanted) })
			if s.err == nil {
				delete(m.states, s.id)
			}
		}
	}
	m.checkReady(ctx)
	for _, s := range all {
		m.note(ctx, s)
	}
}

// due tells whether there is something to do for a stack.
func (s *state) due(now time.Time) bool {
	if now.Before(s.retry) {
		return false
	}
	return s.err != nil || s.inv.Hash != s.stack.hash || now.Sub(s.verified) >= verifyEvery
}

// try keeps count of failures.
func (s *state) try(log *slog.Logger, f func() error) {
	err := f()
	if err == nil {
		if s.attempts > 0 {
			log.Info("stack works now", "stack", s.id.String(), "attempts", s.attempts+1)
		}
		s.err, s.attempts, s.retry = nil, 0, time.Time{}
		return
	}
	if s.err == nil || s.err.Error() != err.Error() {
		log.Warn("stack failed, it will be tried again", "stack", s.id.String(), "err", err)
	}
	s.err = err
	s.retry = time.Now().Add(pause(s.attempts))
	s.attempts++
}

// fail is for what no try would mend.
func (s *state) fail(err error) { s.err, s.retry = err, time.Time{} }

// pause before the next try, after this many failed ones.
func pause(attempts int) time.Duration {
	return min(firstRetry<<min(attempts, 20), lastRetry)
}

// sync applies a stack that is new or changed, and otherwise looks whether it is still as it was.
func (m *manager) sync(ctx context.Context, s *state, wanted map[ref]bool, unread string) error {
	if s.inv.Hash == s.stack.hash {
		return m.verify(ctx, s)
	}
	began := time.Now()
	before, grew := merged(s.inv.Objects, s.stack.objects)
	if grew || s.inv.Hash != "" {
		// Not complete from here on until it is.
		s.inv = inventory{Objects: before, Drift: s.inv.Drift}
		if err := m.cluster.saveInventory(ctx, s.id, s.inv); err != nil {
			return err
		}
	}
	s.inv.Objects = before
	results, err := m.applyAll(ctx, s.stack.objects, s.id.origin == user)
	s.record(results)
	s.changed = time.Now()
	if err != nil {
		return errors.Join(err, m.cluster.saveInventory(ctx, s.id, s.inv))
	}
	// What left the stack goes when all that replaces it is there, and when it cannot be that another stack
	// has it now.
	own := wantedBy([]stack{s.stack})
	stale := prunable(s.inv.Objects, wanted)
	if unread != "" && len(stale) > 0 {
		return fmt.Errorf("%d objects left it; they are kept until %s can be read, which may want them", len(stale), unread)
	}
	failed, err := m.removeAll(ctx, stale)
	s.inv.Objects = slices.DeleteFunc(s.inv.Objects, func(a applied) bool { return !own[a.ref] && !failed[a.ref] })
	if err == nil {
		s.inv.Hash = s.stack.hash
	}
	err = errors.Join(err, m.cluster.saveInventory(ctx, s.id, s.inv))
	if err == nil {
		s.verified = time.Now()
		m.log.Info("stack applied", "stack", s.id.String(), "objects", len(s.stack.objects), "removed", len(stale), "after", time.Since(began).Round(time.Millisecond))
	}
	return err
}

// record takes in what applying led to.
func (s *state) record(results []result) {
	s.inv.Drift = nil
	for _, r := range results {
		for i := range s.inv.Objects {
			if s.inv.Objects[i].ref == r.ref {
				s.inv.Objects[i] = r.applied
			}
		}
		s.inv.Drift = append(s.inv.Drift, describe(r.ref, r.drift)...)
	}
	slices.Sort(s.inv.Drift)
}

func describe(r ref, drift []conflict) []string {
	var out []string
	for _, c := range drift {
		out = append(out, fmt.Sprintf("%s: %s is set by %s", r, c.field, c.manager))
	}
	return out
}

// applyAll applies phase by phase. It goes on after failures, except that nothing is applied into
// namespaces or as kinds that could not be made.
func (m *manager) applyAll(ctx context.Context, objects []object, force bool) ([]result, error) {
	var results []result
	var problems []error
	for p, objs := range ordered(objects) {
		got := make([]result, len(objs))
		failed := make([]error, len(objs))
		var work errgroup.Group
		work.SetLimit(atOnce)
		for i, o := range objs {
			work.Go(func() error {
				got[i], failed[i] = m.applyOne(ctx, o, force)
				return nil
			})
		}
		_ = work.Wait()
		for i := range objs {
			if failed[i] != nil {
				problems = append(problems, fmt.Errorf("%s: applying %s: %w", objs[i].where, objs[i].ref(), failed[i]))
			} else {
				results = append(results, got[i])
			}
		}
		if p == phaseFirst && len(problems) > 0 {
			break
		}
	}
	return results, errors.Join(problems...)
}

func (m *manager) applyOne(ctx context.Context, o object, force bool) (result, error) {
	r, err := m.cluster.apply(ctx, o, force)
	if err != nil || o.GetKind() != "CustomResourceDefinition" {
		return r, err
	}
	m.cluster.learnCRD(o.Unstructured)
	return r, m.cluster.established(ctx, r.applied)
}

// removeAll deletes in order and returns what could not be.
func (m *manager) removeAll(ctx context.Context, stale []applied) (failed map[ref]bool, err error) {
	failed = map[ref]bool{}
	var problems []error
	for _, a := range stale {
		removed, err := m.cluster.remove(ctx, a)
		if err != nil {
			failed[a.ref] = true
			problems = append(problems, fmt.Errorf("removing %s: %w", a.ref, err))
		} else if removed {
			m.log.Info("object removed", "object", a.ref.String())
		}
	}
	return failed, errors.Join(problems...)
}

// verify looks at every object of an unchanged stack. What is missing is applied again. What somebody else
// has changed stays changed, which is reported; in the user's own stacks, fields that nobody owns any more
// are given back their value.
func (m *manager) verify(ctx context.Context, s *state) error {
	live := make([]applied, len(s.inv.Objects))
	var work errgroup.Group
	work.SetLimit(atOnce)
	for i, a := range s.inv.Objects {
		work.Go(func() error {
			u, err := m.cluster.look(ctx, a)
			if err != nil {
				return fmt.Errorf("looking at %s: %w", a.ref, err)
			}
			if u != nil {
				live[i] = applied{ref: a.ref, Version: a.Version, UID: string(u.GetUID()), Owned: owned(u)}
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	byRef := map[ref]object{}
	for _, o := range s.stack.objects {
		byRef[o.ref()] = o
	}
	var missing, changed []object
	for i, a := range s.inv.Objects {
		o, ok := byRef[a.ref]
		switch {
		case !ok || live[i] == a:
		case live[i].UID == "" || live[i].Owned == "":
			missing = append(missing, o) // or made anew by somebody else
		default:
			changed = append(changed, o)
		}
	}
	s.verified = time.Now()
	if len(missing)+len(changed) == 0 {
		return nil
	}
	results, err := m.applyAll(ctx, missing, s.id.origin == user)
	if len(missing) > 0 {
		s.changed = time.Now()
		m.log.Info("objects were missing and are back", "stack", s.id.String(), "objects", len(results))
	}
	if s.id.origin == user {
		again, e := m.applyAll(ctx, changed, false)
		results, err = append(results, again...), errors.Join(err, e)
	} else {
		kept, e := m.leave(ctx, changed, live)
		results, err = append(results, kept...), errors.Join(err, e)
	}
	s.renew(results)
	return errors.Join(err, m.cluster.saveInventory(ctx, s.id, s.inv))
}

// leave finds out what somebody has changed and does nothing about it.
func (m *manager) leave(ctx context.Context, changed []object, live []applied) ([]result, error) {
	var out []result
	var problems []error
	for _, o := range changed {
		drift, err := m.cluster.drift(ctx, o)
		if err != nil {
			problems = append(problems, fmt.Errorf("comparing %s: %w", o.ref(), err))
			continue
		}
		i := slices.IndexFunc(live, func(a applied) bool { return a.ref == o.ref() })
		if len(drift) == 0 {
			drift = []conflict{{"something", "nobody any more: it was removed"}}
		}
		out = append(out, result{live[i], drift})
	}
	return out, errors.Join(problems...)
}

// renew replaces what is known of some objects of the stack.
func (s *state) renew(results []result) {
	for _, r := range results {
		prefix := r.ref.String() + ": "
		s.inv.Drift = slices.DeleteFunc(s.inv.Drift, func(d string) bool { return strings.HasPrefix(d, prefix) })
		s.inv.Drift = append(s.inv.Drift, describe(r.ref, r.drift)...)
		for i := range s.inv.Objects {
			if s.inv.Objects[i].ref == r.ref {
				s.inv.Objects[i] = r.applied
			}
		}
	}
	slices.Sort(s.inv.Drift)
}

// uninstall removes a stack that is gone from disk.
func (m *manager) uninstall(ctx context.Context, s *state, wanted map[ref]bool) error {
	stale := prunable(s.inv.Objects, wanted)
	failed, err := m.removeAll(ctx, stale)
	s.inv.Hash = ""
	s.inv.Objects = slices.DeleteFunc(s.inv.Objects, func(a applied) bool { return !failed[a.ref] })
	if err != nil {
		return errors.Join(err, m.cluster.saveInventory(ctx, s.id, s.inv))
	}
	if err := m.cluster.dropInventory(ctx, s.id); err != nil {
		return err
	}
	m.log.Info("stack removed", "stack", s.id.String(), "objects", len(stale))
	return nil
}

// checkReady asks for the add-ons that say what makes them ready: often while they start, rarely later.
func (m *manager) checkReady(ctx context.Context) {
	now := time.Now()
	for _, s := range m.states {
		if now.Before(s.nextReady()) {
			continue
		}
		s.asked = now
		err := m.cluster.ready(ctx, s.stack.ready)
		if err == nil && s.notReady != nil {
			m.log.Info("stack is ready", "stack", s.id.String())
		}
		s.notReady = err
	}
}

// nextReady is when to ask for readiness again; far away for stacks without an answer.
func (s *state) nextReady() time.Time {
	if !s.present || s.parseErr != nil || len(s.stack.ready) == 0 || s.inv.Hash != s.stack.hash {
		return time.Now().Add(24 * time.Hour)
	}
	if s.asked.Before(s.changed) || s.asked.IsZero() {
		return time.Time{}
	}
	if s.notReady == nil {
		return s.asked.Add(scanEvery)
	}
	return s.asked.Add(min(max(s.asked.Sub(s.changed)/8, 300*time.Millisecond), 15*time.Second))
}

// next is how long there is nothing to do.
func (m *manager) next(now time.Time) time.Duration {
	at := now.Add(scanEvery)
	earlier := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	for _, s := range m.states {
		if s.err != nil && !s.retry.IsZero() {
			earlier(s.retry)
		}
		earlier(s.nextReady())
	}
	return max(at.Sub(now), 10*time.Millisecond)
}
