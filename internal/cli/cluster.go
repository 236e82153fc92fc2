package cli

import (
	"context"

	"k1s.io/k1s/internal/cli/clustercmd"
	"k1s.io/k1s/internal/cluster/netns"
	"k1s.io/k1s/internal/components"
)

// clusterDeps sets up local clusters with the provider of this platform.
func clusterDeps(deps Deps) clustercmd.Deps {
	var o netns.Options
	if dir := lookup(deps.Environ(), envClusters); dir != "" {
		o = netns.Below(dir)
	}
	provider := netns.New(o)
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
