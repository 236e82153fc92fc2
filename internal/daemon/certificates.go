package daemon

import (
	"context"
	"errors"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/pki"
)

// renewEvery is how often the daemon looks whether certificates are due, or asks a server. It looks at the files and the clock
// instead of sleeping until then, because a machine may be suspended, its clock set, or its files restored
// from a backup. Looking takes a few milliseconds.
const renewEvery = time.Hour

// lookAtWall is how often it looks whether that time is over: a timer stands still while the machine is suspended, and does
// not notice that the clock is set.
const lookAtWall = time.Minute

// lookDue tells whether it is time to look at certificates again, by the wall clock, whatever has happened to it since the last time.
func lookDue(last, now time.Time) bool {
	last, now = last.Round(0), now.Round(0) // without the monotonic clock
	return now.Before(last) || now.Sub(last) >= renewEvery
}

// caWarning is how long before its end a CA is reported: it is not renewed by itself, because every client
// has to learn the new one.
const caWarning = 180 * 24 * time.Hour

// reportCertificates shows what is about to expire.
func (d *Daemon) reportCertificates(r pki.Report) {
	d.board.Report("certificates", certificateProblems(r, time.Now()))
	d.log.Debug("certificates", "issued", len(r.Issued), "renew", r.RenewAt, "first", r.ExpiresFirst)
}

// certificateProblems are what a user has to do something about.
func certificateProblems(r pki.Report, now time.Time) []health.Problem {
	var problems []health.Problem
	if left := r.CAExpires.Sub(now); !r.CAExpires.IsZero() && left < caWarning {
		problems = append(problems, health.New(health.CertExpiring, "the cluster's CA expires on %s", r.CAExpires.Format(time.DateOnly)))
	}
	var due []string
	for _, c := range r.Postponed {
		if c.Reason != pki.AskedFor { // that one has time
			due = append(due, c.Name)
		}
	}
	if len(due) > 0 {
		problems = append(problems, health.New(health.CertExpiring, "certificates are due and cannot be renewed, because the key of their authority is not on this machine: %s; the first to end is %s, on %s",
			strings.Join(due, ", "), r.ExpiresFirst, r.Expires.Format(time.DateOnly)).
			Fix("put the authorities' keys there until they are renewed, and run: k1s certs renew"))
	}
	return problems
}

// renewCertificates renews certificates long before they expire, while everything runs: upstream's
// components watch their certificate files and take the new ones without a restart.
func (d *Daemon) renewCertificates(ctx context.Context) {
	tick := time.NewTicker(lookAtWall)
	defer tick.Stop()
	last := time.Now()                   // a server has looked at its certificates just now
	if !d.o.Config.Spec.ControlPlane() { // an agent needs a server for that
		if d.sup.Wait(ctx, "balancer", component.Ready) != nil {
			return
		}
		last = time.Time{}
	}
	said := ""
	for {
		if now := time.Now(); lookDue(last, now) {
			_, err := d.renew(ctx, false)
			switch {
			case err == nil:
				last, said = now, ""
			case ctx.Err() != nil:
				return
			default: // after a suspend the network may be a moment later than the clock
				if said != err.Error() {
					said = err.Error()
					d.log.Error("certificates not renewed, trying again in a minute", "err", err)
				}
				d.board.Report("certificates", []health.Problem{health.FromError(err, health.CertExpiring, "")})
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// certificateEvent is the reason of events about certificates that end soon.
const certificateEvent = "CertificateExpiring"

// tellOfCertificates makes an event of the node of what a user has to do something about: when that is new, and every renewEvery, which is how long
// an API server keeps events. warn makes one.
func (d *Daemon) tellOfCertificates(ctx context.Context, warn func(context.Context, kubeapi.NodeEvent) error) {
	tick := time.NewTicker(lookAtWall)
	defer tick.Stop()
	d.mu.Lock()
	node := d.in.Facts.NodeName
	d.mu.Unlock()
	told, last := "", time.Time{}
	for {
		now, text := time.Now(), certificateText(d.board.List())
		if text != "" && (text != told || lookDue(last, now)) {
			err := warn(ctx, kubeapi.NodeEvent{Node: node, Reason: certificateEvent, Message: text, At: now})
			if err == nil {
				told, last = text, now
			} else if ctx.Err() == nil { // the API is away, and k1s status shows it all the same
				d.log.Debug("no event tells of certificates that end, trying again in a minute", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// certificateText is what an event says of the problems that are about certificates; "" for none.
func certificateText(all []health.Problem) string {
	var out []string
	for _, p := range all {
		if p.Code == health.CertExpiring {
			out = append(out, p.Text+" ("+p.Remedy+")")
		}
	}
	return strings.Join(out, "; ")
}

// warnOfCertificates is tellOfCertificates with the cluster's API, once that answers.
func (d *Daemon) warnOfCertificates(ctx context.Context) {
	api := "kube-apiserver"
	if !d.o.Config.Spec.ControlPlane() {
		api = "balancer"
	}
	if d.sup.Await(ctx, api, component.Ready) != nil {
		return
	}
	d.tellOfCertificates(ctx, func(ctx context.Context, e kubeapi.NodeEvent) error {
		ctx, cancel := context.WithTimeoutCause(ctx, lookTime, errors.New("the API server took more than "+lookTime.String()))
		defer cancel()
		return d.client().WarnOfNode(ctx, e)
	})
}

// renew issues certificates that are due, or all of them.
func (d *Daemon) renew(ctx context.Context, all bool) (pki.Report, error) {
	// Kubeconfigs are written from what was issued; two at once would mix certificates and keys.
	d.renewing.Lock()
	defer d.renewing.Unlock()
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	var report pki.Report
	var err error
	if in.Config.Spec.ControlPlane() {
		if report, err = certificates(ctx, d.log, in, all); err == nil {
			err = giveFiles(in)
		}
	} else {
		report, err = d.refreshMember(ctx, in, all)
	}
	if err != nil {
		return report, err
	}
	for _, c := range report.Issued {
		d.log.Info("certificate renewed", "name", c.Name, "reason", c.Reason)
	}
	d.reportCertificates(report)
	return report, nil
}

// Renew implements control.Backend.
func (d *Daemon) Renew(ctx context.Context, r control.RenewRequest) (control.Renewed, error) {
	d.mu.Lock()
	prepared := d.api != nil
	d.mu.Unlock()
	if !prepared {
		return control.Renewed{}, errs.Hint(errs.New(errs.NotRunning, "the node is starting; it looks after its certificates by itself then"),
			"try again when it runs: k1s status")
	}
	report, err := d.renew(ctx, r.All)
	if err != nil {
		return control.Renewed{}, err
	}
	out := control.Renewed{Certificates: []control.Certificate{}, Next: report.RenewAt}
	for _, c := range report.Issued {
		out.Certificates = append(out.Certificates, control.Certificate{Name: c.Name, Reason: c.Reason})
	}
	for _, c := range report.Postponed {
		out.Postponed = append(out.Postponed, control.Certificate{Name: c.Name, Reason: c.Reason})
	}
	return out, nil
}
