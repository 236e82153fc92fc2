package netns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/wait"
)

// Provider makes clusters of namespaces. Make one with New.
type Provider struct{ opts Options }

var (
	_ cluster.Provider   = (*Provider)(nil)
	_ cluster.Executor   = (*Provider)(nil)
	_ cluster.Files      = (*Provider)(nil)
	_ cluster.LinkSetter = (*Provider)(nil)

	_ cluster.Preflight    = (*Provider)(nil)
	_ cluster.Killer       = (*Provider)(nil)
	_ cluster.ImageStore   = (*Provider)(nil)
	_ cluster.LogCollector = (*Provider)(nil)
)

// New touches nothing yet.
func New(o Options) *Provider { return &Provider{opts: o.withDefaults()} }

func (p *Provider) layout(name string) layout {
	return layout{state: p.opts.State, run: p.opts.Run, cluster: name}
}

// cgroup is where a part of a cluster lives; "" is the cluster's own.
func (p *Provider) cgroup(cluster string, elem ...string) string {
	return filepath.Join(append([]string{p.opts.CgroupRoot, cluster}, elem...)...)
}

// KubeconfigFile implements cluster.Files.
func (p *Provider) KubeconfigFile(name string) string { return p.layout(name).kubeconfig() }

// Features implements cluster.Provider.
func (p *Provider) Features(context.Context) (cluster.Features, error) {
	f := cluster.Features{UDP: true, Egress: fileExists("/dev/net/tun"), MaxServers: cluster.MaxServers, MaxAgents: cluster.MaxAgents}
	if os.Geteuid() != 0 {
		return f, errs.Hint(errs.New(errs.Unsupported, "local clusters need root: they are made of network and mount namespaces"),
			"run the same command with sudo")
	}
	if _, err := hierarchies(); err != nil {
		return f, errs.Hint(errs.As(errs.Unsupported, err), "mount cgroup2 at /sys/fs/cgroup")
	}
	return f, nil
}

// Prepare implements cluster.Provider.
func (p *Provider) Prepare(ctx context.Context, spec cluster.Spec) (cluster.Spec, error) {
	if err := cluster.ValidateSpec(spec); err != nil {
		return spec, err
	}
	if err := socketsFit(p.layout(spec.Name)); err != nil {
		return spec, err
	}
	if err := p.program(); err != nil {
		return spec, err
	}
	unlock, err := p.lock(ctx, spec.Name)
	if err != nil {
		return spec, err
	}
	defer unlock()
	l := p.layout(spec.Name)
	old, err := readRecord(l)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return spec, errs.Hint(err, "run: k1s cluster delete %s", spec.Name)
	}
	if err == nil && spec.Creation != "" && spec.Creation != old.Creation {
		return spec, errs.Hint(errs.New(errs.Exists, "there is a cluster %q already: it is being created by somebody else", spec.Name), "see: k1s cluster ls")
	}
	if err := p.appear(ctx, l); err != nil {
		return spec, err
	}
	for name, content := range spec.Files {
		file := filepath.Join(l.files(), name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return spec, err
		}
		if err := durable.WriteFile(file, content, 0o600); err != nil {
			return spec, diskFull(err)
		}
	}
	if spec.Creation == "" {
		spec.Creation = old.Creation
	}
	spec.Nodes, spec.Cuts, spec.Delays, spec.NextAgent = old.Nodes, old.Cuts, old.Delays, old.NextAgent
	if !spec.Subnet.IsValid() {
		spec.Subnet = cluster.DefaultSubnet
	}
	if len(spec.Private) == 0 {
		if spec.Private = old.Private; len(spec.Private) == 0 {
			spec.Private = cluster.DefaultPrivate
		}
	}
	if spec.APIPort == 0 {
		spec.APIPort, spec.APIPortChosen = old.APIPort, old.APIPortChosen
	}
	if spec.Created.IsZero() {
		if spec.Created = old.Created; spec.Created.IsZero() {
			spec.Created = time.Now().UTC().Truncate(time.Second)
		}
	}
	rec, err := readProc(l.proc(switchName))
	if err == nil && rec.alive() && sameSwitch(old, spec) && isPinned(l, switchName, bridgeKinds) {
		if err := writeRecord(l, spec); err != nil {
			return spec, err
		}
		return spec, p.mendLinks(ctx, l, spec)
	}
	if err := p.endProcess(l, switchName, 5*time.Second); err != nil {
		return spec, err
	}
	spec, ports, err := p.claimPorts(ctx, l, old, spec)
	if err != nil {
		return spec, err
	}
	defer ports.close()
	if !isPinned(l, switchName, bridgeKinds) {
		if err := unpin(l, switchName); err != nil {
			return spec, err
		}
		addr := netip.PrefixFrom(cluster.BridgeAddr(spec.Subnet), spec.Subnet.Bits())
		err := makeNamespaces(l, switchName, unix.CLONE_NEWNET, bridgeKinds, func() error { return setUpBridge(addr) })
		if err != nil {
			return spec, err
		}
		if len(spec.Cuts)+len(spec.Delays) > 0 {
			if err := p.setRules(ctx, l, linksOf(spec)); err != nil {
				return spec, err
			}
		}
	}
	if err := p.mendLinks(ctx, l, spec); err != nil {
		return spec, err
	}
	return spec, p.startSwitch(ctx, l, ports)
}

