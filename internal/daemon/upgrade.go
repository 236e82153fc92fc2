package daemon

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/version"
)

// ErrHandOver is what Run returns when the node goes on, and another program is to run it: see FinishUpgrade.
var ErrHandOver = errors.New("the node is handed over to another program")

const (
	// asksProgram is how long a program may take to say what it is: it may have to be read from a slow disk.
	asksProgram = 30 * time.Second
	// failedFor is how long an upgrade that was taken back is told as a problem.
	failedFor = 24 * time.Hour
)

// LastUpgrade is the last upgrade of a node, also while nothing answers; the zero State: there never was one.
func LastUpgrade(p paths.Paths) (upgrade.State, error) {
	b, err := os.ReadFile(p.Upgrade())
	if errors.Is(err, fs.ErrNotExist) {
		return upgrade.State{}, nil
	}
	var s upgrade.State
	if err == nil {
		s, err = upgrade.Unmarshal(b)
	}
	if err != nil {
		return s, errs.Hint(fmt.Errorf("reading how far the last upgrade is: %w", err), "if none is on its way, remove %s", p.Upgrade())
	}
	return s, nil
}

func keepUpgrade(p paths.Paths, s upgrade.State) error {
	return durable.WriteFile(p.Upgrade(), s.Marshal(), 0o600)
}

// settleUpgrade brings an upgrade to its end that was broken off, at the start of a program that is not the one being tried.
func (d *Daemon) settleUpgrade() {
	s, err := LastUpgrade(d.o.Paths)
	if err == nil && s.Active() && !tried(s) {
		s, err = upgrade.Recover(upgradeFiles{d.o.Paths}, s)
	}
	if err != nil { // which must not keep a node from starting
		d.log.Warn("how the last upgrade ended is not known", "err", err)
	}
	d.mu.Lock()
	d.upgrading = s
	d.mu.Unlock()
	d.board.Report("upgrade", upgradeProblems(s, time.Now()))
}

// tried tells that this process is the new program of an upgrade: the one that guards it has started it.
func tried(s upgrade.State) bool {
	parent := platform.Identify(os.Getppid())
	return parent.Start != 0 && s.Guard.PID == parent.PID && s.Guard.Start == parent.Start && s.Guard.Boot == parent.Boot
}

// Guarded tells that an upgrade that is being tried has the process that brings it to its end, as far as that can be seen from here.
func Guarded(s upgrade.State) bool {
	if own := platform.Identify(os.Getpid()); own.Namespace != s.Guard.Namespace {
		return true
	}
	now := platform.Identify(s.Guard.PID)
	return now.Start != 0 && now.Start == s.Guard.Start && now.Boot == s.Guard.Boot
}

func upgradeProblems(s upgrade.State, now time.Time) []health.Problem {
	if s.Phase != upgrade.Failed || now.Sub(s.Ended) > failedFor {
		return nil
	}
	p := health.New(health.UpgradeFailed, "the upgrade to %s was taken back: %s", s.To, s.Error)
	if s.Hint != "" {
		p.Remedy = s.Hint
	}
	return []health.Problem{p}
}

// Upgrade implements control.Backend.
func (d *Daemon) Upgrade(ctx context.Context, r control.UpgradeRequest) (control.Upgrade, error) {
	return d.upgradeTo(ctx, r, "")
}

