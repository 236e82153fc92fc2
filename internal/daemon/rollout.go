package daemon

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/upgrade/rollout"
)

// rolloutRecord is the ConfigMap of kube-system that has what the servers agree about. The plan in it is signed.
const (
	rolloutRecord    = "k1s-upgrade"
	rolloutRecordKey = "record"
)

// What an upgrade of the cluster writes on a Node: that it is its turn, and that it gets no new pods because of that. Both are the ID of the plan.
const (
	turnAnnotation   = "k1s.io/upgrade"
	cordonAnnotation = "k1s.io/upgrade-cordoned"
)

const (
	// lookForRollout is how often one of several servers looks whether another one upgrades the cluster, and lookAloneForRollout a single one,
	// which is told itself; lookAtRollout is how often it is looked at while it goes on.
	lookForRollout      = 5 * time.Second
	lookAloneForRollout = time.Minute
	lookAtRollout       = time.Second
	// believePlan is for how long a signature that was looked at is not looked at again: who has signed may be removed.
	believePlan = 30 * time.Second
	// maxTold is how many bytes of a reason that a node tells are kept.
	maxTold = 2 << 10
	// maxParallel bounds how many agents are without their kubelet at a time because somebody has mistyped a number.
	maxParallel = 100
)

// clusterUpgrades is what is said to be under way.
const clusterUpgrades = "the cluster is being upgraded"

// rolloutState is what the daemon knows of an upgrade of the cluster; Daemon.mu guards it.
type rolloutState struct {
	wake chan struct{}
	// record is what the servers agree about, as it was read last; nil for nothing yet. Its plan was looked at, or is empty.
	record *rollout.Record
	// opened is the plan that was looked at last, and when.
	opened   rollout.Signed
	plan     rollout.Plan
	openedAt time.Time
	// reports are those that this server has heard, and waits what follows from them, where it leads.
	reports map[string]rollout.Report
	waits   []string
	note    string    // why nothing is known now, or it does not go on
	swept   int64     // one more than the serial of a record at its end of which nothing is left on nodes, 0 for none was looked for
	sweepAt time.Time // when a program that is tried looks next whether it runs the node
	// obeys is the order this node follows.
	obeys obedience
	// digest is that of the program that runs.
	digest string
}

// upgrader is this server as one that upgrades the cluster.
type upgrader struct{ d *Daemon }

var _ join.Upgrades = upgrader{}

// errDamagedRollout is of a record that cannot be read.
var errDamagedRollout = errors.New("it is damaged")

// record is what the servers agree about, nil for nothing yet. A plan that nobody has signed who may is left closed; the error says so.
func (w upgrader) record(ctx context.Context) (*rollout.Record, error) {
	m, err := w.d.client().ConfigMap(ctx, systemNamespace, rolloutRecord)
	if errs.Is(err, errs.NotFound) {
		w.knows(nil)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("finding out how far the upgrade of the cluster is: %w", err)
	}
	r, err := rollout.Unmarshal([]byte(m.Data[rolloutRecordKey]))
	if err != nil {
		w.knows(nil)
		return nil, errs.Hint(fmt.Errorf("the configmap %s/%s is not as k1s wrote it, %w: %w", systemNamespace, rolloutRecord, errDamagedRollout, err),
			"delete it: k1s kubectl -n %s delete configmap %s; then begin again: k1s upgrade --cluster --file NEW", systemNamespace, rolloutRecord)
	}
	r.Version = m.Metadata.ResourceVersion
	if r.Active() {
		r.Plan, err = w.open(ctx, r.Signed)
	} else {
		r.Plan, _, _ = r.Signed.Open() // it is only shown
	}
	w.knows(&r)
	return &r, err
}

func (w upgrader) knows(r *rollout.Record) {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	w.d.rolling.record = r
}

