package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/version"
)

// kept is what a node that joined keeps of its cluster, with which it starts while no server answers.
type kept struct {
	// Server is the address it joined at.
	Server string `json:"server"`
	// Servers are those that were there then; what has become of them the balancer learns.
	Servers  []string                   `json:"servers"`
	Settings map[string]json.RawMessage `json:"settings"`
}

// readKept returns nil for a node that has not joined.
func readKept(p paths.Paths) (*kept, error) {
	b, err := os.ReadFile(p.Agent())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, errs.Hint(fmt.Errorf("reading what this node knows of its cluster: %w", err), "run it as root")
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil {
		return nil, errs.Hint(fmt.Errorf("reading what this node knows of its cluster: %w", err), "remove %s and start again: the node asks its cluster", p.Agent())
	}
	return &k, nil
}

// sameRole refuses to make a server of an agent or the other way round: neither could use what the other has left.
func sameRole(in component.Input) error {
	agent := !in.Config.Spec.ControlPlane()
	_, noKey := os.Stat(pki.KeyFile(in.Paths, pki.CA))
	_, noServer := os.Stat(pki.CertFile(in.Paths, pki.APIServer))
	_, noMember := os.Stat(in.Paths.Agent())
	switch {
	case agent && (noKey == nil || noServer == nil):
		return errs.Hint(errs.New(errs.Invalid, "this machine is a server of a cluster (%s); it cannot be an agent", in.Paths.Data), "run: k1s server; to give up what is on it: k1s reset")
	case !agent && noMember == nil:
		return errs.Hint(errs.New(errs.Invalid, "this machine is an agent of a cluster (%s); it cannot be a server", in.Paths.Data), "run: k1s agent; to give up what is on it: k1s reset")
	}
	return nil
}

// membership is what a start has found out about the node's cluster; settle makes it last. Between them the
// machine is checked: what fails there has changed nothing.
type membership struct {
	requests pki.Requests
	welcome  *join.Welcome // nil: nothing had to be asked
	kept     kept
}

// join finds out which cluster this node is of, and takes its settings into in. A node that has joined before needs no
// server for that, unless its certificates have ended.
func (d *Daemon) join(ctx context.Context, in *component.Input) (*membership, error) {
	before, err := readKept(in.Paths)
	if err != nil {
		return nil, err
	}
	m := &membership{}
	if before != nil {
		m.kept = *before
	}
	if err := m.address(in.Config.Spec.Join, before != nil); err != nil {
		return nil, err
	}
	leaves := pki.JoinedLeaves(in.Facts.NodeName, in.Facts.NodeIP)
	due := pki.DueOf(in.Paths, leaves, time.Now())
	must := before == nil || !due.Usable
	// What begins with a CA that the cluster has replaced meanwhile would find no server for minutes.
	if must || strangers(ctx, *in) {
		d.step("joining the cluster at " + m.kept.Server)
		if m.requests, err = pki.NewRequests(leaves); err != nil {
			return nil, err
		}
		once := func(ctx context.Context) error {
			w, err := ask(ctx, *in, m.candidates(in.Paths), m.requests)
			if err == nil {
				m.welcome = &w
			}
			return err
		}
		if must {
			err = d.askServers(ctx, once)
		} else if err := once(ctx); err != nil {
			d.log.Warn("who answers in the place of the servers is not known to this node", "err", err)
		}
		if err != nil {
			return nil, err
		}
		if m.welcome != nil {
			m.kept.Servers, m.kept.Settings = m.welcome.Servers, m.welcome.Settings
		}
	}
	in.Server = m.kept.Server
	return m, adopt(in, m.kept.Settings)
}

// adopt takes the cluster's settings, which have to be ones a node can have.
func adopt(in *component.Input, settings map[string]json.RawMessage) error {
	if err := config.Adopt(&in.Config, settings); err != nil {
		return err
	}
	// What is checked is what may be written, and there a URL is in its file or beside it, not both.
	written := in.Config
	if d := &written.Spec.Datastore; d.EndpointFile != "" {
		d.Endpoint = config.Default().Spec.Datastore.Endpoint
	}
	return config.Invalid(config.Validate(written, config.Known{}))
}

// address finds out where servers are.
func (m *membership) address(j config.Join, joined bool) error {
	if j.Server == "" {
		if joined {
			return nil
		}
		return errs.Hint(errs.New(errs.Invalid, "this agent does not know its cluster: spec.join.server is empty"), "say where a server is: k1s agent --server https://HOST:6443 --token-file FILE")
	}
	addr, err := join.Address(j.Server)
	if err != nil {
		return err
	}
	m.kept.Server = addr
	return nil
}

