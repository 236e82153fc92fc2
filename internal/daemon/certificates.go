package daemon

import (
	"context"
	"time"

	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/pki"
)

// renewEvery is how often the daemon looks whether certificates are due. It looks at the clock instead of
// sleeping until then, because a machine may be suspended, or its clock set.
const renewEvery = time.Hour

// caWarning is how long before its end a CA is reported: it is not renewed by itself, because every client
// has to learn the new one.
const caWarning = 180 * 24 * time.Hour

// reportCertificates remembers when to renew and shows what is about to expire.
func (d *Daemon) reportCertificates(r pki.Report) {
	d.mu.Lock()
	d.renewAt = r.RenewAt
	d.mu.Unlock()
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		due, in := time.Now().After(d.renewAt), d.in
		d.mu.Unlock()
		if !due {
			continue
		}
		report, err := certificates(ctx, d.log, in)
		if err != nil {
			d.log.Error("certificates not renewed, trying again in an hour", "err", err)
			d.board.Report("certificates", []health.Problem{health.FromError(err, health.CertExpiring, "")})
			continue
		}
		d.log.Info("certificates renewed", "count", len(report.Issued), "again", report.RenewAt)
		d.reportCertificates(report)
	}
}
