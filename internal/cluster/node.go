package cluster

import (
	"context"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/kubeconfig"
)

// KillNode ends everything on a node at once, as a power cut does. Its data stays.
func (m Manager) KillNode(ctx context.Context, cluster, name string) error {
	defer m.progress().Done()
	k, ok := m.Provider.(Killer)
	if !ok {
		return errs.New(errs.Unsupported, "nodes of these clusters cannot be killed")
	}
	if _, _, err := m.node(ctx, cluster, name); err != nil {
		return err
	}
	m.progress().Step("killing node " + name)
	return k.Kill(ctx, cluster, name)
}

// MergeKubeconfig adds a cluster's context to the user's kubeconfig, or brings it up to date. It returns the context, and
// whether anything was written.
func (m Manager) MergeKubeconfig(ctx context.Context, name string) (string, bool, error) {
	defer m.progress().Done()
	c, err := m.Kubeconfig(ctx, name)
	if err != nil {
		return "", false, Missing(err)
	}
	changed, err := kubeconfig.Merge(ctx, m.Kubeconfigs, c, kubeconfig.MergeOptions{SetCurrent: !m.KeepContext})
	return c.Name, changed, err
}
