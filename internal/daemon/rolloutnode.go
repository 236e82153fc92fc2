package daemon

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/upgrade/rollout"
	"k1s.io/k1s/internal/version"
)

const (
	// lookForTurn is how often an agent looks whether it is its turn, on its Node; askOrders how often it asks and tells while it is.
	lookForTurn = 10 * time.Second
	askOrders   = 2 * time.Second
	// wellPatience is how long a node may take to be well again before it goes over, as after its pods have left it; fetchPatience how long
	// no server may give it the program.
	wellPatience  = 2 * time.Minute
	fetchPatience = 8 * time.Minute
	// obeyEvery is how often it is tried: the program is copied and read each time.
	obeyEvery = 10 * time.Second
	// maxProgram is more than any k1s has.
	maxProgram = 1 << 30
)

// obedience is an order of an upgrade of the cluster that this node follows, or has refused.
type obedience struct {
	key   string
	since time.Time
	tried time.Time // last
	doing string
	err   error // why not
}

// errAskAgain is of an order that is followed at the next look: what came before has taken its time, and it may have been given up meanwhile.
var errAskAgain = errors.New("the program is here")

// credentials are what this node speaks with to servers.
func (d *Daemon) credentials() (crypto.Signer, []*x509.Certificate, string, error) {
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		return nil, nil, "", err
	}
	cas, err := pki.ReadTrusted(in.Paths)
	return identity, cas, in.Facts.NodeName, err
}

// upgradeReport is what this node says of itself while the cluster is upgraded.
func (d *Daemon) upgradeReport(ctx context.Context) rollout.Report {
	s := d.Status(ctx)
	d.mu.Lock()
	last, f, sum := d.upgrading, d.rolling.obeys, d.rolling.digest
	name := d.in.Facts.NodeName
	d.mu.Unlock()
	r := rollout.Report{Node: name, Version: version.K1s, Kubernetes: version.Kubernetes, Digest: sum, Well: s.State == control.Running, Doing: f.doing}
	if !r.Well {
		r.Why = string(s.State) + notWell(s)
	}
	if sum == "" { // what runs does not change
		var err error
		if r.Digest, _, err = digest(ownExecutable); err != nil {
			r.Well, r.Why = false, fmt.Sprintf("what runs here is not known: %v", err)
		} else {
			d.mu.Lock()
			d.rolling.digest = r.Digest
			d.mu.Unlock()
		}
	}
	r.Order, r.Phase, r.Error, r.Hint = last.Order, last.Phase, last.Error, last.Hint
	if f.err != nil && !last.Active() {
		r.Order, r.Phase, r.Error = f.key, upgrade.Failed, f.err.Error()
		r.Hint, _ = errs.HintOf(f.err)
	}
	return r
}

// ownExecutable is the program that runs, whatever has become of its name.
const ownExecutable = "/proc/self/exe"

// follow does what an order says, once; nil is none.
func (d *Daemon) follow(ctx context.Context, o *rollout.Order, servers []string) {
	d.mu.Lock()
	last, f := d.upgrading, d.rolling.obeys
	if o == nil {
		d.rolling.obeys = obedience{}
	}
	d.mu.Unlock()
	if o == nil || last.Active() || last.Order == o.Key || f.key == o.Key && f.err != nil {
		return
	}
	if f.key != o.Key {
		f = obedience{key: o.Key, since: time.Now()}
		d.log.Info("told to go over to another k1s", "to", o.Program.Version, "kubernetes", o.Program.Kubernetes, "order", o.Key)
	}
	if time.Since(f.tried) < obeyEvery {
		return
	}
	f.tried = time.Now()
	say := func(doing string) {
		d.mu.Lock()
		f.doing = doing
		d.rolling.obeys = f
		d.mu.Unlock()
	}
	say("looking whether this node is well")
	err := d.obey(ctx, *o, servers, say)
	if ctx.Err() != nil {
		return
	}
	waited := time.Since(f.since)
	away := errors.As(err, new(*join.Unreachable)) || errs.Is(err, errs.NotFound) // a server may not have looked yet
	switch {
	case err == nil:
		say("")
	case errors.Is(err, errAskAgain):
		f.tried = time.Time{}
		say(err.Error())
	case away && waited < fetchPatience, errs.Is(err, errs.NotRunning) && waited < wellPatience:
		say(err.Error())
	default:
		d.log.Warn("this node does not go over to another k1s", "order", o.Key, "err", err)
		f.err = err
		say("")
	}
}

