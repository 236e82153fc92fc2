// Package daemon wires one node: it prepares the machine, renders the components, hands them to the
// supervisor and answers on the control socket. It is the only package that knows everything; what it
// knows it passes down as data.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/ledger"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/runner"
	"k1s.io/k1s/internal/supervise"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/wait"
)

// Options are what a daemon is started with.
type Options struct {
	Config config.Config
	Paths  paths.Paths
	// Executable carries the payload, most often this program.
	Executable string
	// CgroupRoot is the cgroup everything of the node lives in; "" is DefaultCgroupRoot.
	CgroupRoot string
	// Sandbox tells that this is a node of `k1s cluster create`.
	Sandbox bool
	Log     *slog.Logger
	// Warnings of the configuration, shown as problems.
	Warnings []string
	// Reload reads the configuration again, as the next start would.
	Reload func() (config.Config, config.Origins, error)
}

// Daemon is a running node. All of it ends with the ctx given to Run.
type Daemon struct {
	o       Options
	log     *slog.Logger
	started time.Time
	outline []component.Unit // what the node will consist of, before that is rendered
	board   *health.Board
	sup     *supervise.Supervisor
	stop    context.CancelCauseFunc

	replacing sync.Mutex // held while the node is being handed over to another program
	staging   sync.Mutex // held while the program that the cluster is to be upgraded to is put in its place, or removed
	renewing  sync.Mutex // held while certificates and what is made from them are written
	planning  sync.Mutex // held while a move of the datastore is looked at
	keyring   sync.Mutex // held while this server's keys of Secrets follow from what all agree about
	together  sync.Mutex // held while this server's authorities follow from what all agree about, and while that is begun
	// snapshots is written to by whoever writes or removes snapshots of etcd; it holds one.
	snapshots chan struct{}

	mu       sync.Mutex // guards what follows
	in       component.Input
	doing    string
	readyAt  *time.Time
	stopped  *control.StopRequest // set once the node has been asked to end
	release  func()               // lets go of the payload; nil before it is unpacked
	api      *kubeapi.Client
	secrets  secretsState
	moving   moveState
	care     careState
	upkeep   upkeepState
	rotating rotationState
	// upgrading is the last upgrade of this program.
	upgrading upgrade.State
	rolling   rolloutState
	// learners is when a vote was last asked for a member of etcd that has none.
	learners map[uint64]time.Time
	refused  error // why the node ended by itself

	// restart starts the control plane anew as an input says, and works tells whether it does its work; nil for by the supervisor, which
	// tests have not.
	restart func(context.Context, component.Input) error
	works   func() bool

	// openEtcd is etcdClient, or what a test has in its place; so is goesOver upgradeTo, and emptyNode drainNode.
	openEtcd  func(component.Input) (*etcdapi.Client, error)
	goesOver  func(context.Context, control.UpgradeRequest, string) (control.Upgrade, error)
	emptyNode func(ctx context.Context, in component.Input, node string, within time.Duration, said func(string)) error

	several chan struct{} // holds one: another server joins
	// membership holds one: this server has another place in etcd than when it was started.
	membership chan struct{}
	// admitting is held while a machine is let in, and while it is found out that there is nobody to be left behind by
	// a change of keys or datastore; changing while members of etcd change, or a move begins.
	admitting, changing sync.Mutex
}

// errStop ends Run in good order.
var errStop = errors.New("asked to stop")

