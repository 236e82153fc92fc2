package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/supervise"
)

const (
	lookEvery = 10 * time.Second
	lookTime  = 5 * time.Second // within which etcd has to answer one question
	// deedTime is how long compacting or defragmenting may take; etcd goes on with it anyway.
	deedTime = 10 * time.Minute
	// deeds one after the other: compact, move the leader, defragment, disarm.
	deeds = 6
	// defragmentLock is below no prefix of the API server.
	defragmentLock = "/k1s.io/etcd/defragment"
)

// upkeepState is what the daemon knows of its member of etcd; Daemon.mu guards it.
type upkeepState struct {
	tried     time.Time // to defragment
	compacted int64     // because of an alarm
	// From the revision at a time before follows the rate of writes, negative when it is not known.
	id       uint64
	at       time.Time
	revision int64
	writes   float64
	doing    string // or why nothing is done
	latest   *control.EtcdDefragmented
	sight    etcdcare.Sight // of the other members
	unmoved  string         // why one that is gone could not be removed when that was tried last
}

// etcd speaks with this server's member.
func (d *Daemon) etcd(in component.Input) (*etcdapi.Client, error) {
	if d.openEtcd != nil {
		return d.openEtcd(in)
	}
	return etcdClient(in)
}

// etcdClient speaks with this server's member, with certificates as they are now.
func etcdClient(in component.Input) (*etcdapi.Client, error) {
	e := components.EtcdClient(in)
	pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate for etcd: %w", err)
	}
	raw, err := os.ReadFile(e.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading etcd's certificate authority: %w", err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}}
	conf.RootCAs.AppendCertsFromPEM(raw)
	c := etcdapi.New(e.Endpoint, conf)
	c.Metrics = components.EtcdMetrics()
	return c, nil
}

// watchMember looks after this server's member of etcd.
func (d *Daemon) watchMember(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		d.mu.Lock()
		in, busy := d.in, d.care.restore.Active() || d.moving.active()
		d.mu.Unlock()
		if components.UsesEtcd(in) && !busy {
			d.lookAfterMember(ctx, in)
		} else {
			d.board.Report("etcd", nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *Daemon) lookAfterMember(ctx context.Context, in component.Input) {
	c, err := etcdClient(in)
	if err != nil {
		return // without certificates nothing runs, and that is told elsewhere
	}
	defer c.Close()
	for range deeds {
		f, _, err := d.look(ctx, c, in)
		if ctx.Err() != nil {
			return
		}
		if err != nil { // that it does not answer is shown by its component
			d.board.Report("etcd", etcdcare.Problems(etcdcare.Facts{Free: f.Free}))
			return
		}
		problems, gone := d.awayMembers(in, f, func(id uint64) error { _, err := d.findGone(ctx, in, f, id); return err })
		for _, p := range d.board.Report("etcd", append(etcdcare.Problems(f), problems...)) {
			d.log.Warn("etcd", "problem", p.Text)
		}
		if gone != 0 {
			d.removeGone(ctx, in, f, gone)
			return // and look again
		}
		deed, why := etcdcare.Next(f)
		d.mu.Lock()
		d.upkeep.doing = why
		d.mu.Unlock()
		if deed == etcdcare.Nothing {
			return
		}
		d.log.Info("looking after etcd", "deed", string(deed), "because", why)
		if err := d.do(ctx, c, f, deed); err != nil {
			if ctx.Err() == nil {
				d.log.Warn("looking after etcd", "deed", string(deed), "err", err)
			}
			return
		}
	}
}

// look finds out how the member is. Also with an error Free is known.
func (d *Daemon) look(ctx context.Context, c *etcdapi.Client, in component.Input) (etcdcare.Facts, etcdapi.Status, error) {
	f := etcdcare.Facts{Now: time.Now()}
	if free, err := platform.FreeBytes(in.Paths.Data); err == nil {
		f.Free = max(free, 1) // 0 is not known
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("no answer within %s", lookTime))
	defer cancel()
	s, err := c.Facts(ctx, &f)
	if err != nil {
		return f, s, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	u := &d.upkeep
	switch passed := f.Now.Sub(u.at); {
	case u.at.IsZero() || u.id != f.ID || passed < 0:
		u.id, u.at, u.revision, u.writes = f.ID, f.Now, f.Revision, -1
	case passed >= lookEvery/2: // questions in between say little
		u.writes = float64(f.Revision-u.revision) / passed.Seconds()
		u.at, u.revision = f.Now, f.Revision
	}
	f.Writes, f.Tried, f.Compacted = u.writes, u.tried, u.compacted
	return f, s, nil
}

func (d *Daemon) do(ctx context.Context, c *etcdapi.Client, f etcdcare.Facts, deed etcdcare.Deed) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deedTime, fmt.Errorf("not done within %s", deedTime))
	defer cancel()
	switch deed {
	case etcdcare.Compact:
		err := c.Compact(ctx, f.Revision)
		if err == nil {
			d.mu.Lock()
			d.upkeep.compacted = f.Revision
			d.mu.Unlock()
		}
		return err
	case etcdcare.Disarm:
		return c.Disarm(ctx, f.ID, string(etcdcare.NoSpace))
	case etcdcare.MoveLeader:
		return c.StepDown(ctx, f)
	case etcdcare.Defragment:
		_, err := d.defragment(ctx, c, f)
		return err
	}
	return fmt.Errorf("nobody knows how to %s", deed)
}

// defragment does it to this member while no other one is.
func (d *Daemon) defragment(ctx context.Context, c *etcdapi.Client, f etcdcare.Facts) (_ control.EtcdDefragmented, err error) {
	// When the quota is used up nothing can be written, so there can be no lock; nobody can be kept from writing either.
	if len(f.Members) > 1 && len(f.Alarms) == 0 {
		unlock, err := c.Lock(ctx, defragmentLock, deedTime)
		if err != nil {
			return control.EtcdDefragmented{}, err
		}
		defer func() {
			after, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTime)
			defer cancel()
			if uerr := unlock(after); uerr != nil {
				d.log.Warn("etcd's lock is not given back; it ends by itself", "err", uerr)
			}
		}()
	}
	d.mu.Lock()
	d.upkeep.tried = time.Now()
	d.mu.Unlock()
	began := time.Now()
	if err := c.Defragment(ctx); err != nil {
		return control.EtcdDefragmented{}, err
	}
	took := time.Since(began)
	s, err := c.Status(ctx)
	if err != nil {
		return control.EtcdDefragmented{}, err
	}
	done := control.EtcdDefragmented{At: began.UTC().Truncate(time.Second), Before: f.Bytes, After: s.Bytes, Seconds: took.Round(time.Millisecond).Seconds()}
	d.log.Info("etcd is defragmented", "before", done.Before, "after", done.After, "paused", took.Round(time.Millisecond))
	d.mu.Lock()
	d.upkeep.latest = &done
	d.mu.Unlock()
	return done, nil
}

