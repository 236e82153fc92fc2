//go:build !linux

package netns

import (
	"context"
	"errors"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// Provider has no namespaces to work with on this system: every method says so.
type Provider struct{ opts Options }

var _ cluster.Provider = (*Provider)(nil)

// New never fails; the methods do.
func New(o Options) *Provider { return &Provider{opts: o.withDefaults()} }

func unsupported() error {
	return errs.Hint(errs.As(errs.Unsupported, errors.Join(errors.New("clusters made of namespaces need Linux"), errors.ErrUnsupported)),
		"run k1s in WSL2 or in a Linux machine")
}

func (*Provider) Features(context.Context) (cluster.Features, error) {
	return cluster.Features{}, unsupported()
}

func (*Provider) Prepare(_ context.Context, s cluster.Spec) (cluster.Spec, error) {
	return s, unsupported()
}

func (*Provider) Create(context.Context, cluster.NodeSpec) (cluster.Node, error) {
	return cluster.Node{}, unsupported()
}

func (*Provider) Stop(context.Context, string, string) error { return unsupported() }

func (*Provider) Describe(context.Context, string) (cluster.Status, error) {
	return cluster.Status{}, unsupported()
}

func (*Provider) Clusters(context.Context) ([]string, error)          { return nil, unsupported() }
func (*Provider) Delete(context.Context, string, string) error        { return unsupported() }
func (*Provider) Leftovers(context.Context, string) ([]string, error) { return nil, unsupported() }

// KubeconfigFile implements cluster.Files.
func (p *Provider) KubeconfigFile(string) string { return "" }

// Main is only called by processes this package started, so never here.
func Main(context.Context, []string) error { return unsupported() }
