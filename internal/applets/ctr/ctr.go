// Package ctr is containerd's debugging client as an applet.
package ctr

import (
	"context"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
)

// Run takes ctr's arguments. Socket and namespace come from CONTAINERD_ADDRESS and CONTAINERD_NAMESPACE
// where no flag gives them.
func Run(ctx context.Context, args []string) error {
	return app.New().RunContext(ctx, append([]string{"ctr"}, args...))
}
