package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/restore"
	"k1s.io/k1s/internal/supervise"
	"k1s.io/k1s/internal/unitlog"
	"k1s.io/k1s/internal/version"
)

// The daemon is what the control socket speaks for.
var _ control.Backend = (*Daemon)(nil)

// askAPI bounds what a status may wait for the API server: a status must answer while the API does not.
const askAPI = 2 * time.Second

// Status implements control.Backend.
func (d *Daemon) Status(ctx context.Context) control.Status {
	d.mu.Lock()
	in, api, doing, readyAt, stopped, move, restoring, follows := d.in, d.api, d.doing, d.readyAt, d.stopped, d.moving.state, d.care.restore, d.moving.following
	upgrading := d.upgrading
	d.mu.Unlock()
	spec := in.Config.Spec
	if doing == "" && move.Active() {
		doing = "moving the datastore to " + move.To.String() + ": " + string(move.Phase)
	}
	switch {
	case follows != nil && follows.Decided == migration.Forward && doing == "":
		doing = follows.Leader + " has moved the datastore to " + follows.To.String() + ": starting the control plane on it"
	case follows != nil && follows.Decided != migration.Forward:
		doing = follows.Leader + " moves the datastore to " + follows.To.String() + ": waiting until it is decided that it has"
	}
	if doing == "" && restoring.Active() {
		doing = restoreDoing(restoring)
	}
	datastore := in // as it is now
	if api == nil {
		datastore = component.Input{Config: d.o.Config, Paths: d.o.Paths}
	}

	s := control.Status{
		Since: d.started, ReadyAt: readyAt, Doing: doing, PID: os.Getpid(),
		Version: version.K1s, Kubernetes: version.Kubernetes, Payload: in.PayloadID,
		Role: spec.Role, Cluster: spec.Cluster.Name, DataDir: d.o.Paths.Data, Isolation: spec.Isolation,
		Server: components.URL(in), Components: []control.Component{},
	}
	allReady := (!move.Active() || move.Phase == migration.Copying) && (!restoring.Active() || restoring.Phase == restore.Staging)
	apiOpen := false
	database := datastoreProblems(datastore)
	parts := d.components(doing)
	reasons(parts, append(d.board.List(), database...))
	for _, c := range parts {
		s.Components = append(s.Components, wireComponent(d.o, c))
		if c.State != supervise.Ready {
			allReady = false
		} else if c.Component == "kube-apiserver" || c.Component == "balancer" {
			apiOpen = true
		}
	}
	if api != nil && apiOpen && spec.Worker() {
		dnsCtx, cancel := context.WithCancel(ctx)
		defer cancel()
		var dns *control.DNS
		var asking sync.WaitGroup
		if !slices.Contains(spec.Disable, dnsAddon) {
			asking.Go(func() { dns = askDNS(dnsCtx, in) })
		}
		s.Node = askNode(ctx, api, in, d.kubeletStart())
		if !s.Node.Ready { // then it tells nothing, and need not be waited for
			cancel()
		}
		asking.Wait()
		allReady = allReady && s.Node.Ready
		if s.Node.Ready {
			s.DNS = dns
		}
	}
	if upgrading.Active() {
		s.Upgrade = &upgrading
	}
	d.board.Report("upgrade", upgradeProblems(upgrading, time.Now()))
	s.Addons, _ = addonStatus(in)
	d.board.Report("supervisor", supervisorProblems(d.sup.Problems()))
	d.board.Report("addons", addonProblems(s.Addons))
	d.board.Report("images", imageProblems(in))
	d.board.Report("encryption files", d.encryptionProblems())
	d.board.Report("kine", database)
	if !spec.ControlPlane() && readyAt != nil {
		d.board.Report("servers", serversAway(s.Components))
	}
	s.Tunnels = tunnels(in)
	d.board.Report("tunnels", tunnelProblems(s.Tunnels, apiOpen, time.Now()))
	s.Problems = d.board.List()
	switch {
	case stopped != nil:
		s.State = control.Stopping
	case readyAt == nil:
		s.State = control.Starting
	case allReady:
		s.State = control.Running
	default:
		s.State = control.Degraded
	}
	return s
}

