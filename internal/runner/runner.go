// Package runner makes a component.Unit run: Process as an operating system process that outlives the
// daemon and is found again by the next one, Goroutine inside the daemon. Both are what package supervise
// calls a Runner; when and how often they run is decided there.
//
// A process belongs to nobody. It has a session and a cgroup of its own, writes to its log file itself, and
// is described by a record (pid, start time, boot, program, hash of the unit) from which another daemon
// recognises it. A record names a process only together with its start time and boot, so a pid that has
// been used again is never touched.
//
// Stopping a unit signals its main process only, first with a request, after the unit's StopTimeout with a
// kill. What the process has started itself is left alone: containerd's shims carry the pods, and pods
// outlive containerd. They stay in containerd's cgroup unless its configuration gives them another one
// (ShimCgroup), which keeps memory accounts apart. Ending the pods is the business of whoever empties their
// cgroups, see platform.Cgroup.KillAll.
package runner

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/timers"
	"k1s.io/k1s/internal/unitlog"
)

// Goroutine runs a unit, or anything else, inside this process. It must return soon after its ctx ends:
// nobody can kill it.
type Goroutine func(ctx context.Context) error

// Run calls it.
func (g Goroutine) Run(ctx context.Context) error { return g(ctx) }

// Options are what all processes of a node have in common.
type Options struct {
	Paths paths.Paths
	// Procs are the machine's processes; nil is platform.NewProcesses.
	Procs platform.Processes
	// Cgroups is the machine's layout; nil leaves all units in our own cgroup. CgroupRoot is the cgroup
	// below which each unit gets its own; it has been prepared.
	Cgroups    *platform.Cgroups
	CgroupRoot string
	// Payload is the directory programs find each other in; "" is the one of the unit's program.
	Payload string
	// Mend makes the payload whole again, and tells whether anything was missing or altered; it is called when a program
	// cannot be started because of its file. nil leaves it to a person.
	Mend func(ctx context.Context) (bool, error)
	// Rotation bounds the logs.
	Rotation unitlog.Policy
	// Log is nil to say nothing.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Procs == nil {
		o.Procs = platform.NewProcesses()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// startMarker is the environment variable by which a process is found that was started by a daemon which
// died before it could write down the pid.
const startMarker = "K1S_START"

// killGrace is how long a killed process may take to be gone. Longer takes only one that hangs in the kernel.
const killGrace = 10 * time.Second

// Process runs one unit as a process. Its methods are called by one goroutine at a time.
type Process struct {
	unit    component.Unit
	hash    string
	o       Options
	started func(pid int, adopted bool)
}

// NewProcess prepares nothing yet.
func NewProcess(u component.Unit, o Options) *Process {
	return &Process{unit: u, hash: u.Hash(), o: o.withDefaults()}
}

// OnStart makes Run call f as soon as the process runs, or has been taken over.
func (p *Process) OnStart(f func(pid int, adopted bool)) { p.started = f }

// Adopt looks for a process an earlier daemon has left. same tells that it runs this very unit, so that
// Run will take it over; otherwise Run would replace it.
func (p *Process) Adopt(context.Context) (running, same bool, err error) {
	proc, rec, err := p.o.find(p.unit.Name)
	if err != nil || proc == nil {
		return false, false, err
	}
	defer proc.Close()
	return true, rec.Hash == p.hash, nil
}

// StopOld ends what an earlier daemon has left, unless it runs this very unit.
func (p *Process) StopOld(ctx context.Context) error {
	proc, rec, err := p.o.find(p.unit.Name)
	if err != nil || proc == nil {
		return err
	}
	defer proc.Close()
	if rec.Hash == p.hash {
		return nil
	}
	if err := p.o.stop(ctx, proc, rec); !errors.Is(err, errKilled) {
		return err
	}
	return nil
}

// Run takes over the process an earlier daemon has left, or starts one, and blocks until it is gone. A
// process that ends by itself is an error of type *platform.ExitError, whatever its status. When ctx ends
// the process is asked to stop, killed after the unit's StopTimeout, and the result is nil if it ended in
// time. When ctx ends with the cause platform.ErrDetach the process is left running, and that is returned.
func (p *Process) Run(ctx context.Context) error {
	proc, rec, err := p.o.find(p.unit.Name)
	if err != nil {
		return err
	}
	if proc == nil && ctx.Err() != nil { // one that is there still has to be stopped
		return context.Cause(ctx)
	}
	if proc != nil && rec.Hash != p.hash {
		err := p.o.stop(context.WithoutCancel(ctx), proc, rec)
		proc.Close()
		if err != nil && !errors.Is(err, errKilled) {
			return err
		}
		proc = nil
	}
	adopted := proc != nil
	if adopted {
		// What was written since it was started.
		if err := Give(p.unit.Grants); err != nil {
			p.o.Log.Warn("files of a unit are not of its user", "unit", p.unit.Name, "err", err)
		}
	} else {
		if proc, rec, err = p.start(); err != nil && p.mended(ctx, err) {
			proc, rec, err = p.start()
		}
		if err != nil {
			return err
		}
	}
	defer proc.Close()
	if p.started != nil {
		p.started(proc.ID().PID, adopted)
	}

	var keeper sync.WaitGroup
	keepCtx, endKeep := context.WithCancel(ctx)
	keeper.Go(func() {
		unitlog.Keep(keepCtx, p.o.Paths.Log(p.unit.Name), p.o.Rotation, func(err error) {
			p.o.Log.Warn("log not rotated", "unit", p.unit.Name, "err", err)
		})
	})
	keeper.Go(func() {
		if err := (timers.Timers{Slack: p.unit.TimerSlack}).Give(keepCtx, proc.ID().PID); err != nil {
			p.o.Log.Info("timers of a unit stay as they are", "unit", p.unit.Name, "err", err)
		}
	})
	defer keeper.Wait()
	defer endKeep()

	exit, err := proc.Wait(ctx)
	switch {
	case err == nil:
		if err := p.o.forget(p.unit.Name); err != nil {
			p.o.Log.Warn("record of a unit not removed", "unit", p.unit.Name, "err", err)
		}
		return &platform.ExitError{Exit: exit}
	case ctx.Err() == nil: // not even watching it works
		return errors.Join(err, p.o.stop(context.WithoutCancel(ctx), proc, rec))
	case errors.Is(context.Cause(ctx), platform.ErrDetach):
		return platform.ErrDetach
	default:
		return p.o.stop(context.WithoutCancel(ctx), proc, rec)
	}
}

// mended tells that a program which could not be started has got back its file.
func (p *Process) mended(ctx context.Context, err error) bool {
	program := &programError{}
	if p.o.Mend == nil || !errors.As(err, &program) {
		return false
	}
	done, mendErr := p.o.Mend(ctx)
	if mendErr != nil {
		p.o.Log.Warn("payload not restored", "unit", p.unit.Name, "program", p.unit.Argv[0], "err", mendErr)
	}
	return done
}

func (p *Process) start() (_ platform.Process, rec Record, err error) {
	defer func() {
		if err != nil {
			err = errs.WithLog(fmt.Errorf("cannot start %s: %w", p.unit.Name, err), p.o.Paths.Log(p.unit.Name))
		}
	}()
	if len(p.unit.Argv) == 0 || !filepath.IsAbs(p.unit.Argv[0]) {
		return nil, rec, errs.New(errs.Invalid, "its command line %q does not begin with an absolute path", p.unit.Argv)
	}
	if err := prepare(p.unit.Dirs, p.unit.Files); err != nil {
		return nil, rec, err
	}
	if err := Give(p.unit.Grants); err != nil {
		return nil, rec, err
	}
	for _, f := range p.unit.Stale {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, rec, remedy(err, f)
		}
	}
	if err := checkProgram(p.unit.Argv[0]); err != nil {
		return nil, rec, err
	}
	out, err := unitlog.Open(p.o.Paths.Log(p.unit.Name))
	if err != nil {
		return nil, rec, remedy(err, p.o.Paths.Log(p.unit.Name))
	}
	defer out.Close() // the process has its own

	var group *platform.Cgroup
	if p.o.Cgroups != nil {
		if group, err = p.o.Cgroups.Ensure(p.o.CgroupRoot, p.unit.Name); err != nil {
			p.o.Log.Warn("unit runs without a cgroup of its own", "unit", p.unit.Name, "err", err)
			group = nil
		}
	}

	rec = Record{
		Unit: p.unit.Name, Hash: p.hash, Program: p.unit.Argv[0], Marker: rand.Text(),
		StopTimeout: p.stopTimeout(), Started: time.Now().UTC(),
	}
	// Written twice: should we die between the start and the second time, the marker finds the process.
	if err := p.o.record(rec); err != nil {
		return nil, rec, err
	}
	unitlog.Begin(out, p.unit.Name, rec.Started)
	proc, err := p.o.Procs.Start(platform.Command{Argv: p.unit.Argv, Env: p.environ(rec.Marker), Output: out, Cgroup: group, User: p.unit.User})
	if err != nil {
		return nil, rec, errors.Join(programRemedy(err, p.unit.Argv[0]), p.o.forget(p.unit.Name))
	}
	rec.Process = proc.ID()
	if p.unit.OOMScore != 0 {
		if err := platform.SetOOMScore(rec.Process.PID, p.unit.OOMScore); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			p.o.Log.Warn("unit is not protected when memory runs out", "unit", p.unit.Name, "err", err)
		}
	}
	if err := p.o.record(rec); err != nil {
		// Without a record it would be lost to the next daemon.
		stopErr := p.o.stop(context.Background(), proc, rec)
		return nil, rec, errors.Join(err, stopErr, proc.Close())
	}
	if group != nil {
		if err := group.Add(rec.Process.PID); err != nil && !errors.Is(err, syscall.ESRCH) {
			p.o.Log.Warn("unit is not in a cgroup of its own", "unit", p.unit.Name, "err", err)
		}
	}
	return proc, rec, nil
}