// open is a plan that a server of this cluster has signed.
func (w upgrader) open(ctx context.Context, s rollout.Signed) (rollout.Plan, error) {
	w.d.mu.Lock()
	known := w.d.rolling
	w.d.mu.Unlock()
	same := bytes.Equal(known.opened.Plan, s.Plan) && bytes.Equal(known.opened.Key, s.Key) && bytes.Equal(known.opened.Signature, s.Signature)
	if same && time.Since(known.openedAt) < believePlan {
		return known.plan, nil
	}
	p, by, err := s.Open()
	if err != nil {
		return rollout.Plan{}, errs.Hint(err, "call it off, and begin again: k1s upgrade abort")
	}
	all, err := clusterStore{api: w.d.client()}.Bindings(ctx)
	if err != nil {
		return rollout.Plan{}, fmt.Errorf("finding out who has signed what the cluster is to be upgraded to: %w", err)
	}
	if !slices.ContainsFunc(all, func(b join.Binding) bool {
		return b.Node == p.By && b.Identity == by && b.Role == token.Server && b.Leaving.IsZero()
	}) {
		return rollout.Plan{}, errs.Hint(errs.New(errs.Denied, "what the cluster is to be upgraded to is signed in the name of %s, and not by a server of this cluster", p.By), "call it off, and begin again: k1s upgrade abort")
	}
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	w.d.rolling.opened, w.d.rolling.plan, w.d.rolling.openedAt = s, p, time.Now()
	return p, nil
}

// agree writes what the servers agree about in the place of what was read; an error of kind errs.Exists says that another one was faster.
func (w upgrader) agree(ctx context.Context, r rollout.Record) error {
	err := w.d.client().WriteConfigMap(ctx, systemNamespace, kubeapi.ConfigMap{
		Metadata: kubeapi.SecretMeta{Name: rolloutRecord, ResourceVersion: r.Version}, Data: map[string]string{rolloutRecordKey: string(r.Marshal())},
	})
	if errs.Is(err, errs.Exists) {
		return errs.Hint(errs.New(errs.Exists, "another server has said in the same moment how the upgrade of the cluster goes on"), "see: k1s upgrade status")
	}
	if err != nil {
		return fmt.Errorf("letting the servers agree about the upgrade of the cluster: %w", err)
	}
	var steps []string
	for _, n := range r.Nodes {
		steps = append(steps, n.Name+" "+string(n.Step))
	}
	w.d.log.Info("the upgrade of the cluster goes on", "stage", r.Stage, "serial", r.Serial, "nodes", strings.Join(steps, ", "))
	return nil
}

// watchRollout goes on with an upgrade of the cluster there is, and with those that are asked for.
func (d *Daemon) watchRollout(ctx context.Context) {
	if d.sup.Await(ctx, "kube-apiserver", component.Ready) != nil {
		return
	}
	drains := newDrains(d)
	defer drains.end()
	d.mu.Lock()
	wake := d.rolling.wake
	d.mu.Unlock()
	for {
		pause, err := d.rollOn(ctx, drains)
		if ctx.Err() != nil {
			return
		}
		if errs.Is(err, errs.Exists) { // another server was faster: what it has said counts
			d.log.Debug("another server has said how the upgrade of the cluster goes on", "err", err)
			err = nil
		}
		d.noteRollout(err)
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-time.After(pause):
		}
	}
}

// noteRollout tells why it does not go on.
func (d *Daemon) noteRollout(err error) {
	d.mu.Lock()
	r, before := d.rolling.record, d.rolling.note
	d.rolling.note = ""
	if err != nil {
		d.rolling.note = err.Error()
	}
	d.mu.Unlock()
	if err != nil && err.Error() != before {
		d.log.Warn("the upgrade of the cluster does not go on", "err", err)
	}
	d.board.Report("cluster upgrade", rolloutProblems(r, err))
}

func rolloutProblems(r *rollout.Record, err error) []health.Problem {
	if errors.Is(err, errDamagedRollout) {
		return []health.Problem{health.FromError(err, health.UpgradeHalted, "").As(health.Warning)}
	}
	if r == nil || !r.Active() {
		return nil
	}
	if err != nil && errs.Is(err, errs.Denied) {
		return []health.Problem{health.FromError(err, health.UpgradeHalted, "").As(health.Warning)}
	}
	if failed := r.Failed(); r.Stage == rollout.Halted && failed != nil {
		p := health.New(health.UpgradeHalted, "the upgrade of the cluster to %s has halted: %s: %s", r.Plan.To, failed.Name, failed.Error)
		if failed.Hint != "" {
			p = p.Fix("%s; then: k1s upgrade resume, or leave it as it is: k1s upgrade abort", failed.Hint)
		}
		return []health.Problem{p}
	}
	return nil
}