// tunnels are those that the API server, or on an agent the balancer, tells of; nil for none.
func tunnels(in component.Input) *control.Tunnels {
	var t control.Tunnels
	file := in.Paths.AgentTunnels()
	if in.Config.Spec.ControlPlane() {
		file = in.Paths.Tunnels()
	}
	if err := readStatusFile(file, &t); err != nil || len(t.Nodes)+len(t.Unreachable)+len(t.Servers) == 0 {
		return nil
	}
	return &t
}

// tunnelBack is how long a tunnel may take to be back after a server has started anew.
const tunnelBack = 30 * time.Second

// tunnelProblems are about nodes a server cannot reach; about an agent's own tunnels only where it has been told by a
// server that is well. What is told while the API does not answer is of an earlier time.
func tunnelProblems(t *control.Tunnels, apiOpen bool, now time.Time) []health.Problem {
	if t == nil || !apiOpen {
		return nil
	}
	var out []health.Problem
	for _, n := range t.Unreachable {
		out = append(out, health.New(health.NodeUnreachable, "node %s is Ready, and this server has no tunnel to it and does not reach it directly: %s", n.Name, n.Reason))
	}
	for _, s := range t.Servers {
		if !s.Connected && s.Answers && now.Sub(s.Since) > tunnelBack {
			out = append(out, health.New(health.TunnelDown, "server %s answers, and cannot reach this node: %s", s.Server, s.Note).Of("balancer"))
		}
	}
	return out
}

// serversAway tells that no server answers a node that runs.
func serversAway(all []control.Component) []health.Problem {
	for _, c := range all {
		if c.Name == "balancer" && c.State == string(supervise.Degraded) {
			return []health.Problem{health.New(health.ServersAway, "no server of the cluster answers; the pods of this node go on")}
		}
	}
	return nil
}

// components are those of this node with what is known about each. Before anything can be started they wait
// for what the daemon is doing.
func (d *Daemon) components(doing string) []supervise.Status {
	all := d.sup.Snapshot()
	if len(all) == 0 {
		for _, u := range d.outline {
			for _, c := range u.Components {
				all = append(all, supervise.Status{Component: c.Name, Unit: u.Name, State: supervise.Waiting, Since: d.started})
			}
		}
	}
	for i, c := range all {
		if c.State == supervise.Waiting && c.Note() == "" && doing != "" {
			all[i].Reason = "while k1s is " + doing
		}
	}
	return all
}

func wireComponent(o Options, c supervise.Status) control.Component {
	w := control.Component{
		Name: c.Component, Unit: c.Unit, State: string(c.State), Since: c.Since, PID: c.PID, UID: c.UID,
		Restarts: c.Restarts, Note: c.Note(), RetryAt: c.RetryAt, Log: o.Paths.Log(c.Unit), ReadyAt: c.ReadyAt,
	}
	if c.LastExit != nil {
		w.LastExit = c.LastExit.Reason
	}
	return w
}

func askNode(ctx context.Context, api *kubeapi.Client, in component.Input, since time.Time) *control.Node {
	ctx, cancel := context.WithTimeoutCause(ctx, askAPI, errors.New("the API server took more than 2s"))
	defer cancel()
	out := &control.Node{Name: in.Facts.NodeName, IP: in.Facts.NodeIP.String()}
	n, err := api.Node(ctx, in.Facts.NodeName)
	if err != nil {
		out.Reason = err.Error()
		return out
	}
	out.Kubelet, out.Runtime, out.PodCIDR = n.Status.NodeInfo.KubeletVersion, n.Status.NodeInfo.ContainerRuntimeVersion, n.Spec.PodCIDR
	if err := n.Ready(since); err != nil {
		out.Reason = err.Error()
	} else {
		out.Ready = true
	}
	pods, err := api.Pods(ctx, in.Facts.NodeName)
	if err != nil {
		out.Reason = err.Error()
		return out
	}
	for _, p := range pods {
		out.Pods.Total++
		if p.Ready() {
			out.Pods.Ready++
		} else if len(out.Pods.NotReady) < 10 {
			out.Pods.NotReady = append(out.Pods.NotReady, p.Metadata.Namespace+"/"+p.Metadata.Name)
		}
	}
	return out
}

// dnsAddon is the packaged component that serves the cluster's DNS.
const dnsAddon = "coredns"