// candidates are the servers to ask, those that were known last first.
func (m *membership) candidates(p paths.Paths) []string {
	var learned struct {
		Servers []string `json:"servers"`
	}
	if b, err := os.ReadFile(p.Servers()); err == nil {
		_ = json.Unmarshal(b, &learned) // the balancer's; without it there are others
	}
	var out []string
	for _, s := range slices.Concat([]string{m.kept.Server}, learned.Servers, m.kept.Servers) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// ask sends requests to servers until one of them decides.
func ask(ctx context.Context, in component.Input, servers []string, requests pki.Requests) (join.Welcome, error) {
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		return join.Welcome{}, err
	}
	cas, err := pki.ReadTrusted(in.Paths)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return join.Welcome{}, err
	}
	t, tokenErr := readToken(in.Config.Spec.Join)
	if tokenErr != nil && cas == nil {
		return join.Welcome{}, tokenErr // once it has joined, what has become of its token does not matter
	}
	r := join.Request{
		Role: token.Agent, Node: in.Facts.NodeName, IP: in.Facts.NodeIP, CSRs: requests.CSRs, K1s: version.K1s, Kubernetes: version.Kubernetes,
		Trusts: pki.Pins(cas), Issuer: pki.IssuerOf(in.Paths, pki.JoinedLeaves(in.Facts.NodeName, in.Facts.NodeIP)),
	}
	var first error
	for _, s := range servers {
		w, err := join.Client{Server: s, CAs: cas}.Ask(ctx, identity, r, t)
		if err == nil {
			return w, nil
		}
		// Another may see it otherwise: an address that was a server's once may be that of another cluster's now, and not all
		// servers are upgraded at once. If none does, what the one says that was named counts.
		if first == nil {
			first = err
		}
	}
	if errs.Is(first, errs.Denied) && tokenErr != nil {
		return join.Welcome{}, errors.Join(first, tokenErr)
	}
	return join.Welcome{}, first
}

// readToken is nil where there is none.
func readToken(j config.Join) (*token.Token, error) {
	text := j.Token.Reveal()
	if text == "" && j.TokenFile == "" {
		return nil, nil
	}
	if text != "" && j.TokenFile != "" {
		return nil, errs.New(errs.Invalid, "there are two tokens: spec.join.token and the one in spec.join.tokenFile")
	}
	if text == "" {
		st, err := os.Stat(j.TokenFile)
		if err != nil {
			return nil, errs.Hint(errs.New(errs.Invalid, "reading the token (spec.join.tokenFile): %w", err), "write the token into that file; get one on a server with: k1s token create")
		}
		if st.Mode().Perm()&0o007 != 0 {
			return nil, errs.Hint(errs.New(errs.Invalid, "%s (spec.join.tokenFile) can be read by everybody on this machine", j.TokenFile), "run: chmod 600 %s", j.TokenFile)
		}
		b, err := os.ReadFile(j.TokenFile)
		if err != nil {
			return nil, errs.New(errs.Invalid, "reading the token (spec.join.tokenFile): %w", err)
		}
		text = string(b)
	}
	t, err := token.Parse(text)
	if err != nil {
		return nil, err
	}
	return &t, nil
}

// settle writes what the node was given.
func (m *membership) settle(ctx context.Context, log *slog.Logger, in component.Input) (pki.Report, error) {
	if m.welcome != nil {
		if _, err := os.Stat(in.Paths.Agent()); errors.Is(err, fs.ErrNotExist) {
			if err := forgetPodCIDR(in); err != nil {
				return pki.Report{}, err
			}
		}
		if err := m.requests.Install(ctx, in.Paths, m.welcome.CA, m.welcome.Certificates); err != nil {
			return pki.Report{}, err
		}
	}
	b, err := json.Marshal(m.kept)
	if err != nil {
		return pki.Report{}, err
	}
	// Last, so that a node that has it has certificates too.
	if err := writeIfChanged(in.Paths.Agent(), append(b, '\n'), 0o600); err != nil {
		return pki.Report{}, fmt.Errorf("keeping what this node knows of its cluster: %w", err)
	}
	return memberReport(in, nil), kubeconfigs(ctx, log, in)
}

// forgetPodCIDR makes pods wait until the network of a node that joins anew is known: it is another Node, with other addresses, and a pod
// that was started with those of the one before would be reached by nobody. A network that is not ours stays. Where only the Node is
// another one, as that of a machine that was removed and goes on, flannel finds out.
func forgetPodCIDR(in component.Input) error {
	if in.Config.Spec.Network.Backend == "none" {
		return nil
	}
	if err := removeIfThere(components.Conflist(in)); err != nil {
		return fmt.Errorf("forgetting the pod network of before: %w", err)
	}
	return nil
}