// upgradeTo is Upgrade, which an order of an upgrade of the cluster may have asked for.
func (d *Daemon) upgradeTo(ctx context.Context, r control.UpgradeRequest, order string) (control.Upgrade, error) {
	if !d.replacing.TryLock() {
		return control.Upgrade{}, errs.Hint(errs.New(errs.Exists, "another upgrade is being prepared"), "wait for its end: k1s upgrade --status")
	}
	defer d.replacing.Unlock()
	if !filepath.IsAbs(r.File) || r.Timeout <= 0 {
		return control.Upgrade{}, errs.New(errs.Usage, "an upgrade needs the path of a file and a time")
	}
	last, err := LastUpgrade(d.o.Paths)
	if err != nil {
		return control.Upgrade{}, err
	}
	d.mu.Lock()
	in, api, busy := d.in, d.api, d.underWay()
	d.mu.Unlock()
	if busy != "" {
		return control.Upgrade{}, errs.Hint(errs.New(errs.Exists, "cannot upgrade now: %s", busy), "wait for its end")
	}
	if api == nil {
		return control.Upgrade{}, errs.Hint(errs.New(errs.NotRunning, "cannot upgrade now: the node is starting"), "wait until it runs: k1s status --wait 5m")
	}
	from, err := d.ownProgram()
	if err != nil {
		return control.Upgrade{}, err
	}
	if err := d.startsAgain(in.Config.Spec.Datastore); err != nil {
		return control.Upgrade{}, err
	}
	next, err := last.Begin(upgrade.State{From: from, File: d.o.Executable, Timeout: r.Timeout, Since: time.Now().UTC().Truncate(time.Second), Order: order})
	if err != nil {
		return control.Upgrade{}, err
	}
	if sameFile(r.File, next.Staged()) {
		return control.Upgrade{}, errs.Hint(errs.New(errs.Invalid, "cannot upgrade to %s: that is the name under which a program is tried", r.File), "give the file another name")
	}
	if r.DryRun {
		next.To, err = inspect(ctx, r.File, r.File)
		if err != nil {
			return control.Upgrade{}, err
		}
		return d.mayUpgrade(ctx, in, api, next, r)
	}

	// What is looked at is the copy: it is what will run.
	if err := keepUpgrade(d.o.Paths, next); err != nil {
		return control.Upgrade{}, err
	}
	answer, err := d.stageUpgrade(ctx, in, api, next, r)
	if err != nil || answer.Same {
		files := upgradeFiles{d.o.Paths}
		return answer, errors.Join(err, files.Discard(next), keepUpgrade(d.o.Paths, last))
	}
	d.mu.Lock()
	d.upgrading = answer.State
	d.mu.Unlock()
	d.log.Info("upgrading", "to", answer.State.To.Version, "kubernetes", answer.State.To.Kubernetes, "file", r.File)
	d.stop(ErrHandOver)
	return answer, nil
}

// stageUpgrade copies the new program, looks whether it may run here, and keeps that it is to be tried.
func (d *Daemon) stageUpgrade(ctx context.Context, in component.Input, api *kubeapi.Client, next upgrade.State, r control.UpgradeRequest) (control.Upgrade, error) {
	if err := copyProgram(r.File, next.Staged(), next.File); err != nil {
		return control.Upgrade{}, err
	}
	to, err := inspect(ctx, next.Staged(), r.File)
	if err != nil {
		return control.Upgrade{}, err
	}
	next.To = to
	answer, err := d.mayUpgrade(ctx, in, api, next, r)
	if err != nil || answer.Same {
		return answer, err
	}
	next.Phase, next.Guard = upgrade.Trying, upgrade.Process(platform.Identify(os.Getpid()))
	answer.State = next
	return answer, keepUpgrade(d.o.Paths, next)
}

// mayUpgrade tells what an upgrade would do, or why it must not be.
func (d *Daemon) mayUpgrade(ctx context.Context, in component.Input, api *kubeapi.Client, next upgrade.State, r control.UpgradeRequest) (control.Upgrade, error) {
	answer := control.Upgrade{State: next, Same: next.From.Digest == next.To.Digest}
	if r.SHA256 != "" && !strings.EqualFold(r.SHA256, next.To.Digest) {
		return answer, errs.Hint(errs.New(errs.Invalid, "%s has the SHA-256 %s, and not the one that was given", r.File, next.To.Digest), "get the file again: it is damaged, or another one")
	}
	if answer.Same {
		return answer, nil
	}
	around, err := lookAround(ctx, in, api)
	if err != nil {
		return answer, err
	}
	if err := upgrade.Check(next.From, next.To, around, r.AllowOlder); err != nil {
		hint, _ := errs.HintOf(err)
		err = errs.As(errs.KindOf(err), fmt.Errorf("cannot upgrade to %s: %w", r.File, err))
		if hint != "" {
			err = errs.Hint(err, "%s", hint)
		}
		return answer, err
	}
	// A node that is not well before cannot show that it is afterwards; and where a member of etcd is away another one must not restart.
	if s := d.Status(ctx); s.State != control.Running {
		return answer, errs.Hint(errs.New(errs.NotRunning, "cannot upgrade now: the node is %s%s", s.State, notWell(s)), "see: k1s status. To go over to another program all the same, stop k1s, replace %s, and start it", next.File)
	}
	for _, p := range d.board.List() {
		if p.Code == health.EtcdMemberAway || p.Code == health.EtcdNoLeader {
			return answer, errs.Hint(errs.New(errs.NotRunning, "cannot upgrade now: %s", p.Text), "%s", p.Remedy)
		}
	}
	return answer, nil
}

