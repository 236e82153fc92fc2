package cli

import (
	"context"

	"k1s.io/k1s/internal/cli/clustercmd"
	"k1s.io/k1s/internal/cluster/netns"
	"k1s.io/k1s/internal/components"
)

// clusterProvider makes local clusters on this platform.
func clusterProvider(deps Deps) *netns.Provider {
	var o netns.Options
	if dir := lookup(deps.Environ(), envClusters); dir != "" {
		o = netns.Below(dir)
	}
	return netns.New(o)
}

func clusterDeps(deps Deps) clustercmd.Deps {
	provider := clusterProvider(deps)
	return clustercmd.Deps{
		Provider: provider,
		Internal: netns.Main,
		Environ:  deps.Environ,
		Kubectl: func(ctx context.Context, kubeconfig string, args []string) error {
			program, err := payloadProgramIn(ctx, deps, provider.Payloads(), components.Program)
			if err != nil {
				return err
			}
			return become(ctx, deps, program, "kubectl", args, append(deps.Environ(), "KUBECONFIG="+kubeconfig))
		},
	}
}