func memberReport(in component.Input, issued []pki.Change) pki.Report {
	due := pki.DueOf(in.Paths, pki.JoinedLeaves(in.Facts.NodeName, in.Facts.NodeIP), time.Now())
	r := pki.Report{Issued: issued, RenewAt: due.RenewAt}
	if ca, err := pki.ReadCA(in.Paths); err == nil {
		r.CAExpires = ca.NotAfter
	}
	return r
}

// refreshMember asks a server what has changed, and renews certificates that are due, or all of them. The node's own way to
// the servers leads to one that is well; where it does not, as when the cluster has replaced its CA while this node was
// away, servers are asked directly.
func (d *Daemon) refreshMember(ctx context.Context, in component.Input, all bool) (pki.Report, error) {
	own := net.JoinHostPort("127.0.0.1", strconv.Itoa(in.Config.Spec.API.Port))
	m := membership{kept: kept{Server: in.Server}}
	servers := append([]string{own}, m.candidates(in.Paths)...)
	var issued []pki.Change
	// What the servers trust may have changed: then they are told that this node does too, and what it has may be due. And
	// they are told which certificates it has once it has them.
	const rounds = 4
	for range rounds {
		leaves := pki.JoinedLeaves(in.Facts.NodeName, in.Facts.NodeIP)
		due := pki.DueOf(in.Paths, leaves, time.Now()).Changes
		if all {
			due = nil
			for _, l := range leaves {
				due = append(due, pki.Change{Name: l.Name, Reason: pki.AskedFor})
			}
		}
		leaves = slices.DeleteFunc(leaves, func(l pki.Leaf) bool {
			return !slices.ContainsFunc(due, func(c pki.Change) bool { return c.Name == l.Name })
		})
		requests, err := pki.NewRequests(leaves)
		if err != nil {
			return pki.Report{}, err
		}
		w, err := ask(ctx, in, servers, requests)
		if err != nil {
			return pki.Report{}, fmt.Errorf("asking the cluster for certificates: %w", err)
		}
		before, err := os.ReadFile(pki.CertFile(in.Paths, pki.CA))
		if err != nil {
			return pki.Report{}, fmt.Errorf("reading the cluster's CA: %w", err)
		}
		if len(due) > 0 {
			err = requests.Install(ctx, in.Paths, w.CA, w.Certificates)
		} else {
			err = pki.Trust(ctx, in.Paths, w.CA)
		}
		if err != nil {
			return pki.Report{}, err
		}
		all, issued = false, append(issued, due...)
		if err := d.noteSettings(in, w); err != nil {
			return pki.Report{}, err
		}
		changed := !bytes.Equal(before, w.CA)
		if !changed && len(due) == 0 {
			break
		}
		if changed {
			d.log.Info("the cluster trusts other CAs than before", "servers", servers)
		}
	}
	if len(issued) > 0 {
		if err := kubeconfigs(ctx, d.log, in); err != nil {
			return pki.Report{}, err
		}
	}
	return memberReport(in, issued), nil
}

// noteSettings keeps what the cluster says now for the next start, and tells when this one is another.
func (d *Daemon) noteSettings(in component.Input, w join.Welcome) error {
	b, err := json.Marshal(kept{Server: in.Server, Servers: w.Servers, Settings: w.Settings})
	if err != nil {
		return err
	}
	if err := writeIfChanged(in.Paths.Agent(), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping what this node knows of its cluster: %w", err)
	}
	var differ []string
	for path, ours := range config.Shared(in.Config) {
		if theirs, ok := w.Settings[path]; ok && !bytes.Equal(ours, theirs) {
			differ = append(differ, fmt.Sprintf("%s is %s here and %s there", path, ours, theirs))
		}
	}
	slices.Sort(differ)
	var problems []health.Problem
	if len(differ) > 0 {
		problems = append(problems, health.New(health.SettingsChanged, "the cluster has other settings than this node runs with: %s", strings.Join(differ, "; ")))
	}
	d.board.Report("settings", problems)
	return nil
}

// asMember lets a plan that is only printed be that of the node's cluster, if it has joined one.
func asMember(in *component.Input) error {
	k, err := readKept(in.Paths)
	if err != nil {
		return err
	}
	m := membership{}
	if k != nil {
		m.kept = *k
	}
	if err := m.address(in.Config.Spec.Join, k != nil); err != nil {
		return err
	}
	in.Server = m.kept.Server
	return adopt(in, m.kept.Settings)
}