// dnsAnswerTime bounds the question to the cluster's DNS: it answers within a millisecond where it has its turn, which on a machine
// that is busy takes longer. It is asked while the API server is, so nobody waits for it alone.
const dnsAnswerTime = time.Second

// dnsAskAgain is after how long it is asked once more, since a question may be lost: those before kube-proxy has been there are.
const dnsAskAgain = 250 * time.Millisecond

// askDNS asks the cluster's DNS for the name of the API, the way a pod would: through the service address.
func askDNS(ctx context.Context, in component.Input) *control.DNS {
	address, err := components.ClusterDNS(in)
	if err != nil {
		return &control.DNS{Reason: err.Error()}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dnsAnswerTime, errors.New("no answer"))
	defer cancel()
	err = lookUp(ctx, "kubernetes.default.svc."+in.Config.Spec.Cluster.Domain+".", func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, net.JoinHostPort(address, "53"))
	})
	out := &control.DNS{Address: address, Answers: true}
	if err != nil {
		out.Answers, out.Reason = false, dnsReason(err)
	}
	return out
}

// lookUp asks for a name until ctx ends, again and again without giving up the questions before: the first answer counts.
func lookUp(ctx context.Context, name string, dial func(context.Context, string, string) (net.Conn, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	answers := make(chan error)
	again := time.NewTicker(dnsAskAgain)
	defer again.Stop()
	for {
		asking.Go(func() {
			r := net.Resolver{PreferGo: true, Dial: dial} // of its own: one resolver asks once for all who want the same
			_, err := r.LookupHost(ctx, name)
			select {
			case answers <- err:
			case <-ctx.Done():
			}
		})
		select {
		case err := <-answers:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again.C:
		}
	}
}

// dnsReason is what is wrong, without the addresses and ports that differ from try to try.
func dnsReason(err error) string {
	var sys *os.SyscallError
	var dns *net.DNSError
	switch {
	case errors.As(err, &sys) && errors.Is(sys.Err, syscall.EPERM):
		return "no DNS pod is ready" // kube-proxy rejects what is sent to a service without endpoints
	case errors.As(err, &sys):
		return sys.Err.Error()
	case errors.As(err, &dns) && dns.IsTimeout:
		return "no answer"
	case errors.As(err, &dns) && strings.HasSuffix(dns.Err, syscall.EPERM.Error()): // it keeps the text only
		return "no DNS pod is ready"
	case errors.As(err, &dns):
		return strings.TrimSpace(dns.Err[strings.LastIndex(dns.Err, ": ")+1:])
	}
	return err.Error()
}

func supervisorProblems(in []supervise.Problem) []health.Problem {
	var out []health.Problem
	for _, p := range in {
		h := health.New(health.ComponentCrashloop, "%s", p.Text)
		h.Component = p.Unit
		if p.Remedy != "" {
			h.Remedy = p.Remedy
		}
		out = append(out, h)
	}
	return out
}

// readStatusFile reads what a component reports in a file; a file that is not there yet is an empty report.
func readStatusFile(file string, v any) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	return nil
}

// Logs implements control.Backend. Components that share a process share its log.
func (d *Daemon) Logs(ctx context.Context, name string, o control.LogOptions, w io.Writer) error {
	unit := ""
	var known []string
	for _, c := range d.components("") {
		known = append(known, c.Component)
		if c.Component == name || c.Unit == name {
			unit = c.Unit
		}
	}
	if unit == "" {
		return errs.Hint(errs.New(errs.NotFound, "there is no component %q on this node", name), "components: %s", strings.Join(known, ", "))
	}
	file := d.o.Paths.Log(unit)
	if o.Follow {
		return unitlog.Follow(ctx, file, o.Lines, w)
	}
	lines, err := unitlog.Tail(file, o.Lines)
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "%s has not written a log yet", name)
	}
	if err != nil {
		return err
	}
	for _, l := range lines {
		if _, err := io.WriteString(w, l+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// Stop implements control.Backend.
func (d *Daemon) Stop(_ context.Context, r control.StopRequest) error {
	d.mu.Lock()
	d.stopped = &r
	d.mu.Unlock()
	d.stop(errStop)
	return nil
}

// Restart implements control.Backend.
func (d *Daemon) Restart(_ context.Context, name string) error { return d.sup.Restart(name) }