// appear makes the first traces of a cluster, by which what clusters share stays while others go.
func (p *Provider) appear(ctx context.Context, l layout) error {
	unlock, err := p.lockShared(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := raiseLimits(ctx); err != nil {
		return err
	}
	for _, d := range []string{filepath.Dir(l.log(switchName)), l.runDir(), l.payload(), l.files()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return diskFull(fmt.Errorf("making the directories of cluster %s: %w", l.cluster, err))
		}
	}
	return makeCgroup(p.cgroup(l.cluster))
}

// claimPorts binds the ports of a cluster and records the choice, before anybody else chooses.
func (p *Provider) claimPorts(ctx context.Context, l layout, old, spec cluster.Spec) (cluster.Spec, held, error) {
	unlock, err := p.lockShared(ctx)
	if err != nil {
		return spec, nil, err
	}
	defer unlock()
	spec, ports, err := p.hold(ctx, old, spec)
	if err != nil {
		return spec, nil, err
	}
	if err := writeRecord(l, spec); err != nil {
		ports.close()
		return spec, nil, err
	}
	return spec, ports, nil
}

func sameSwitch(a, b cluster.Spec) bool {
	return a.APIPort == b.APIPort && a.Subnet == b.Subnet && slices.Equal(a.Publish, b.Publish) &&
		a.Egress == b.Egress && slices.Equal(a.Private, b.Private) && slices.Equal(a.Reach, b.Reach)
}

// program finds out what to run.
func (p *Provider) program() error {
	if p.opts.Program != "" {
		return nil
	}
	exe, err := os.Executable()
	if err == nil {
		_, err = os.Stat(exe)
	}
	if err != nil {
		return errs.Hint(fmt.Errorf("finding the running program: %w", err), "it was replaced or removed while it ran: run the command again")
	}
	p.opts.Program = exe
	return nil
}

// firstAPIPort is where the search for a free port begins: away from the 6443 of a node that runs on this
// machine itself.
const firstAPIPort = 16443