func (p *Process) stopTimeout() time.Duration {
	if p.unit.StopTimeout > 0 {
		return p.unit.StopTimeout
	}
	return component.DefaultStopTimeout
}

// environ is minimal on purpose: what the daemon was started with must not change how components behave.
func (p *Process) environ(marker string) []string {
	payload := p.o.Payload
	if payload == "" {
		payload = filepath.Dir(p.unit.Argv[0])
	}
	env := map[string]string{
		"PATH": strings.Join([]string{payload, filepath.Join(payload, "cni"),
			"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":"),
		"HOME": "/root",
	}
	maps.Copy(env, p.unit.Env)
	env[startMarker] = marker
	var list []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	return list
}

// Record describes a running unit. It is what a later daemon recognises the process by.
type Record struct {
	Unit    string `json:"unit"`
	Hash    string `json:"hash"` // component.Unit.Hash of what runs
	Program string `json:"program"`
	// Process has pid 0 while the process is being started.
	Process     platform.ProcessID `json:"process"`
	Marker      string             `json:"marker"`
	StopTimeout time.Duration      `json:"stopTimeout"`
	Started     time.Time          `json:"started"`
}

// Records returns the records of all units, sorted by name. That there is a record does not mean that the
// process is still there. Unreadable ones are left out and told.
func Records(p paths.Paths) ([]Record, error) {
	names, err := filepath.Glob(p.Unit("*"))
	if err != nil {
		return nil, err
	}
	var recs []Record
	var failed []error
	for _, name := range names {
		rec, err := readRecord(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			failed = append(failed, err)
		default:
			recs = append(recs, rec)
		}
	}
	slices.SortFunc(recs, func(a, b Record) int { return strings.Compare(a.Unit, b.Unit) })
	return recs, errors.Join(failed...)
}

// Running are the process IDs of the units that earlier daemons have left. A process whose daemon was killed before it
// could write down its ID is among them.
func Running(o Options) ([]int, error) {
	o = o.withDefaults()
	recs, err := Records(o.Paths)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, rec := range recs {
		ids, err := o.candidates(rec)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			pids = append(pids, id.PID)
		}
	}
	return pids, nil
}

// candidates are the processes a record may be about.
func (o Options) candidates(rec Record) ([]platform.ProcessID, error) {
	if rec.Process.PID != 0 {
		return []platform.ProcessID{rec.Process}, nil
	}
	ids, err := o.Procs.FindByEnv(startMarker, rec.Marker)
	if err != nil {
		return nil, fmt.Errorf("looking for unit %s: %w", rec.Unit, err)
	}
	program := rec.Program
	if target, err := filepath.EvalSymlinks(program); err == nil {
		program = target
	}
	// What the process has started inherits the marker, but runs other programs, or is younger.
	return slices.DeleteFunc(ids, func(id platform.ProcessID) bool { return id.Exe != program }), nil
}

func readRecord(name string) (Record, error) {
	var rec Record
	b, err := os.ReadFile(name)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("reading the record of a unit %s: %w", name, err)
	}
	return rec, nil
}

