// Package certmetrics lets the metrics of a program tell when the certificates of its node end. Upstream's tell about certificates that
// clients have shown only. Used by the applets that serve metrics of a node: kube-apiserver and the kubelet.
package certmetrics

import (
	"log/slog"
	"path/filepath"
	"strconv"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// Show adds k1s_certificate_expiration_timestamp_seconds to the metrics of this process. file is one of the node's certificates, beside which the
// others are; for one that is elsewhere, or "", there is nothing to show. They are read whenever somebody asks.
func Show(file string) {
	dir := filepath.Dir(file)
	p := paths.Paths{Data: filepath.Dir(dir)}
	if file == "" || p.PKI() != dir {
		return
	}
	// Where several of these programs are in one process, the first one has done it.
	if err := legacyregistry.CustomRegister(newCollector(p)); err != nil {
		slog.Debug("metrics of certificates are shown already", "err", err)
	}
}

type collector struct {
	metrics.BaseStableCollector
	p    paths.Paths
	ends *metrics.Desc
}

var _ metrics.StableCollector = (*collector)(nil)

func newCollector(p paths.Paths) *collector {
	return &collector{p: p, ends: metrics.NewDesc("k1s_certificate_expiration_timestamp_seconds",
		"When a certificate of this node ends, in seconds since 1970, by its name in the directory pki, and whether it is an authority's.",
		[]string{"name", "authority"}, nil, metrics.ALPHA, "")}
}

// DescribeWithStability implements metrics.StableCollector.
func (c *collector) DescribeWithStability(ch chan<- *metrics.Desc) { ch <- c.ends }

// CollectWithStability implements metrics.StableCollector. What cannot be read is not shown; k1s certs says why.
func (c *collector) CollectWithStability(ch chan<- metrics.Metric) {
	all, err := pki.List(c.p)
	if err != nil {
		slog.Debug("certificates are not shown in the metrics", "err", err)
		return
	}
	for _, i := range all {
		if i.Problem == "" && i.Also == 0 {
			ch <- metrics.NewLazyConstMetric(c.ends, metrics.GaugeValue, float64(i.NotAfter.Unix()), i.Name, strconv.FormatBool(i.Authority))
		}
	}
}