// notWell is the most telling reason, as an addition to a sentence.
func notWell(s control.Status) string {
	for _, c := range s.Components {
		if c.State != "ready" {
			return fmt.Sprintf(": %s is %s", c.Name, c.State)
		}
	}
	if s.Node != nil && !s.Node.Ready {
		return ": the node is not Ready: " + s.Node.Reason
	}
	if s.Doing != "" {
		return ", " + s.Doing
	}
	return ""
}

// lookAround finds out which versions the node stands among.
func lookAround(ctx context.Context, in component.Input, api *kubeapi.Client) (upgrade.Around, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("no answer within 15s"))
	defer cancel()
	around := upgrade.Around{Server: in.Config.Spec.ControlPlane()}
	cannot := func(err error) error {
		return errs.Hint(fmt.Errorf("cannot upgrade now: which versions the other nodes have is not known: %w", err), "the API has to answer; see: k1s status")
	}
	var err error
	if !around.Server {
		if around.API, err = api.Version(ctx); err != nil {
			return around, cannot(err)
		}
		return around, nil
	}
	nodes, err := api.Nodes(ctx)
	if err != nil {
		return around, cannot(err)
	}
	around.Kubelets, around.Servers = map[string]string{}, map[string]string{}
	for _, n := range nodes {
		if n.Metadata.Name == in.Facts.NodeName {
			continue
		}
		around.Kubelets[n.Metadata.Name] = n.Status.NodeInfo.KubeletVersion
		if _, ok := n.Metadata.Labels[serverLabel]; ok {
			around.Servers[n.Metadata.Name] = n.Status.NodeInfo.KubeletVersion
		}
	}
	return around, nil
}

// ownProgram is the program that runs the node. It is an error where that is not what the machine starts, or cannot be replaced.
func (d *Daemon) ownProgram() (upgrade.Program, error) {
	file := d.o.Executable
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return upgrade.Program{}, fmt.Errorf("finding this program's own file: %w", err)
	}
	if st, err := os.Stat(file); err != nil || !os.SameFile(st, own) {
		return upgrade.Program{}, errs.Hint(errs.New(errs.Exists, "cannot upgrade: %s was replaced or removed since k1s was started", file), "start k1s again: then the file that is there runs the node")
	}
	mounts, err := mountInfo()
	if err != nil {
		return upgrade.Program{}, fmt.Errorf("looking for mounts: %w", err)
	}
	if mountedItem(mounts, filepath.Dir(file), []string{filepath.Base(file)}) != "" {
		hint := "replace the file that is mounted there, and start k1s again"
		if d.o.Sandbox {
			hint = "the nodes of a local cluster run the program it was made with: k1s cluster create --image FILE"
		}
		return upgrade.Program{}, errs.Hint(errs.New(errs.Unsupported, "cannot upgrade: %s is a mount of its own, and cannot be replaced", file), "%s", hint)
	}
	d.mu.Lock()
	id := d.in.PayloadID
	d.mu.Unlock()
	if p, err := payload.Open(file); err != nil || p.Source() != file {
		return upgrade.Program{}, errs.Hint(errs.New(errs.Unsupported, "cannot upgrade: this node does not run what %s carries", file), "start it without %s", payload.EnvSource)
	}
	p := upgrade.Program{Version: version.K1s, Kubernetes: version.Kubernetes, Commit: version.Commit, Payload: id, Platform: runtime.GOOS + "/" + runtime.GOARCH}
	p.Digest, p.Bytes, err = digest(file)
	return p, err
}