// Run brings a node up and keeps it until ctx ends or it is asked to stop over the control socket; then
// it stops the components in order and returns nil. Pods keep running unless the request says otherwise. With ErrHandOver all of it
// runs on, for another program.
// Errors are those that kept the node from starting. FinishRestore comes before o is made.
func Run(ctx context.Context, o Options) error {
	switch ended, err := FinishRestore(ctx, o.Paths, o.Log); {
	case err != nil:
		return err
	case ended: // between the reading of the configuration and now
		return errs.Hint(errs.New(errs.Failure, "a restore of a backup was brought to its end, after the configuration had been read"), "start k1s again")
	}
	if o.Config.Spec.ControlPlane() {
		if err := resolveDatastore(&o.Config); err != nil {
			return err
		}
	}
	outline, err := components.Outline(component.Input{Config: o.Config, Paths: o.Paths})
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, o.Paths)
	if err != nil {
		return err
	}
	defer unlock()
	if err := forgetStaging(o.Paths, time.Now()); err != nil {
		o.Log.Warn("what a backup has left is not removed", "err", err)
	}

	runCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	d := &Daemon{o: o, log: o.Log, started: time.Now(), outline: outline, board: health.NewBoard(time.Now), stop: stop, doing: "preparing",
		rolling:   rolloutState{wake: make(chan struct{}, 1)},
		snapshots: make(chan struct{}, 1), several: make(chan struct{}, 1), membership: make(chan struct{}, 1),
		in: component.Input{Config: o.Config, Paths: o.Paths}}
	for _, w := range o.Warnings {
		d.log.Warn("configuration", "warning", w)
	}
	d.settleUpgrade()
	d.sup = supervise.New(o.Log, supervise.Options{NewRunner: d.newRunner, LogPath: o.Paths.Log})

	// The socket outlives the components, so that `status` can say what stopping waits for.
	serveCtx, endServe := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() { served <- control.Serve(serveCtx, o.Log, o.Paths.ControlSocket(), d) }()
	defer func() {
		endServe()
		if err := <-served; err != nil {
			d.log.Error("control socket failed", "err", err)
		}
	}()

	defer d.letGo()
	plan, err := d.prepare(runCtx)
	if err != nil {
		if runCtx.Err() != nil { // an agent may wait for its servers for as long as they are away
			d.log.Info("stopped while preparing", "err", err)
			return nil
		}
		return err
	}
	return d.run(runCtx, plan)
}