// StopRecorded stops the units that earlier daemons have left, except those keep names (nil keeps none), all
// at once. The daemon calls it for units that are no longer part of the node, and `k1s stop` and `k1s reset`
// when no daemon runs. Records of processes that are gone are removed.
func StopRecorded(ctx context.Context, o Options, keep func(unit string) bool) error {
	o = o.withDefaults()
	recs, err := Records(o.Paths)
	failed := []error{err}
	var mu sync.Mutex // guards failed
	var wg sync.WaitGroup
	for _, rec := range recs {
		if keep != nil && keep(rec.Unit) {
			continue
		}
		wg.Go(func() {
			proc, rec, err := o.find(rec.Unit)
			if err == nil && proc != nil {
				err = o.stop(ctx, proc, rec)
				proc.Close()
			}
			if err != nil && !errors.Is(err, errKilled) {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// find opens the process the record of a unit names; nil when there is none. A record that names nothing
// any more is removed.
func (o Options) find(unit string) (platform.Process, Record, error) {
	rec, err := readRecord(o.Paths.Unit(unit))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, rec, nil
	}
	if err != nil {
		return nil, rec, errs.Hint(err, "if no process of unit %s runs, remove the file; otherwise stop that process first", unit)
	}
	ids, err := o.candidates(rec)
	if err != nil {
		return nil, rec, err
	}
	for _, id := range ids {
		proc, err := o.Procs.Adopt(id)
		if errs.Is(err, errs.NotFound) {
			o.Log.Debug("record of a unit is stale", "unit", unit, "err", err)
			continue
		}
		if err != nil {
			return nil, rec, fmt.Errorf("looking for unit %s: %w", unit, err)
		}
		if rec.Process.PID == 0 {
			rec.Process = proc.ID()
			if err := o.record(rec); err != nil {
				proc.Close()
				return nil, rec, err
			}
		}
		return proc, rec, nil
	}
	return nil, rec, o.forget(unit)
}

func (o Options) record(rec Record) error {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	name := o.Paths.Unit(rec.Unit)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return remedy(fmt.Errorf("recording unit %s: %w", rec.Unit, err), name)
	}
	if err := writeAtomic(name, append(b, '\n'), 0o600); err != nil {
		return remedy(fmt.Errorf("recording unit %s: %w", rec.Unit, err), name)
	}
	return nil
}

func (o Options) forget(unit string) error {
	if err := os.Remove(o.Paths.Unit(unit)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of unit %s: %w", unit, err)
	}
	return nil
}

// errKilled tells that a unit is gone, though not in time.
var errKilled = errors.New("killed")

// stop asks, waits, kills, and makes sure that the process is gone. The error is errKilled when it had to
// be killed. When ctx ends it is killed at once.
func (o Options) stop(ctx context.Context, proc platform.Process, rec Record) error {
	timeout := rec.StopTimeout
	if timeout <= 0 {
		timeout = component.DefaultStopTimeout
	}
	if err := proc.RequestStop(); err != nil {
		return fmt.Errorf("stopping unit %s: %w", rec.Unit, err)
	}
	patience, cancel := context.WithTimeout(ctx, timeout)
	_, err := proc.Wait(patience)
	cancel()
	if err == nil {
		return o.forget(rec.Unit)
	}
	if err := proc.Kill(); err != nil {
		return fmt.Errorf("killing unit %s: %w", rec.Unit, err)
	}
	patience, cancel = context.WithTimeout(context.WithoutCancel(ctx), killGrace)
	defer cancel()
	if _, err := proc.Wait(patience); err != nil {
		return errs.Hint(fmt.Errorf("unit %s (process %d) does not go away although it was killed %s ago: %w", rec.Unit, proc.ID().PID, killGrace, err),
			"it hangs in the kernel, usually on a disk or a network file system; see: cat /proc/%d/stack", proc.ID().PID)
	}
	if err := o.forget(rec.Unit); err != nil {
		return err
	}
	return fmt.Errorf("unit %s (process %d) did not end within %s of being asked: %w", rec.Unit, proc.ID().PID, timeout, errKilled)
}