// Create implements cluster.Provider.
func (p *Provider) Create(ctx context.Context, node cluster.NodeSpec) (cluster.Node, error) {
	if err := cluster.ValidateNode(node); err != nil {
		return cluster.Node{}, err
	}
	if err := p.program(); err != nil {
		return cluster.Node{}, err
	}
	unlock, err := p.lock(ctx, node.Cluster)
	if err != nil {
		return cluster.Node{}, err
	}
	defer unlock()
	l, name := p.layout(node.Cluster), node.Name()
	spec, err := readRecord(l)
	if err != nil {
		return cluster.Node{}, err
	}
	if err := p.create(ctx, l, &spec, node); err != nil {
		return p.node(l, spec, node), diskFull(fmt.Errorf("creating node %s of cluster %s: %w", name, spec.Name, err))
	}
	if rec, err := readProc(l.proc(switchName)); err == nil {
		if err := rec.signal(unix.SIGHUP); err != nil { // the ports lead to this node too now
			return cluster.Node{}, err
		}
	}
	return p.node(l, spec, node), nil
}

func (p *Provider) create(ctx context.Context, l layout, spec *cluster.Spec, node cluster.NodeSpec) error {
	name := node.Name()
	spec.Keep(node)
	if err := writeRecord(l, *spec); err != nil {
		return err
	}
	rec, err := readProc(l.proc(name))
	if err != nil {
		return err
	}
	pinned := isPinned(l, name, nsKinds)
	if pinned && rec.alive() {
		return errors.Join(p.plugIn(l, *spec, node), p.goOn(ctx, l, *spec, node, rec))
	}
	if err := startable(*spec, node); err != nil {
		return err
	}
	if err := prepareRoot(l, name); err != nil {
		return err
	}
	if err := provision(l, node); err != nil {
		return err
	}
	cg := p.cgroup(l.cluster, name)
	if pinned {
		// Its first process was killed. What that had started stays; only the node program itself has to
		// go, because the new first process brings its own.
		if err := p.killAll(filepath.Join(cg, "init"), nil); err != nil {
			return err
		}
	} else {
		if err := p.wipeNode(l, name); err != nil {
			return err
		}
		if err := os.MkdirAll(l.nodeRun(name), 0o755); err != nil { // wiped
			return err
		}
		host := l.cluster + "-" + name
		r := root{
			layout: l, node: name, program: cmp.Or(spec.Program, p.opts.Program), hostname: host,
			hosts:  cluster.HostsFile(*spec, node, host),
			resolv: resolvConf(*spec), volumes: spec.VolumesOf(node),
		}
		err := makeNamespaces(l, name, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS, nsKinds, func() error {
			if err := unix.Sethostname([]byte(host)); err != nil {
				return fmt.Errorf("setting the host name: %w", err)
			}
			return r.enter()
		})
		if err != nil {
			return err
		}
	}
	if err := p.plugIn(l, *spec, node); err != nil {
		return err
	}
	for _, c := range []string{"init", "exec"} {
		if err := makeCgroup(filepath.Join(cg, c)); err != nil {
			return err
		}
	}
	return p.startInit(l, *spec, node)
}

func resolvConf(s cluster.Spec) string {
	if s.Egress {
		return "nameserver " + cluster.GatewayAddr(s.Subnet).String() + "\n"
	}
	return "# This cluster has no way out, so there is no name server (k1s cluster create --egress).\n"
}

// provision puts the user's files in place.
func provision(l layout, node cluster.NodeSpec) error {
	name := node.Name()
	if node.Config != "" {
		if err := durable.WriteFile(filepath.Join(l.nodeEtc(name), "config.yaml"), []byte(node.Config), 0o600); err != nil {
			return err
		}
	}
	if node.Token != "" {
		file := filepath.Join(l.nodeEtc(name), filepath.Base(cluster.TokenFileInNode))
		if err := durable.WriteFile(file, []byte(node.Token+"\n"), 0o600); err != nil {
			return err
		}
	}
	if err := giveFiles(l, name); err != nil {
		return err
	}
	for _, b := range node.Bundles {
		as := filepath.Base(b)
		if fileExists(filepath.Join(l.imagesOf(name), as)) { // the file it came from may be gone
			continue
		}
		if err := keepImages(l, b, as); err != nil {
			return errs.As(errs.Invalid, err)
		}
		if err := giveImages(l, name, as); err != nil {
			return err
		}
	}
	return giveLoaded(l, node)
}