// rollOn is one look at what is agreed about, and what follows from it. The answer is after what time there is something to do again.
func (d *Daemon) rollOn(ctx context.Context, drains *drains) (time.Duration, error) {
	w := upgrader{d}
	idle := lookAloneForRollout
	if d.isSeveral() {
		idle = lookForRollout
	}
	r, err := w.record(ctx)
	d.mu.Lock()
	tried, self := d.upgrading.Active(), d.in.Facts.NodeName
	d.mu.Unlock()
	if r == nil && err != nil {
		drains.only(nil)
		return lookForRollout, err
	}
	if r == nil { // there never was one, or somebody has removed it: then nodes are not left as they were for their turn
		r = &rollout.Record{}
	}
	d.mu.Lock()
	quiet := !r.Active() && (d.rolling.swept == r.Serial+1 || time.Now().Before(d.rolling.sweepAt))
	d.mu.Unlock()
	if quiet {
		drains.only(nil)
		w.forget(ctx)
		return idle, err
	}
	servers, serversErr := (changer(w)).servers(ctx)
	if serversErr != nil {
		return lookAtRollout, errors.Join(err, serversErr)
	}
	// A program that is tried decides nothing for others.
	leads := !tried && rollout.Leads(self, *r, namesOf(servers))
	if !r.Active() {
		drains.only(nil)
		w.forget(ctx)
		// Each server looks, not the one that leads alone: one that led before may have written on a node after that one has looked.
		if tried {
			d.mu.Lock()
			d.rolling.sweepAt = time.Now().Add(lookAloneForRollout)
			d.mu.Unlock()
			return idle, err
		}
		left, err := w.sweep(ctx, *r)
		if err != nil || left {
			return lookAtRollout, err
		}
		d.mu.Lock()
		d.rolling.swept, d.rolling.reports, d.rolling.waits = r.Serial+1, nil, nil
		d.mu.Unlock()
		return idle, nil
	}
	d.mu.Lock()
	d.rolling.swept, d.rolling.sweepAt = 0, time.Time{}
	d.mu.Unlock()
	own := d.upgradeReport(ctx)
	sources := addresses(servers, r.Leader)
	var told error
	if leads {
		told = w.lead(ctx, *r, own, servers, drains)
	} else {
		drains.only(nil)
		d.mu.Lock()
		if d.rolling.waits = []string{r.Leader + " decides how it goes on"}; tried {
			d.rolling.waits = []string{self + " is just trying the program, and decides nothing until that is over"}
		}
		d.mu.Unlock()
		if at := servers[r.Leader]; at != "" {
			told = w.tell(ctx, at, own)
		}
	}
	if err == nil && !tried {
		d.follow(ctx, r.Order(self), sources)
	}
	if !r.Moving() { // a person says how it goes on, which may take days
		return lookForRollout, errors.Join(err, told)
	}
	return lookAtRollout, errors.Join(err, told)
}

// forget removes the program of an upgrade that has ended.
func (w upgrader) forget(ctx context.Context) {
	d := w.d
	if _, err := os.Stat(d.o.Paths.Programs()); err != nil || !d.staging.TryLock() {
		return // there is none, or somebody is just putting one there
	}
	defer d.staging.Unlock()
	r, err := w.record(ctx) // again: another upgrade may have begun
	if err != nil || r != nil && r.Active() {
		return
	}
	if err := d.removePrograms(); err != nil {
		d.log.Warn("what an upgrade has left is not removed", "err", err)
	}
}