// DefragmentEtcd implements control.Backend.
func (d *Daemon) DefragmentEtcd(ctx context.Context) (control.EtcdDefragmented, error) {
	in, _, err := d.etcdServer()
	if err != nil {
		return control.EtcdDefragmented{}, err
	}
	c, err := etcdClient(in)
	if err != nil {
		return control.EtcdDefragmented{}, err
	}
	defer c.Close()
	f, _, err := d.look(ctx, c, in)
	if err != nil {
		return control.EtcdDefragmented{}, errs.Hint(fmt.Errorf("etcd does not answer: %w", err), "see: k1s status")
	}
	if why := etcdcare.Hindrance(f); why != "" {
		return control.EtcdDefragmented{}, errs.New(errs.Failure, "this member should not be stopped for a moment now: %s", why)
	}
	if f.Leader == f.ID && etcdcare.Successor(f.Members) != 0 {
		if err := c.StepDown(ctx, f); err != nil {
			return control.EtcdDefragmented{}, err
		}
	}
	return d.defragment(ctx, c, f)
}

// isReady tells that a component is.
func (d *Daemon) isReady(name string) bool {
	return slices.ContainsFunc(d.sup.Snapshot(), func(s supervise.Status) bool { return s.Component == name && s.State == supervise.Ready })
}

// Etcd implements control.Backend.
func (d *Daemon) Etcd(ctx context.Context) (control.Etcd, error) {
	in, _, err := d.etcdServer()
	if err != nil {
		return control.Etcd{}, err
	}
	d.mu.Lock()
	care := d.care
	d.mu.Unlock()
	schedule := in.Config.Spec.Etcd.Snapshots.Schedule
	out := control.Etcd{Members: []etcdcare.Member{}, Snapshots: control.EtcdSnapshots{Schedule: string(schedule), Next: care.next, Last: care.kept.Last, Error: care.kept.Error}}
	if care.restore.Phase != "" {
		out.Restore = &care.restore
	}
	c, err := etcdClient(in)
	if err != nil {
		return out, err
	}
	defer c.Close()
	f, s, err := d.look(ctx, c, in)
	out.FreeBytes = f.Free
	if err != nil {
		out.Problem = err.Error()
		return out, nil
	}
	d.mu.Lock()
	out.Upkeep, out.Defragmented = d.upkeep.doing, d.upkeep.latest
	d.mu.Unlock()
	out.ClusterID, out.ID = strconv.FormatUint(s.ClusterID, 16), strconv.FormatUint(s.ID, 16)
	out.Version, out.Revision, out.Bytes, out.InUse, out.Quota, out.Term = s.Version, s.Revision, s.Bytes, s.InUse, s.Quota, s.Term
	out.Lag, out.Members = s.Index-min(s.Applied, s.Index), f.Members
	for id, all := range s.Alarms() {
		for _, a := range all {
			out.Alarms = append(out.Alarms, control.EtcdAlarm{Member: etcdcare.MemberName(f.Members, id), Alarm: etcdcare.Alarm(a)})
		}
	}
	slices.SortFunc(out.Alarms, func(a, b control.EtcdAlarm) int {
		return cmp.Or(cmp.Compare(a.Member, b.Member), cmp.Compare(a.Alarm, b.Alarm))
	})
	return out, nil
}