// obey gets the program and goes over to it. Errors of *join.Unreachable and of kind errs.NotRunning may pass.
func (d *Daemon) obey(ctx context.Context, o rollout.Order, servers []string, say func(string)) error {
	if s := d.Status(ctx); s.State != control.Running {
		return errs.Hint(errs.New(errs.NotRunning, "the node is %s%s", s.State, notWell(s)), "see: k1s status")
	}
	say("getting the program")
	_, missing := os.Stat(d.programFile(o.Program.Digest))
	file, err := d.fetchProgram(ctx, o.Program, servers)
	if err != nil {
		return err
	}
	if missing != nil {
		return errAskAgain
	}
	say("looking at the program")
	over := d.upgradeTo
	if d.goesOver != nil {
		over = d.goesOver
	}
	_, err = over(ctx, control.UpgradeRequest{File: file, SHA256: o.Program.Digest, AllowOlder: o.AllowOlder, Timeout: o.Timeout}, o.Key)
	return err
}

// programFile is where the program is that the cluster is upgraded to.
func (d *Daemon) programFile(digest string) string {
	return filepath.Join(d.o.Paths.Programs(), filepath.Base(digest))
}

// stagedProgram is where it is before it is known what it is.
func (d *Daemon) stagedProgram() string { return filepath.Join(d.o.Paths.Programs(), "coming") }