// namesOf are servers by name, without addresses of which nobody knows whose they are.
func namesOf(servers map[string]string) []string {
	var out []string
	for name, at := range servers {
		if name != at {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// addresses are where other servers are, that of one name first.
func addresses(servers map[string]string, first string) []string {
	var out []string
	for _, name := range namesOf(servers) {
		switch at := servers[name]; {
		case at == "":
		case name == first:
			out = slices.Insert(out, 0, at)
		default:
			out = append(out, at)
		}
	}
	return out
}

// tell lets the leader hear of this server.
func (w upgrader) tell(ctx context.Context, leader string, own rollout.Report) error {
	ctx, cancel := context.WithTimeoutCause(ctx, askServer, fmt.Errorf("no answer within %s", askServer))
	defer cancel()
	identity, cas, self, err := w.d.credentials()
	if err == nil {
		_, err = join.Client{Server: leader, CAs: cas}.Upgrade(ctx, identity, join.UpgradeRequest{Node: self, Report: own})
	}
	if err != nil {
		return errs.Hint(fmt.Errorf("the server that leads the upgrade of the cluster does not hear this one: %w", err), "if it does not come back, on another server: k1s node remove NAME, or k1s upgrade abort")
	}
	return nil
}

// lead does what has to be done now, and keeps what follows.
func (w upgrader) lead(ctx context.Context, r rollout.Record, own rollout.Report, servers map[string]string, drains *drains) error {
	f, nodes, err := w.look(ctx, servers)
	if err != nil {
		return err
	}
	own.At = f.Now
	f.Reports[own.Node] = own
	f.Drains = drains.seen()
	next, actions, waits := r.Advance(f)
	w.d.mu.Lock()
	w.d.rolling.waits = waits
	w.d.mu.Unlock()
	drains.only(actions)
	var failed []error
	for _, a := range actions {
		if err := w.do(ctx, r, a, nodes, drains); err != nil {
			failed = append(failed, err)
		}
	}
	if next.Serial != r.Serial {
		next.Leader = own.Node
		failed = append(failed, w.agree(ctx, next))
	}
	return errors.Join(failed...)
}

// sweep releases what is left of an upgrade at its end, and tells whether there was anything.
func (w upgrader) sweep(ctx context.Context, r rollout.Record) (bool, error) {
	f, nodes, err := w.look(ctx, nil)
	if err != nil {
		return true, err
	}
	_, actions, _ := r.Advance(f)
	var failed []error
	for _, a := range actions {
		if err := w.do(ctx, r, a, nodes, nil); err != nil {
			failed = append(failed, err)
		}
	}
	return len(actions) > 0, errors.Join(failed...)
}

// look finds out how the nodes are.
func (w upgrader) look(ctx context.Context, servers map[string]string) (rollout.Facts, map[string]kubeapi.Node, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("no answer within %s", lookTime))
	defer cancel()
	api := w.d.client()
	f := rollout.Facts{Machines: map[string]bool{}, Nodes: map[string]rollout.Seen{}, Reports: map[string]rollout.Report{}}
	bindings, err := clusterStore{api: api}.Bindings(ctx)
	if err != nil {
		return f, nil, fmt.Errorf("finding the nodes of the cluster: %w", err)
	}
	for _, b := range bindings {
		if b.Leaving.IsZero() {
			f.Machines[b.Node] = b.Role == token.Server
		}
	}
	for _, name := range namesOf(servers) {
		f.Machines[name] = true
	}
	all, err := api.Nodes(ctx)
	if err != nil {
		return f, nil, fmt.Errorf("finding the nodes of the cluster: %w", err)
	}
	nodes := map[string]kubeapi.Node{}
	for _, n := range all {
		nodes[n.Metadata.Name] = n
		seen := rollout.Seen{Kubelet: n.Status.NodeInfo.KubeletVersion, Unschedulable: n.Spec.Unschedulable}
		if err := n.Ready(time.Time{}); err != nil {
			seen.Why = err.Error()
		} else {
			seen.Ready = true
		}
		_, seen.Called = n.Metadata.Annotations[turnAnnotation]
		_, seen.Cordoned = n.Metadata.Annotations[cordonAnnotation]
		f.Nodes[n.Metadata.Name] = seen
	}
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	for name, rep := range w.d.rolling.reports {
		f.Reports[name] = rep
	}
	f.Now = time.Now()
	return f, nodes, nil
}

// do does one thing to a node.
func (w upgrader) do(ctx context.Context, r rollout.Record, a rollout.Action, nodes map[string]kubeapi.Node, drains *drains) error {
	annotations, spec := map[string]any{}, map[string]any{}
	meta := map[string]any{"annotations": annotations}
	switch a.Deed {
	case rollout.Empty:
		drains.begin(ctx, r.Plan.ID, a.Node, a.Within)
		return nil
	case rollout.Call:
		annotations[turnAnnotation] = r.Plan.ID
	case rollout.Cordon:
		// In one write, and only on what was looked at: what a person cordons stays theirs.
		meta["resourceVersion"] = nodes[a.Node].Metadata.ResourceVersion
		annotations[cordonAnnotation], spec["unschedulable"] = r.Plan.ID, true
	case rollout.Release:
		annotations[turnAnnotation] = nil
		if _, ours := nodes[a.Node].Metadata.Annotations[cordonAnnotation]; ours {
			annotations[cordonAnnotation], spec["unschedulable"] = nil, nil
		}
	}
	err := w.d.client().PatchNode(ctx, a.Node, map[string]any{"metadata": meta, "spec": spec})
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Exists) { // it is looked at again
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s of node %s: %w", a.Deed, a.Node, err)
	}
	w.d.log.Info("upgrading the cluster", "node", a.Node, "deed", a.Deed)
	return nil
}

// Report implements join.Upgrades.
func (w upgrader) Report(ctx context.Context, rep rollout.Report) (join.UpgradeAnswer, error) {
	d := w.d
	d.mu.Lock()
	r, self := d.rolling.record, d.in.Facts.NodeName
	d.mu.Unlock()
	if r == nil || !r.Active() || r.Plan.ID == "" {
		// It may have been agreed about since this server has looked.
		var err error
		if r, err = w.record(ctx); err != nil {
			return join.UpgradeAnswer{}, errs.As(errs.NotRunning, err)
		}
		if r == nil || !r.Active() {
			return join.UpgradeAnswer{}, nil
		}
	}
	if r.Leader != self {
		servers, err := (changer(w)).servers(ctx)
		if err != nil {
			return join.UpgradeAnswer{}, errs.As(errs.NotRunning, err)
		}
		if at := servers[r.Leader]; at != "" {
			return join.UpgradeAnswer{Leader: at}, nil
		}
		return join.UpgradeAnswer{}, errs.New(errs.NotRunning, "no server leads the upgrade of the cluster in this moment")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rolling.reports == nil {
		d.rolling.reports = map[string]rollout.Report{}
	}
	phase := string(rep.Phase)
	for _, text := range []*string{&rep.Why, &rep.Doing, &rep.Error, &rep.Hint, &rep.Digest, &rep.Version, &rep.Kubernetes, &rep.Order, &phase} {
		*text = told(*text)
	}
	rep.Phase = upgrade.Phase(phase)
	rep.At = time.Now()
	d.rolling.reports[rep.Node] = rep
	return join.UpgradeAnswer{Order: r.Order(rep.Node)}, nil
}

// told is what is kept of what a node says: it is not to fill the record of all, nor to write more than text on a person's terminal.
func told(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxTold)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// Program implements join.Upgrades.
func (w upgrader) Program(digest string) (join.Program, error) {
	w.d.mu.Lock()
	r := w.d.rolling.record
	w.d.mu.Unlock()
	none := errs.New(errs.NotFound, "the cluster is not upgraded to that program, or it is not on this server")
	if r == nil || !r.Active() || r.Plan.ID == "" || digest != r.Plan.To.Digest {
		return join.Program{}, none
	}
	f, err := os.Open(w.d.programFile(r.Plan.To.Digest))
	if errors.Is(err, os.ErrNotExist) {
		return join.Program{}, none
	}
	if err != nil {
		return join.Program{}, fmt.Errorf("reading the program that the cluster is upgraded to: %w", err)
	}
	return join.Program{ReadCloser: f, Bytes: r.Plan.To.Bytes}, nil
}

// upgradable is an error where no upgrade of the cluster can begin at this server now.
func (d *Daemon) upgradable() (component.Input, *kubeapi.Client, error) {
	in, api, err := d.server()
	if err != nil {
		return in, nil, err
	}
	d.mu.Lock()
	busy := d.underWay()
	d.mu.Unlock()
	if busy != "" {
		return in, nil, errs.Hint(errs.New(errs.Exists, "cannot upgrade the cluster now: %s", busy), "wait for its end")
	}
	return in, api, nil
}

// UpgradeCluster implements control.Backend.
func (d *Daemon) UpgradeCluster(ctx context.Context, r control.ClusterUpgradeRequest) (control.ClusterUpgrade, error) {
	switch r.Action {
	case control.ResumeUpgrade, control.AbortUpgrade:
		return d.steerRollout(ctx, r)
	case "":
	default:
		return control.ClusterUpgrade{}, errs.New(errs.Usage, "%q is nothing that can be done with an upgrade of the cluster", r.Action)
	}
	if !filepath.IsAbs(r.File) || r.Timeout <= 0 || r.Drain < 0 || r.Parallel < 1 || r.Parallel > maxParallel {
		return control.ClusterUpgrade{}, errs.New(errs.Usage, "an upgrade of the cluster needs the path of a file, times, and of agents 1 to %d at a time", maxParallel)
	}
	in, api, err := d.upgradable()
	if err != nil {
		return control.ClusterUpgrade{}, err
	}
	if !d.staging.TryLock() {
		return control.ClusterUpgrade{}, errs.Hint(errs.New(errs.Exists, "another upgrade of the cluster is being prepared"), "see: k1s upgrade status")
	}
	defer d.staging.Unlock()
	w := upgrader{d}
	before, err := w.record(ctx)
	if err != nil && (before == nil || !errs.Is(err, errs.Denied)) {
		return control.ClusterUpgrade{}, err
	}
	from, err := d.ownProgram()
	if err != nil {
		return control.ClusterUpgrade{}, err
	}
	if before != nil { // before a file is copied
		if _, err := rollout.Begin(in.Facts.NodeName, before, rollout.Signed{}, rollout.Plan{}, nil); err != nil {
			return control.ClusterUpgrade{}, err
		}
	}
	file := r.File
	if !r.DryRun { // what is looked at is the copy: it is what will run
		if file, err = d.stageProgram(r.File); err != nil {
			return control.ClusterUpgrade{}, err
		}
	}
	answer, next, err := d.planRollout(ctx, in, api, r, before, from, file)
	if err != nil || r.DryRun {
		if !r.DryRun {
			err = errors.Join(err, removeIfThere(file))
		}
		return answer, err
	}
	if err := d.keepProgram(file, next.Plan.To.Digest); err != nil {
		return control.ClusterUpgrade{}, err
	}
	if err := w.agree(ctx, next); err != nil {
		return control.ClusterUpgrade{}, err
	}
	d.mu.Lock()
	d.rolling.reports = nil
	d.mu.Unlock()
	d.wakeRollout()
	return answer, nil
}

// planRollout is what an upgrade of the cluster would be, or why it must not be.
func (d *Daemon) planRollout(ctx context.Context, in component.Input, api *kubeapi.Client, r control.ClusterUpgradeRequest, before *rollout.Record, from upgrade.Program, file string) (control.ClusterUpgrade, rollout.Record, error) {
	fail := func(err error) (control.ClusterUpgrade, rollout.Record, error) {
		return control.ClusterUpgrade{}, rollout.Record{}, err
	}
	to, err := inspect(ctx, file, r.File)
	if err != nil {
		return fail(err)
	}
	if r.SHA256 != "" && !strings.EqualFold(r.SHA256, to.Digest) {
		return fail(errs.Hint(errs.New(errs.Invalid, "%s has the SHA-256 %s, and not the one that was given", r.File, to.Digest), "get the file again: it is damaged, or another one"))
	}
	if to.Digest != from.Digest {
		around, err := lookAround(ctx, in, api)
		if err != nil {
			return fail(err)
		}
		if err := upgrade.Check(from, to, around, r.AllowOlder); err != nil {
			return fail(wrapped(err, "cannot upgrade the cluster to "+r.File))
		}
	}
	if s := d.Status(ctx); s.State != control.Running {
		return fail(errs.Hint(errs.New(errs.NotRunning, "cannot upgrade the cluster now: the node is %s%s", s.State, notWell(s)), "see: k1s status"))
	}
	servers, err := changer{d}.servers(ctx)
	if err != nil {
		return fail(err)
	}
	f, nodes, err := upgrader{d}.look(ctx, servers)
	if err != nil {
		return fail(err)
	}
	warnings, err := mayRollOut(f, nodes, in.Facts.NodeName, r.Drain)
	if err != nil {
		return fail(err)
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return fail(err)
	}
	p := rollout.Plan{
		ID: hex.EncodeToString(id), By: in.Facts.NodeName, To: to, AllowOlder: r.AllowOlder, Timeout: r.Timeout, Drain: r.Drain, Parallel: r.Parallel,
		Began: time.Now().UTC().Truncate(time.Second),
	}
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		return fail(err)
	}
	signed, err := rollout.Sign(identity, p)
	if err != nil {
		return fail(err)
	}
	if _, err := (upgrader{d}).open(ctx, signed); err != nil { // as every server will
		return fail(errs.Hint(errs.New(errs.NotRunning, "cannot upgrade the cluster now: the others would not know who has said so: %w", err), "this server has just started, or was removed; see: k1s status"))
	}
	next, err := rollout.Begin(in.Facts.NodeName, before, signed, p, f.Machines)
	if err != nil {
		return fail(err)
	}
	out := wireRollout(&next, f, nil)
	out.From, out.Warnings = from, warnings
	return out, next, nil
}

// wrapped puts words before an error that keeps its kind and its hint.
func wrapped(err error, before string) error {
	hint, _ := errs.HintOf(err)
	err = errs.As(errs.KindOf(err), fmt.Errorf("%s: %w", before, err))
	if hint != "" {
		err = errs.Hint(err, "%s", hint)
	}
	return err
}

// mayRollOut is an error where nodes cannot all go over to one file, or not now, and else what is worth knowing before.
func mayRollOut(f rollout.Facts, nodes map[string]kubeapi.Node, self string, drain time.Duration) ([]string, error) {
	var warnings, away []string
	servers, workers := 0, 0
	for _, name := range slices.Sorted(maps.Keys(f.Machines)) {
		if f.Machines[name] {
			servers++
		}
		n, there := nodes[name]
		if !there {
			continue
		}
		workers++
		if arch := n.Status.NodeInfo.Architecture; arch != "" && arch != runtime.GOARCH {
			return nil, errs.Hint(errs.New(errs.Unsupported, "cannot upgrade the cluster: node %s is %s, and the file is for %s", name, arch, runtime.GOARCH), "upgrade nodes of several architectures one by one: k1s upgrade --file NEW on each, servers first")
		}
		seen := f.Nodes[name]
		switch {
		case seen.Ready || name == self:
		case f.Machines[name]:
			return nil, errs.Hint(errs.New(errs.NotRunning, "cannot upgrade the cluster now: server %s is not Ready: %s", name, seen.Why), "start it; if it does not come back: k1s node remove %s", name)
		default:
			away = append(away, name)
		}
	}
	if len(away) > 0 {
		warnings = append(warnings, fmt.Sprintf("not Ready: %s; they come last, and the upgrade halts there when they are not back by then", strings.Join(away, ", ")))
	}
	switch {
	case servers == 1:
		warnings = append(warnings, "with one server the API does not answer while its control plane restarts, for a second or two")
	case servers == 2:
		warnings = append(warnings, "etcd of two servers has no majority while one of them restarts: the API does not answer then, for a few seconds, twice")
	}
	if drain > 0 && workers == 1 {
		warnings = append(warnings, "there is one node for pods, and they have nowhere to go: they stay, and run on")
	}
	return warnings, nil
}

// steerRollout says how an upgrade of the cluster goes on that is there.
func (d *Daemon) steerRollout(ctx context.Context, r control.ClusterUpgradeRequest) (control.ClusterUpgrade, error) {
	in, _, err := d.server()
	if err != nil {
		return control.ClusterUpgrade{}, err
	}
	w := upgrader{d}
	for {
		before, err := w.record(ctx)
		switch {
		case before == nil && err != nil:
			return control.ClusterUpgrade{}, err
		case before == nil:
			return control.ClusterUpgrade{}, errs.Hint(errs.New(errs.NotFound, "the cluster was never upgraded as a whole"), "begin with: k1s upgrade --cluster --file NEW")
		case err != nil && r.Action == control.ResumeUpgrade:
			return control.ClusterUpgrade{}, err
		}
		next, err := before.Resume(in.Facts.NodeName)
		if r.Action == control.AbortUpgrade {
			next, err = before.Abort(in.Facts.NodeName)
		}
		if err != nil {
			return control.ClusterUpgrade{}, err
		}
		if next.Serial != before.Serial {
			err := w.agree(ctx, next)
			if errs.Is(err, errs.Exists) && ctx.Err() == nil {
				continue // what another server has said meanwhile is looked at first
			}
			if err != nil {
				return control.ClusterUpgrade{}, err
			}
		}
		d.wakeRollout()
		return d.ClusterUpgrade(ctx)
	}
}

// wakeRollout lets watchRollout look now.
func (d *Daemon) wakeRollout() {
	d.mu.Lock()
	wake := d.rolling.wake
	d.mu.Unlock()
	select {
	case wake <- struct{}{}:
	default: // it looks anyway, or does not run yet
	}
}

// ClusterUpgrade implements control.Backend.
func (d *Daemon) ClusterUpgrade(ctx context.Context) (control.ClusterUpgrade, error) {
	if _, _, err := d.server(); err != nil {
		return control.ClusterUpgrade{}, err
	}
	w := upgrader{d}
	r, err := w.record(ctx)
	if r == nil {
		return control.ClusterUpgrade{Nodes: []control.ClusterUpgradeNode{}}, err
	}
	note := ""
	if err != nil {
		note = err.Error()
	}
	f, _, lookErr := w.look(ctx, nil)
	d.mu.Lock()
	known := d.rolling
	d.mu.Unlock()
	out := wireRollout(r, f, known.waits)
	if !r.Active() {
		out.Waits = nil
	}
	out.Note = cmp.Or(note, known.note)
	if lookErr != nil {
		out.Note = cmp.Or(out.Note, lookErr.Error())
	}
	return out, nil
}

func wireRollout(r *rollout.Record, f rollout.Facts, waits []string) control.ClusterUpgrade {
	out := control.ClusterUpgrade{
		ID: r.Plan.ID, Stage: string(r.Stage), To: r.Plan.To, Leader: r.Leader, Began: r.Plan.Began, Ended: r.Ended, Parallel: r.Plan.Parallel, Drain: r.Plan.Drain, Timeout: r.Plan.Timeout,
		Nodes: []control.ClusterUpgradeNode{}, Waits: waits,
	}
	for _, n := range r.Nodes {
		w := control.ClusterUpgradeNode{Name: n.Name, Server: n.Server, Step: string(n.Step), Attempt: n.Attempt, Since: n.Since, Error: n.Error, Hint: n.Hint, Kubernetes: f.Nodes[n.Name].Kubelet}
		if rep, heard := f.Reports[n.Name]; heard {
			w.Version, w.Kubernetes = rep.Version, rep.Kubernetes
		}
		w.Unschedulable = f.Nodes[n.Name].Unschedulable
		out.Nodes = append(out.Nodes, w)
	}
	return out
}

// notUpgraded is an error while nodes are away in turn because the cluster is upgraded.
func (d *Daemon) notUpgraded(what string) error {
	d.mu.Lock()
	r := d.rolling.record
	d.mu.Unlock()
	if r != nil && r.Moving() {
		return errs.Hint(errs.New(errs.Exists, "cannot %s now: %s", what, clusterUpgrades), "wait for its end: k1s upgrade status")
	}
	return nil
}
