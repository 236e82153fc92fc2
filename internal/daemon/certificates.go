package daemon

import (
	"context"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/pki"
)

// renewEvery is how often the daemon looks whether certificates are due. It looks at the files and the clock
// instead of sleeping until then, because a machine may be suspended, its clock set, or its files restored
// from a backup. Looking takes a few milliseconds.
const renewEvery = time.Hour

// caWarning is how long before its end a CA is reported: it is not renewed by itself, because every client
// has to learn the new one.
const caWarning = 180 * 24 * time.Hour

// reportCertificates shows what is about to expire.
func (d *Daemon) reportCertificates(r pki.Report) {
	var problems []health.Problem
	if left := time.Until(r.CAExpires); !r.CAExpires.IsZero() && left < caWarning {
		problems = append(problems, health.New(health.CertExpiring, "the cluster's CA expires on %s", r.CAExpires.Format(time.DateOnly)))
	}
	d.board.Report("certificates", problems)
	d.log.Debug("certificates", "issued", len(r.Issued), "renew", r.RenewAt, "first", r.ExpiresFirst)
}

// renewCertificates renews certificates long before they expire, while everything runs: upstream's
// components watch their certificate files and take the new ones without a restart.
func (d *Daemon) renewCertificates(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	// A server has looked at its certificates just now; an agent needs a server for that.
	soon := make(chan struct{})
	if !d.o.Config.Spec.ControlPlane() {
		if d.sup.Wait(ctx, "balancer", component.Ready) != nil {
			return
		}
		close(soon)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-soon:
			soon = nil
		case <-tick.C:
		}
		if _, err := d.renew(ctx, false); err != nil && ctx.Err() == nil {
			d.log.Error("certificates not renewed, trying again in an hour", "err", err)
			d.board.Report("certificates", []health.Problem{health.FromError(err, health.CertExpiring, "")})
		}
	}
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
		report, err = certificates(ctx, d.log, in, all)
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