// plugIn links the node to the bridge, unless it is.
func (p *Provider) plugIn(l layout, spec cluster.Spec, node cluster.NodeSpec) error {
	name := node.Name()
	fd, err := unix.Open(l.pin(name, "net"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the network of node %s: %w", name, err)
	}
	defer unix.Close(fd)
	inNode := func(fn func() error) error {
		return onThread(func() error {
			if err := enter(l, name, []string{"net"}); err != nil {
				return err
			}
			return fn()
		})
	}
	plugged := false
	if err := inNode(func() error { plugged = hasLink(nodeLink); return nil }); err != nil || plugged {
		return err
	}
	// At most 15 bytes: "server-19" and "agent-223" fit.
	err = onThread(func() error {
		if err := enter(l, switchName, bridgeKinds); err != nil {
			return err
		}
		return plug(name, fd, linkMTU)
	})
	if err != nil {
		return err
	}
	addr := netip.PrefixFrom(cluster.NodeAddr(spec.Subnet, node.Role, node.Index), spec.Subnet.Bits())
	gw := cluster.BridgeAddr(spec.Subnet)
	if spec.Egress {
		gw = cluster.GatewayAddr(spec.Subnet)
	}
	return inNode(func() error { return setUpNodeNetwork(addr, gw) })
}

// goOn makes a node's first process start the node program again, if that was stopped or has given up.
func (p *Provider) goOn(ctx context.Context, l layout, spec cluster.Spec, node cluster.NodeSpec, first procRecord) error {
	st, ok := readInitState(l, node.Name())
	if !ok {
		return nil
	}
	if st.PID != 0 {
		// The first process says when it has ended. What /proc shows is early: the first thread of a program may be gone while others
		// are on their way out, and until they are nobody can take the program for ended who is its parent.
		alive := func() bool {
			now, ok := readInitState(l, node.Name())
			return ok && now.PID == st.PID && first.alive()
		}
		ended, err := endsOrAnswers(ctx, alive, func() bool {
			c, err := net.Dial("unix", l.controlSocket(node.Name()))
			if err != nil {
				return false
			}
			_ = c.Close()
			return true
		})
		if !ended {
			return err
		}
	}
	if err := provision(l, node); err != nil {
		return err
	}
	generation, err := p.writeInitSpec(l, spec, node)
	if err != nil {
		return err
	}
	if err := first.signal(unix.SIGHUP); err != nil {
		return err
	}
	// Until it has heard of it, it may tell everybody that its program was stopped.
	ctx, cancel := context.WithTimeoutCause(ctx, hearing, fmt.Errorf("it did not within %s", hearing))
	defer cancel()
	return wait.Until(ctx, 5*time.Millisecond, "the node's first process to go on", func(context.Context) error {
		if st, ok := readInitState(l, node.Name()); ok && st.Generation == generation {
			return nil
		}
		if !first.alive() {
			return wait.Permanent(errors.New("it has ended"))
		}
		return errors.New("it has not heard yet")
	})
}

// endsOrAnswers waits for one of the two, and tells whether the program of a node has ended. A program that ends has closed its socket; one that starts opens it
// soon. On a busy machine either takes its time.
func endsOrAnswers(ctx context.Context, alive, answers func() bool) (ended bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, hearing, fmt.Errorf("it did not within %s", hearing))
	defer cancel()
	err = wait.Until(ctx, 10*time.Millisecond, "the node's program to answer, or to end", func(context.Context) error {
		if ended = !alive(); !ended && !answers() {
			return errors.New("it runs, and nothing answers at its socket")
		}
		return nil
	})
	return ended, err
}

// hearing is how long a node's first process may take to follow what it is told. It does nothing else, but may have to wait
// for its turn on a machine that is busy.
const hearing = time.Minute