// lock makes sure that one data directory has one daemon.
func lock(ctx context.Context, p paths.Paths) (func(), error) {
	if err := os.MkdirAll(p.Data, 0o755); err != nil {
		return nil, errs.Hint(fmt.Errorf("making the data directory: %w", err), "is its file system mounted read-only? see: k1s check")
	}
	tryCtx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	unlock, err := durable.Lock(tryCtx, p.Lock())
	if err == nil {
		if err := os.WriteFile(p.Lock(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
			unlock()
			return nil, errs.Hint(fmt.Errorf("writing to the data directory: %w", err), "free some space or choose another disk; see: k1s check")
		}
		return unlock, nil
	}
	if errs.Is(err, errs.Timeout) || errors.Is(err, context.DeadlineExceeded) {
		pid, _ := os.ReadFile(p.Lock())
		return nil, errs.Hint(errs.New(errs.Exists, "cannot start: k1s is already running on %s (pid %s)", p.Data, strings.TrimSpace(string(pid))),
			"look at it with: k1s status")
	}
	return nil, errs.Hint(fmt.Errorf("locking the data directory: %w", err), "is its file system mounted read-only? see: k1s check")
}

func (d *Daemon) step(doing string) {
	d.mu.Lock()
	d.doing = doing
	d.mu.Unlock()
	d.log.Debug("step", "doing", doing, "after", time.Since(d.started).Round(time.Millisecond))
}

// prepare does everything that has to be there before the first process starts.
func (d *Daemon) prepare(ctx context.Context) ([]component.Unit, error) {
	o := d.o
	d.step("unpacking the payload")
	carried, err := payload.Open(o.Executable)
	if err != nil {
		return nil, err
	}
	dir, err := d.unpack(ctx, carried)
	if err != nil {
		return nil, err
	}
	d.step("looking at this machine")
	f, err := detectFacts(ctx, o)
	if err != nil {
		return nil, err
	}
	in := component.Input{Config: o.Config, Paths: o.Paths, Facts: f, Payload: dir, PayloadID: carried.ID}
	d.mu.Lock()
	d.in = in
	d.mu.Unlock()
	spec := o.Config.Spec
	if err := sameRole(in); err != nil {
		return nil, err
	}
	var member *membership
	var arriving *arrival
	if spec.ControlPlane() {
		arriving, err = d.joinServers(ctx, &in)
	} else {
		member, err = d.join(ctx, &in)
	}
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.in = in
	d.mu.Unlock()
	d.log.Info("starting", "version", o.Config.APIVersion, "node", f.NodeName, "ip", f.NodeIP, cluster(in.Config, o.Paths))

	d.step("checking this machine")
	running, err := runningPIDs(o.Paths)
	if err != nil {
		return nil, err
	}
	// Before the certificates: the checks take an existing CA as the sign that a node of ours was here before.
	problems, err := preflight(ctx, in, running)
	d.board.Report("preflight", problems)
	if err != nil {
		hint := "all findings: k1s check"
		if remedy, _ := errs.HintOf(err); remedy != "" {
			hint = remedy + "; " + hint
		}
		return nil, errs.Hint(err, "%s", hint)
	}
	if spec.ControlPlane() {
		// An etcd that runs on says it again.
		if err := removeIfThere(components.EtcdRemoved(in)); err != nil {
			return nil, err
		}
	}
	if spec.ControlPlane() {
		if err := d.prepareClaim(in, arriving != nil); err != nil {
			return nil, err
		}
	}
	d.step("issuing certificates")
	if arriving != nil {
		if err := arriving.settle(ctx, &in); err != nil {
			return nil, err
		}
	}
	if spec.ControlPlane() {
		if err := d.prepareRotation(ctx, &in); err != nil {
			return nil, err
		}
	}
	var report pki.Report
	if member != nil {
		report, err = member.settle(ctx, d.log, in)
	} else {
		report, err = certificates(ctx, d.log, in, false)
	}
	if err != nil {
		return nil, err
	}
	d.reportCertificates(report)
	if spec.ControlPlane() {
		if err := d.takePlace(ctx, &in); err != nil {
			return nil, err
		}
	}
	spec = in.Config.Spec // the cluster's settings are in it

	d.step("rendering components")
	if err := prepareUsers(&in); err != nil {
		return nil, err
	}
	reg, err := readRegistries(o.Paths.RegistriesFile())
	if err != nil {
		return nil, err
	}
	in.Registries = authID(reg)
	if spec.ControlPlane() {
		if in.Datastore, err = datastoreID(spec.Datastore); err != nil {
			return nil, err
		}
		if in.AuditPolicy, err = readAuditPolicy(spec.Audit); err != nil {
			return nil, err
		}
		if in.Fence, err = fenced(in.Paths, place(spec.Datastore).Identity); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	d.in = in
	d.mu.Unlock()
	plan, err := components.Plan(in)
	if err != nil {
		return nil, err
	}
	if spec.ControlPlane() {
		if err := errors.Join(d.prepareEncryption(ctx, in), d.prepareMove(in)); err != nil {
			return nil, err
		}
		if err := mayStartEtcd(in); err != nil {
			return nil, err
		}
		if err := errors.Join(writePackaged(in), writeDatastore(in)); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(writeRegistries(in, reg), prepareCgroups(in), setSysctls(ctx, in), setRoutes(ctx, in)); err != nil {
		return nil, err
	}
	d.board.Report("preflight", stillTrue(problems))
	api, err := apiClient(in)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.api = api
	d.mu.Unlock()
	return plan, nil
}

// stillTrue leaves out what was found before the start and has been put right by it, or is looked at again and again.
func stillTrue(problems []health.Problem) []health.Problem {
	return slices.DeleteFunc(slices.Clone(problems), func(p health.Problem) bool {
		return p.Code == health.IPForwarding && p.Severity == health.Info || aboutDisk(p)
	})
}

// prepareCgroups makes the node's root cgroup with every controller the kubelet wants to find there, and
// the one of the shims, which containerd does not make itself.
func prepareCgroups(in component.Input) error {
	root := in.Facts.CgroupRoot
	cg, err := platform.DetectCgroups()
	if err != nil {
		return fmt.Errorf("looking for cgroups: %w", err)
	}
	if _, err := cg.Prepare(root); err != nil {
		return fmt.Errorf("preparing the cgroup %s: %w", root, err)
	}
	if !in.Config.Spec.Worker() {
		return nil
	}
	if _, err := cg.Ensure(root, path.Base(components.ShimCgroup(in))); err != nil {
		return fmt.Errorf("preparing the cgroup of the shims: %w", err)
	}
	return nil
}

// upstreamSysctls are what the kubelet sets (pkg/kubelet/cm, setupKernelTunables) and kube-proxy
// (pkg/proxy/conntrack/sysctls.go).
var upstreamSysctls = []string{
	"vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops", "kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes",
	"net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_buckets", "net.netfilter.nf_conntrack_tcp_timeout_established",
	"net.netfilter.nf_conntrack_tcp_timeout_close_wait", "net.netfilter.nf_conntrack_tcp_be_liberal", "net.netfilter.nf_conntrack_udp_timeout", "net.netfilter.nf_conntrack_udp_timeout_stream",
}

// setSysctls sets what a worker needs of the kernel: pods are routed, and every component watches files.
func setSysctls(ctx context.Context, in component.Input) error {
	if !in.Config.Spec.Worker() {
		return nil
	}
	l := ledger.Open(in.Paths.Ledger())
	if err := platform.RememberSysctls(ctx, l, upstreamSysctls...); err != nil {
		return err
	}
	return platform.SetSysctls(ctx, l,
		platform.Sysctl{Name: "net.ipv4.ip_forward", Value: "1"},
		platform.Sysctl{Name: "fs.inotify.max_user_instances", Value: "1024", AtLeast: true})
}

// setRoutes sets what a worker needs of the routing table beside the routes to pods, which are flannel's.
func setRoutes(ctx context.Context, in component.Input) error {
	if !in.Config.Spec.Worker() {
		return nil
	}
	services, err := netip.ParsePrefix(in.Config.Spec.Network.ServiceCIDR)
	if err != nil {
		return err
	}
	return platform.SetServiceRoute(ctx, ledger.Open(in.Paths.Ledger()), services, in.Facts.NodeIP)
}

func (d *Daemon) newRunner(u component.Unit) supervise.Runner {
	return runner.NewProcess(u, d.runnerOptions())
}

func (d *Daemon) runnerOptions() runner.Options {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := runner.Options{Paths: d.o.Paths, CgroupRoot: d.in.Facts.CgroupRoot, Payload: d.in.Payload, Mend: d.mendPayload, Log: d.log}
	if cg, err := platform.DetectCgroups(); err == nil {
		o.Cgroups = cg
	}
	return o
}

// run keeps the units until the end, then stops them.
func (d *Daemon) run(ctx context.Context, plan []component.Unit) error {
	// Nothing starts before the supervisor runs; until then it knows what to tell about.
	if err := d.sup.Apply(ctx, plan); err != nil {
		return err
	}
	if err := d.stopUnwanted(ctx, plan); err != nil {
		return fmt.Errorf("stopping what an earlier daemon left: %w", err)
	}
	d.step("starting components")
	var wg sync.WaitGroup
	wg.Go(func() { d.announceReady(ctx) })
	wg.Go(func() {
		if err := d.takenBack(ctx); err != nil {
			d.log.Warn("it is not forgotten whose files were", "err", err)
		}
	})
	wg.Go(func() { d.prunePayloads(ctx) })
	wg.Go(func() { d.renewCertificates(ctx) })
	wg.Go(func() { d.warnOfCertificates(ctx) })
	wg.Go(func() { d.watchDisk(ctx, platform.DiskProblems) })
	if d.o.Config.Spec.Worker() {
		wg.Go(func() { d.watchClock(ctx, d.clocks, d.sup.Restart) })
	}
	if !d.o.Config.Spec.ControlPlane() {
		wg.Go(func() { d.watchTrust(ctx) })
		wg.Go(func() { d.watchOrders(ctx) })
	}
	if d.o.Config.Spec.ControlPlane() {
		wg.Go(func() { d.watchEncryption(ctx) })
		wg.Go(func() { d.watchEtcd(ctx) })
		wg.Go(func() { d.watchMoves(ctx) })
		wg.Go(func() { d.watchFollowing(ctx) })
		wg.Go(func() { d.watchRestores(ctx) })
		wg.Go(func() { d.watchMember(ctx) })
		wg.Go(func() { d.watchSchedule(ctx) })
		wg.Go(func() { d.serveJoiners(ctx) })
		wg.Go(func() { d.watchSeveral(ctx) })
		wg.Go(func() { d.watchMembership(ctx) })
		wg.Go(func() { d.keepPeerURL(ctx) })
		wg.Go(func() { d.watchClaim(ctx) })
		wg.Go(func() { d.watchRotation(ctx) })
		wg.Go(func() { d.watchRollout(ctx) })
	}

	supCtx, stopSup := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopSup(nil)
	supDone := make(chan error, 1)
	go func() { supDone <- d.sup.Run(supCtx) }()
	var err error
	select {
	case <-ctx.Done():
		cause := context.Cause(ctx)
		if errors.Is(cause, ErrHandOver) {
			d.step("handing the node over to another program")
			cause = supervise.ErrDetach
		} else {
			d.step("stopping")
		}
		if r := d.stopRequest(); r != nil && r.Pods {
			err = d.podsEnded(d.o.Paths, d.endPods())
		}
		stopSup(cause)
		err = errors.Join(err, <-supDone)
	case err = <-supDone:
		err = fmt.Errorf("the supervisor ended by itself: %w", err)
	}
	d.stop(errStop)
	wg.Wait()
	err = errors.Join(err, d.refusal(d.o.Paths))
	if err == nil && errors.Is(context.Cause(ctx), ErrHandOver) {
		d.log.Info("handed over; everything runs on")
		return ErrHandOver
	}
	d.log.Info("stopped", "err", err)
	return err
}

// stopUnwanted stops units of an earlier daemon that are not part of this node any more.
func (d *Daemon) stopUnwanted(ctx context.Context, plan []component.Unit) error {
	records, err := runner.Records(d.o.Paths)
	if err != nil {
		return err
	}
	wanted, old := map[string]bool{}, []string{}
	for _, u := range plan {
		wanted[u.Name] = true
	}
	for _, r := range records {
		if !wanted[r.Unit] {
			old = append(old, r.Unit)
		}
	}
	if len(old) == 0 {
		return nil
	}
	d.step("stopping old processes: " + strings.Join(old, ", "))
	return runner.StopRecorded(ctx, d.runnerOptions(), func(unit string) bool { return wanted[unit] })
}

// serverLabel marks a node that is a server, as kubectl shows it; a kubelet may not set it itself.
const serverLabel = "node-role.kubernetes.io/control-plane"

// announceReady says once when the node is ready for work.
func (d *Daemon) announceReady(ctx context.Context) {
	d.mu.Lock()
	in, api := d.in, d.api
	d.mu.Unlock()
	defer api.Close()
	last := "kube-apiserver"
	if in.Config.Spec.Worker() {
		last = "kubelet"
	}
	if !in.Config.Spec.ControlPlane() {
		// An agent has started when its parts run. Whether it is Ready depends on servers that may be away; an init system
		// that waits for that would stop it.
		if err := d.sup.Wait(ctx, last, component.Ready); err != nil {
			return
		}
		d.notify()
	}
	if err := d.sup.Await(ctx, last, component.Ready); err != nil {
		return // ctx ended; what keeps it from being ready is in the status
	}
	if in.Config.Spec.Worker() {
		err := wait.Until(ctx, 30*time.Millisecond, "the node to be Ready", func(ctx context.Context) error {
			n, err := api.Node(ctx, in.Facts.NodeName)
			if err != nil {
				return err
			}
			if err := n.Ready(d.kubeletStart()); err != nil {
				d.step("waiting for the node to be Ready: " + err.Error())
				return err
			}
			if _, ok := n.Metadata.Labels[serverLabel]; !ok && in.Config.Spec.ControlPlane() {
				return api.LabelNode(ctx, in.Facts.NodeName, serverLabel, "")
			}
			return nil
		})
		if err != nil {
			return
		}
	}
	now := time.Now()
	d.mu.Lock()
	d.readyAt, d.doing = &now, ""
	d.mu.Unlock()
	// Unpacking and checking the payload read whole programs: 150 MB that are never needed again. What pools
	// keep goes with the second collection.
	runtime.GC()
	debug.FreeOSMemory()
	ready := []any{"after", now.Sub(d.started).Round(time.Millisecond)}
	if in.Config.Spec.ControlPlane() {
		ready = append(ready, "kubeconfig", in.Paths.AdminKubeconfig())
	}
	d.log.Info("ready", ready...)
	if in.Config.Spec.ControlPlane() {
		d.notify()
	}
}

// notify tells the init system that the start is complete.
func (d *Daemon) notify() {
	if err := notifyReady(); err != nil {
		d.log.Warn("the init system was not told that we are ready", "err", err)
	}
}

// kubeletStart is when the kubelet that runs now was started; what was reported before is not about now.
func (d *Daemon) kubeletStart() time.Time {
	for _, c := range d.sup.Snapshot() {
		switch {
		case c.Component != "kubelet":
		case c.Adopted:
			return time.Time{} // it ran on while we were away
		case c.StartedAt != nil:
			return *c.StartedAt
		}
	}
	return time.Now() // it does not run
}

func (d *Daemon) stopRequest() *control.StopRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopped
}

func runningPIDs(p paths.Paths) ([]int, error) {
	pids, err := runner.Running(runner.Options{Paths: p})
	if err != nil {
		return nil, fmt.Errorf("looking for units that run: %w", err)
	}
	return pids, nil
}

func (d *Daemon) unpack(ctx context.Context, p *payload.Payload) (string, error) {
	r, err := payload.Unpack(ctx, p, d.o.Paths.Payloads(), platform.AvailableMemory())
	if err != nil {
		return "", err
	}
	d.holds(r)
	d.reportRepaired(r.Repaired)
	return r.Dir, nil
}

// mendPayload makes whole what somebody has removed or altered since, and tells whether there was anything.
func (d *Daemon) mendPayload(ctx context.Context) (bool, error) {
	p, err := d.ownPayload()
	if err != nil {
		return false, err
	}
	r, err := payload.Unpack(ctx, p, d.o.Paths.Payloads(), platform.AvailableMemory())
	if err != nil {
		return false, err
	}
	d.holds(r)
	if r.Unpacked {
		r.Repaired = []string{r.Dir + " was gone"}
	}
	if len(r.Repaired) > 0 {
		d.reportRepaired(r.Repaired)
	}
	return len(r.Repaired) > 0, nil
}

// ownPayload is what this program carries, also after another file has taken its name, as in an upgrade.
func (d *Daemon) ownPayload() (*payload.Payload, error) {
	d.mu.Lock()
	id := d.in.PayloadID
	d.mu.Unlock()
	for _, file := range []string{d.o.Executable, "/proc/self/exe"} {
		if p, err := payload.Open(file); err == nil && p.ID == id {
			return p, nil
		}
	}
	return nil, errs.Hint(errs.New(errs.NotFound, "the payload %s, which this node runs, is damaged, and %s carries it no more", id, d.o.Executable), "start k1s again")
}

// holds keeps a payload for as long as this daemon runs, in the place of one it held before.
func (d *Daemon) holds(r payload.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.release != nil {
		d.release()
	}
	d.release = r.Release
}

func (d *Daemon) reportRepaired(what []string) {
	var repaired []health.Problem
	for _, w := range what {
		d.log.Warn("payload file restored", "file", w)
		repaired = append(repaired, health.New(health.PayloadRepaired, "%s", w))
	}
	d.board.Report("payload", repaired)
}

// letGo lets others remove the payload. What runs on keeps it itself.
func (d *Daemon) letGo() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.release != nil {
		d.release()
	}
}

// prunePayloads removes what older versions left once the node is up, so that it costs no start-up time.
func (d *Daemon) prunePayloads(ctx context.Context) {
	last := "kube-apiserver"
	if !d.o.Config.Spec.ControlPlane() {
		last = "kubelet"
	}
	if err := d.sup.Await(ctx, last, component.Ready); err != nil {
		return
	}
	d.mu.Lock()
	current := path.Base(d.in.Payload)
	d.mu.Unlock()
	if removed, err := payload.Prune(ctx, d.o.Paths.Payloads(), current); err != nil {
		d.log.Warn("old payloads not removed", "err", err)
	} else if len(removed) > 0 {
		d.log.Info("old payloads removed", "payloads", removed)
	}
}