// startsAgain is an error where the next start would not find the configuration that the node runs with. Where the datastore is may have
// changed since the start, by a move.
func (d *Daemon) startsAgain(moved config.Datastore) error {
	if d.o.Reload == nil {
		return nil
	}
	again, _, err := d.o.Reload()
	if err != nil {
		return errs.Hint(fmt.Errorf("cannot upgrade: the configuration cannot be read again: %w", err), "correct it first, see: k1s config validate. What comes from standard input comes once")
	}
	again.Spec.Role = d.o.Config.Spec.Role // it follows from the command
	if d.o.Config.Spec.ControlPlane() {
		if err := resolveDatastore(&again); err != nil {
			return err
		}
	}
	was := d.o.Config
	was.Spec.Datastore = moved
	if !reflect.DeepEqual(again, d.o.Config) && !reflect.DeepEqual(again, was) {
		return errs.Hint(errs.New(errs.Exists, "cannot upgrade: the configuration has changed since k1s was started"), "start k1s again first, so that it is known which of both does not work")
	}
	return nil
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// inspect finds out what a file is, by its head and by asking it; shown is its name for the user.
func inspect(ctx context.Context, file, shown string) (upgrade.Program, error) {
	no := func(err error) error {
		return errs.Hint(errs.As(errs.Invalid, fmt.Errorf("cannot upgrade to %s: %w", shown, err)), "name a k1s executable for this machine, as it was released or as make build leaves it")
	}
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return upgrade.Program{}, no(err)
	case !st.Mode().IsRegular():
		return upgrade.Program{}, no(errors.New("it is no file"))
	}
	p := upgrade.Program{}
	if p.Platform, err = platformOf(file); err != nil {
		return p, no(err)
	}
	if p.Platform != runtime.GOOS+"/"+runtime.GOARCH { // it does not run here
		return p, no(fmt.Errorf("it is built for %s, and this machine is %s/%s", p.Platform, runtime.GOOS, runtime.GOARCH))
	}
	carried, err := payload.Open(file)
	if err == nil && carried.Source() != file {
		err = payload.ErrNone
	}
	if err != nil {
		return p, no(err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, asksProgram, fmt.Errorf("no answer within %s", asksProgram))
	defer cancel()
	cmd := exec.CommandContext(ctx, file, "version", "-o", "json")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}
	out, err := cmd.Output()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return p, no(fmt.Errorf("asking it for its version: %w", err))
	}
	var said struct{ Version, Commit, Kubernetes, Payload string }
	if err := json.Unmarshal(out, &said); err != nil || said.Version == "" || said.Kubernetes == "" {
		return p, no(errors.New("it is no k1s"))
	}
	p.Version, p.Commit, p.Kubernetes, p.Payload = said.Version, said.Commit, said.Kubernetes, said.Payload
	if p.Payload != carried.ID {
		return p, no(errors.New("it does not know what it carries"))
	}
	p.Digest, p.Bytes, err = digest(file)
	return p, err
}

// machines are the architectures k1s is built for, by the numbers of ELF.
var machines = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_RISCV: "riscv64", elf.EM_386: "386"}

// platformOf is what an executable is built for, by the head of its file (elf(5)).
func platformOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 20)
	if _, err := io.ReadFull(f, head); err != nil || string(head[:4]) != elf.ELFMAG {
		return "", errors.New("it is no executable of Linux")
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	m := elf.Machine(order.Uint16(head[18:]))
	if name, ok := machines[m]; ok {
		return "linux/" + name, nil
	}
	return "linux/" + strings.ToLower(strings.TrimPrefix(m.String(), "EM_")), nil
}

// digest is the SHA-256 of a file in hexadecimal digits, and its size.
func digest(file string) (string, int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", 0, fmt.Errorf("reading %s: %w", file, err)
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

// copyProgram copies a program to a file that has the mode of a third, and puts it on the disk.
func copyProgram(from, to, like string) (err error) {
	defer func() {
		if err != nil {
			err = errs.Hint(fmt.Errorf("copying %s to %s: %w", from, to, err), "is there room on that file system, and may it be written to? the new program has to stand beside the old one")
		}
	}()
	st, err := os.Stat(like)
	if err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	// Not over one that may run: of an upgrade that was broken off.
	if err := removeIfThere(to); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(st.Mode().Perm()|0o100), out.Sync(), out.Close(), durable.SyncDir(filepath.Dir(to)))
}

// upgradeFiles is what of upgrade.World is about files.
type upgradeFiles struct{ p paths.Paths }

func (f upgradeFiles) Keep(s upgrade.State) error { return keepUpgrade(f.p, s) }
func (upgradeFiles) Now() time.Time               { return time.Now().UTC().Truncate(time.Second) }

func (upgradeFiles) Try(context.Context, upgrade.State) error {
	return errors.New("nothing can be tried without a guard")
}

func (upgradeFiles) Place(s upgrade.State) error {
	// Both names are the old file's for a moment: a hard link where that can be had.
	aside := s.Kept() + ".tmp"
	if err := removeIfThere(aside); err != nil {
		return err
	}
	if err := os.Link(s.File, aside); err != nil {
		if err := copyProgram(s.File, aside, s.File); err != nil {
			return err
		}
	}
	if err := os.Rename(aside, s.Kept()); err != nil {
		return err
	}
	if err := os.Rename(s.Staged(), s.File); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(s.File))
}

func (upgradeFiles) Placed(s upgrade.State) (bool, error) {
	sum, _, err := digest(s.File)
	return sum == s.To.Digest, err
}

func (upgradeFiles) Discard(s upgrade.State) error {
	return errors.Join(removeIfThere(s.Staged()), removeIfThere(s.Kept()+".tmp"))
}