// readInitState tells how a node's program fares; not ok while nothing is known.
func readInitState(l layout, name string) (st initState, ok bool) {
	b, err := os.ReadFile(filepath.Join(l.nodeRun(name), initStateName))
	return st, err == nil && json.Unmarshal(b, &st) == nil
}

// writeInitSpec tells a node's first process what to do, and returns the generation of that.
func (p *Provider) writeInitSpec(l layout, spec cluster.Spec, node cluster.NodeSpec) (generation int64, err error) {
	name := node.Name()
	cg := p.cgroup(l.cluster, name)
	program := p.opts.NodeArgs
	if program == nil {
		program = []string{string(node.Role)}
	}
	generation = time.Now().UnixNano()
	b, err := json.Marshal(initSpec{
		Generation: generation,
		Cgroup:     filepath.Join(cg, "init"),
		Argv:       slices.Concat([]string{programInNode}, program, cluster.NodeArgs(spec, node)),
		Stop:       slices.Concat([]string{programInNode}, p.opts.StopArgs),
		Env:        append(cluster.NodeEnviron(spec, node), nodeEnv(cg)...),
		// Less than the provider waits, so that what is left is known to be left.
		Timeout: p.opts.StopTimeout * 9 / 10,
	})
	if err != nil {
		return 0, err
	}
	_ = os.Remove(filepath.Join(l.nodeRun(name), initStateName))
	return generation, durable.WriteFile(filepath.Join(l.nodeRun(name), initSpecName), b, 0o600)
}

// startInit starts the node's first process.
func (p *Provider) startInit(l layout, spec cluster.Spec, node cluster.NodeSpec) error {
	if _, err := p.writeInitSpec(l, spec, node); err != nil {
		return err
	}
	name := node.Name()
	_, err := p.spawn(l, name, spawnOptions{
		enter: func() error { return enter(l, name, nsKinds) },
		path:  programInNode,
		args:  []string{"cluster", "__node"},
	})
	return err
}

// nodeEnv are the variables that follow from being a node of this provider.
func nodeEnv(cgroup string) []string {
	return []string{
		"PATH=" + filepath.Dir(programInNode) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "K1S_SANDBOX=1", "K1S_CGROUP_ROOT=" + cgroup,
	}
}

type spawnOptions struct {
	enter func() error // moves the thread the process is started from
	path  string
	args  []string
	extra []*os.File // from file descriptor 3
}

// spawn starts a process that outlives this one, in a session of its own and with its output in a log, and
// records it.
func (p *Provider) spawn(l layout, name string, o spawnOptions) (procRecord, error) {
	log, err := openLog(l.log(name))
	if err != nil {
		return procRecord{}, err
	}
	defer log.Close()
	platform.KeepFilesFromChildren()
	cmd := exec.Cmd{
		Path: o.path, Args: append([]string{o.path}, o.args...), Env: nodeEnv(""), Dir: "/",
		Stdout: log, Stderr: log, ExtraFiles: o.extra,
		SysProcAttr: &unix.SysProcAttr{Setsid: true},
	}
	err = onThread(func() error {
		if o.enter != nil {
			if err := o.enter(); err != nil {
				return err
			}
		}
		return cmd.Start() // a child lives where the thread that starts it lives
	})
	if err != nil {
		return procRecord{}, fmt.Errorf("starting %s: %w", o.path, err)
	}
	rec, err := recordOf(cmd.Process.Pid)
	if err == nil {
		var b []byte
		if b, err = json.Marshal(rec); err == nil {
			err = durable.WriteFile(l.proc(name), b, 0o600)
		}
	}
	if err != nil { // nobody would find it again
		err = errors.Join(err, cmd.Process.Kill())
	}
	return rec, errors.Join(err, cmd.Process.Release())
}

// maxLog is how large a log may be when its process is started again; what is older goes.
const maxLog = 8 << 20