// stageProgram copies a program a person has named, with nothing else beside it.
func (d *Daemon) stageProgram(file string) (string, error) {
	staged := d.stagedProgram()
	if st, err := os.Stat(file); err == nil && st.Size() > maxProgram {
		return "", errs.New(errs.Invalid, "cannot upgrade to %s: it has %d bytes, which no k1s has", file, st.Size())
	}
	if err := d.removePrograms(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(d.o.Paths.Programs(), 0o700); err != nil {
		return "", fmt.Errorf("making room for the new program: %w", err)
	}
	if err := copyProgram(file, staged, d.o.Executable); err != nil {
		return "", errors.Join(err, removeIfThere(staged))
	}
	return staged, nil
}

// keepProgram gives what is staged its name; d.staging is held.
func (d *Daemon) keepProgram(staged, digest string) error {
	err := os.Rename(staged, d.programFile(digest))
	if err == nil {
		err = durable.SyncDir(d.o.Paths.Programs())
	}
	if err != nil {
		return fmt.Errorf("keeping the new program: %w", err)
	}
	return nil
}

// removePrograms removes what an upgrade has left; d.staging is held.
func (d *Daemon) removePrograms() error {
	if err := os.RemoveAll(d.o.Paths.Programs()); err != nil {
		return fmt.Errorf("removing the program of an upgrade: %w", err)
	}
	return nil
}

// fetchProgram makes sure that the program is here, and gets it from a server where it is not.
func (d *Daemon) fetchProgram(ctx context.Context, p upgrade.Program, servers []string) (string, error) {
	if raw, err := hex.DecodeString(p.Digest); err != nil || len(raw) != 32 || p.Bytes <= 0 || p.Bytes > maxProgram {
		return "", errs.New(errs.Invalid, "a program of %d bytes with the SHA-256 %q is none", p.Bytes, p.Digest)
	}
	d.staging.Lock()
	defer d.staging.Unlock()
	file := d.programFile(p.Digest)
	if sum, _, err := digest(file); err == nil && sum == p.Digest {
		return file, nil
	}
	identity, cas, self, err := d.credentials()
	if err != nil {
		return "", err
	}
	if err := d.removePrograms(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(d.o.Paths.Programs(), 0o700); err != nil {
		return "", fmt.Errorf("making room for the new program: %w", err)
	}
	staged := d.stagedProgram()
	var failed []error
	for _, s := range servers {
		err := fetchFrom(ctx, join.Client{Server: s, CAs: cas}, identity, self, p, staged)
		if err == nil {
			d.log.Info("got the program", "from", s, "bytes", p.Bytes)
			return file, d.keepProgram(staged, p.Digest)
		}
		if errors.As(err, new(*fs.PathError)) { // of this machine: another server does not help
			failed = []error{errs.Hint(err, "is there room on that file system, and may it be written to? the program has to stand beside the present one")}
			break
		}
		if failed = append(failed, err); ctx.Err() != nil {
			break
		}
	}
	err = errors.Join(failed...)
	if len(failed) == 0 {
		err = errors.New("there is no other server")
	}
	return "", errors.Join(fmt.Errorf("getting the program that the cluster is upgraded to: %w", err), removeIfThere(staged))
}

// fetchFrom gets the program from one server, and looks whether it is the one.
func fetchFrom(ctx context.Context, c join.Client, identity crypto.Signer, self string, p upgrade.Program, to string) error {
	if err := removeIfThere(to); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	err = c.Program(ctx, identity, self, p.Digest, p.Bytes, f)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	sum, n, err := digest(to)
	if err == nil && (sum != p.Digest || n != p.Bytes) {
		err = errs.New(errs.Denied, "%s has sent %d bytes with the SHA-256 %s in the place of the program", c.Server, n, sum)
	}
	return err
}

// watchOrders lets an agent go over to another k1s when it is its turn in an upgrade of the cluster. It sees that on its own Node, which it may
// read, and asks a server what to do: what stands on the Node anybody may have written.
func (d *Daemon) watchOrders(ctx context.Context) {
	said := ""
	for pause := askOrders; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		turn, err := d.askOrder(ctx)
		pause = lookForTurn
		if turn {
			pause = askOrders
		}
		if err != nil && ctx.Err() == nil && err.Error() != said {
			d.log.Info("no server tells what to do in the upgrade of the cluster", "err", err)
			said = err.Error()
		}
		if err == nil {
			said = ""
		}
	}
}

// askOrder asks what is to be done, if it is this agent's turn, and does it.
func (d *Daemon) askOrder(ctx context.Context) (turn bool, err error) {
	d.mu.Lock()
	in, api := d.in, d.api
	d.mu.Unlock()
	if api == nil {
		return false, nil
	}
	n, err := api.Node(ctx, in.Facts.NodeName)
	if err != nil {
		return false, nil // that servers are away shows elsewhere
	}
	if _, turn = n.Metadata.Annotations[turnAnnotation]; !turn {
		d.follow(ctx, nil, nil)
		d.staging.Lock()
		defer d.staging.Unlock()
		return false, d.removePrograms()
	}
	m := membership{kept: kept{Server: in.Server}}
	if k, err := readKept(in.Paths); err == nil && k != nil {
		m.kept.Servers = k.Servers
	}
	servers := append([]string{net.JoinHostPort("127.0.0.1", strconv.Itoa(in.Config.Spec.API.Port))}, m.candidates(in.Paths)...)
	a, from, err := d.tellServers(ctx, servers)
	if err != nil {
		return true, err
	}
	servers = slices.DeleteFunc(servers, func(s string) bool { return s == from })
	d.follow(ctx, a.Order, append([]string{from}, servers...))
	return true, nil
}

// tellServers tells the first server that answers how far this node is; the answer is of the one that leads.
func (d *Daemon) tellServers(ctx context.Context, servers []string) (join.UpgradeAnswer, string, error) {
	identity, cas, self, err := d.credentials()
	if err != nil {
		return join.UpgradeAnswer{}, "", err
	}
	own := join.UpgradeRequest{Node: self, Report: d.upgradeReport(ctx)}
	var failed []error
	for _, s := range servers {
		a, err := join.Client{Server: s, CAs: cas}.Upgrade(ctx, identity, own)
		if err == nil && a.Leader != "" {
			s = a.Leader
			if a, err = (join.Client{Server: s, CAs: cas}).Upgrade(ctx, identity, own); err == nil && a.Leader != "" {
				err = errs.New(errs.NotRunning, "%s says that another server leads, which says the same of others", s)
			}
		}
		if err == nil {
			return a, s, nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", s, err))
	}
	return join.UpgradeAnswer{}, "", errors.Join(failed...)
}
