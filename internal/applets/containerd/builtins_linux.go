package containerd

import (
	_ "github.com/containerd/containerd/api/types/runc/options" // options of the runc runtime, by type URL
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
)