func openLog(path string) (*os.File, error) {
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// Describe implements cluster.Provider.
func (p *Provider) Describe(_ context.Context, name string) (cluster.Status, error) {
	l := p.layout(name)
	if !fileExists(l.stateDir()) && !fileExists(l.runDir()) {
		return cluster.Status{}, errs.New(errs.NotFound, "there is no cluster %q", name)
	}
	spec, err := readRecord(l)
	if errors.Is(err, fs.ErrPermission) {
		return cluster.Status{}, errs.Hint(err, "run the same command with sudo")
	}
	if err != nil {
		note := "it was not created completely"
		if !errors.Is(err, fs.ErrNotExist) {
			note = err.Error()
		}
		return cluster.Status{Spec: cluster.Spec{Name: name}, State: cluster.Broken, Note: note}, nil
	}
	st := cluster.Status{Spec: spec, State: cluster.Stopped}
	running, stopped, asked := 0, 0, 0
	for _, n := range spec.Nodes {
		node := p.node(l, spec, n)
		st.Nodes = append(st.Nodes, node)
		switch node.State {
		case cluster.Running:
			running++
		case cluster.Stopped:
			stopped++
			if node.PID != 0 {
				asked++
			}
		default:
			st.State, st.Note = cluster.Broken, "node "+node.Name+": "+node.Note
		}
	}
	rec, err := readProc(l.proc(switchName))
	switchRuns := err == nil && rec.alive()
	switch {
	case st.State == cluster.Broken:
	case len(spec.Nodes) == 0:
		st.State, st.Note = cluster.Broken, "it was not created completely"
	case running == 0 && !switchRuns:
	case !switchRuns:
		st.State, st.Note = cluster.Broken, "its ports are not forwarded: the switch does not run"
	case asked == len(spec.Nodes):
		st.Note = "stopped by k1s stop, its pods run on; go on with: k1s cluster start " + name
	case stopped > 0:
		st.State, st.Note = cluster.Broken, fmt.Sprintf("%d of %d nodes do not run", stopped, len(spec.Nodes))
	default:
		st.State = cluster.Running
	}
	return st, nil
}

// node tells how a node is.
func (p *Provider) node(l layout, spec cluster.Spec, n cluster.NodeSpec) cluster.Node {
	name := n.Name()
	out := cluster.Node{
		Cluster: l.cluster, Name: name, Role: n.Role, Index: n.Index,
		Addr: cluster.NodeAddr(spec.Subnet, n.Role, n.Index), State: cluster.Stopped,
		ControlSocket: l.controlSocket(name),
		Kubeconfig:    filepath.Join(l.nodeEtc(name), "admin.kubeconfig"),
		Log:           l.log(name),
	}
	rec, err := readProc(l.proc(name))
	if err == nil && rec.alive() {
		out.State, out.PID = cluster.Running, rec.PID
		is, ok := readInitState(l, name)
		switch {
		case !ok || is.PID != 0 || is.Last == "":
		case is.Stopped:
			out.State, out.Note = cluster.Stopped, "its daemon was stopped, its pods run on"
		default:
			out.Note = fmt.Sprintf("its daemon ended (%s, %d times)", is.Last, is.Restarts)
			if is.Final {
				out.State, out.Note = cluster.Broken, fmt.Sprintf("its daemon gave up (%s)", is.Last)
			}
			if e := lastError(out.Log); e != "" {
				out.Note += ": " + e
			}
		}
		return out
	}
	if left, _ := cgroupPIDs(p.cgroup(l.cluster, name)); len(left) > 0 || isPinned(l, name, nsKinds) {
		out.State, out.Note = cluster.Broken, fmt.Sprintf("its first process is gone, %d others run", len(left))
	}
	return out
}

// lastError is the last error a node's daemon told before it ended, in its own words; "" without one.
func lastError(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 8 << 10
	if st, err := f.Stat(); err == nil && st.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(b)) {
		if e, ok := strings.CutPrefix(strings.TrimSpace(line), "error: "); ok {
			last = e
		}
	}
	return last
}

// Clusters implements cluster.Provider.
func (p *Provider) Clusters(context.Context) ([]string, error) { return p.clusters() }

func (p *Provider) clusters() ([]string, error) {
	var out []string
	for _, dir := range []string{p.opts.State, p.opts.Run} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("listing clusters: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && cluster.ValidateName(e.Name()) == nil {
				out = append(out, e.Name())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Stop implements cluster.Provider.
func (p *Provider) Stop(ctx context.Context, name, node string) error {
	unlock, err := p.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	l := p.layout(name)
	nodes := []string{node}
	if node == "" {
		nodes = p.nodeNames(l)
	}
	var (
		wg  sync.WaitGroup
		all = make([]error, len(nodes))
	)
	for i, n := range nodes {
		wg.Go(func() {
			all[i] = errors.Join(p.endProcess(l, n, p.opts.StopTimeout), p.wipeNode(l, n))
		})
	}
	wg.Wait()
	if node == "" {
		all = append(all,
			p.endProcess(l, switchName, 5*time.Second),
			p.killAll(p.cgroup(name), nsIDs(l, "*")),
			unpin(l, switchName), p.removeCgroups(p.cgroup(name)),
			unmountBelow(l.runDir()), os.RemoveAll(l.runDir()),
			p.forsake(ctx))
	}
	return errors.Join(all...)
}

// forsake removes what running clusters share when none is left.
func (p *Provider) forsake(ctx context.Context) error {
	unlock, err := p.lockShared(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	removeEmptyCgroup(p.opts.CgroupRoot)
	_ = os.Remove(p.opts.Run)
	return nil
}

// nodeNames are all nodes of which there is a trace, recorded or not.
func (p *Provider) nodeNames(l layout) []string {
	var out []string
	if spec, err := readRecord(l); err == nil {
		for _, n := range spec.Nodes {
			out = append(out, n.Name())
		}
	}
	for _, dir := range []string{filepath.Join(l.stateDir(), "nodes"), filepath.Join(l.runDir(), "nodes")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			out = append(out, e.Name())
		}
	}
	pins, _ := filepath.Glob(l.pin("*", "mnt"))
	for _, f := range pins {
		out = append(out, strings.TrimSuffix(filepath.Base(f), ".mnt"))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// endProcess asks a recorded process to end and kills it when it has not after limit.
func (p *Provider) endProcess(l layout, name string, limit time.Duration) error {
	rec, err := readProc(l.proc(name))
	if err != nil {
		return errors.Join(err, os.Remove(l.proc(name)))
	}
	if limit > 0 {
		if err := rec.signal(unix.SIGTERM); err != nil {
			return err
		}
	}
	if limit == 0 || !rec.waitGone(limit) {
		if err := rec.signal(unix.SIGKILL); err != nil {
			return err
		}
		rec.waitGone(killLimit)
	}
	if err := os.Remove(l.proc(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// wipeNode removes everything of a node that a reboot would: processes, namespaces, cgroups, run directory.
func (p *Provider) wipeNode(l layout, name string) error {
	cg := p.cgroup(l.cluster, name)
	return errors.Join(
		p.endProcess(l, name, 0),
		p.killAll(cg, nsIDs(l, name)),
		unpin(l, name),
		p.removeCgroups(cg),
		os.RemoveAll(filepath.Dir(l.nodeRun(name))),
	)
}

// killLimit is how long killed processes may take to be gone. Longer means that the kernel holds one.
const killLimit = 15 * time.Second

// killAll kills every process in a cgroup tree or in one of the given namespaces, again and again until none
// is left, because those that are left may start new ones.
func (p *Provider) killAll(cgroup string, ids map[string]bool) error {
	pause := time.Millisecond
	for deadline := time.Now().Add(killLimit); ; time.Sleep(pause) {
		inCgroup, err := cgroupPIDs(cgroup)
		if err != nil {
			return err
		}
		inside, err := inNamespaces(ids)
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(append(inCgroup, inside...), func(pid int) bool { return pid == os.Getpid() })
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d (%s) cannot be killed", left[0], commandOf(left[0]))
		}
		thaw(cgroup)
		for _, pid := range left {
			rec, err := recordOf(pid)
			if err != nil {
				continue // gone
			}
			if err := rec.signal(unix.SIGKILL); err != nil {
				return err
			}
			rec.reap()
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// removeCgroups removes a tree whose processes were killed.
func (p *Provider) removeCgroups(path string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := removeCgroups(path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// Delete implements cluster.Provider.
func (p *Provider) Delete(ctx context.Context, name, node string) error {
	unlock, err := p.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	l := p.layout(name)
	if node != "" {
		return p.deleteNode(l, node)
	}
	var all []error
	for _, n := range p.nodeNames(l) {
		all = append(all, p.wipeNode(l, n))
	}
	outside, err := p.stragglers(l)
	all = append(all, err)
	for _, pid := range outside {
		if rec, err := recordOf(pid); err == nil {
			all = append(all, rec.signal(unix.SIGKILL))
		}
	}
	all = append(all,
		p.endProcess(l, switchName, 0),
		p.killAll(p.cgroup(name), nsIDs(l, "*")),
		unpin(l, "*"), p.removeCgroups(p.cgroup(name)),
		unmountBelow(l.runDir()), unmountBelow(l.stateDir()),
	)
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("deleting cluster %s: %w", name, err)
	}
	if err := errors.Join(os.RemoveAll(l.runDir()), os.RemoveAll(l.stateDir())); err != nil {
		return fmt.Errorf("deleting the files of cluster %s: %w", name, err)
	}
	return p.tidy(ctx)
}

func (p *Provider) deleteNode(l layout, node string) error {
	err := errors.Join(p.wipeNode(l, node), os.RemoveAll(l.node(node)))
	if err != nil {
		return fmt.Errorf("deleting node %s of cluster %s: %w", node, l.cluster, err)
	}
	logs, _ := filepath.Glob(l.log(node) + "*")
	for _, f := range logs {
		_ = os.Remove(f)
	}
	spec, err := readRecord(l)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	spec.Nodes = slices.DeleteFunc(spec.Nodes, func(n cluster.NodeSpec) bool { return n.Name() == node })
	spec.DropLinks(node)
	if err := writeRecord(l, spec); err != nil {
		return err
	}
	rec, err := readProc(l.proc(switchName))
	if err != nil {
		return err
	}
	return rec.signal(unix.SIGHUP)
}

// tidy removes what clusters share when there is none left. The directories of their state go with the locks in them.
func (p *Provider) tidy(ctx context.Context) error {
	unlock, err := p.lockShared(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if removeEmptyCgroup(p.opts.CgroupRoot) {
		// Nobody is left on this machine who needs them, neither another cluster nor a node.
		err = restoreLimits(ctx)
	}
	names, cerr := p.clusters()
	if cerr != nil || len(names) > 0 {
		return errors.Join(err, cerr)
	}
	if rerr := os.RemoveAll(p.layout("").payload()); rerr != nil {
		return errors.Join(err, fmt.Errorf("removing the unpacked programs: %w", rerr))
	}
	// Only if they are empty, and so ours.
	for _, d := range []string{p.opts.Run, filepath.Dir(p.opts.Run)} {
		_ = unix.Rmdir(d)
	}
	return err
}

func writeRecord(l layout, s cluster.Spec) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(l.record(), append(b, '\n'), 0o600); err != nil {
		return diskFull(fmt.Errorf("recording cluster %s: %w", l.cluster, err))
	}
	return nil
}
