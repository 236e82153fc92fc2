package daemon

import (
	"slices"
	"testing"
)

func TestMountsAreUnmountedDeepestFirstAndOnlyBelowOurRoots(t *testing.T) {
	info := `22 1 0:21 / /proc rw - proc proc rw
40 1 8:1 / / rw - ext4 /dev/sda rw
41 40 0:50 / /var/lib/kubelet rw - ext4 /dev/sdb rw
50 40 0:40 / /var/lib/kubelet/pods/a/volumes/v rw - tmpfs tmpfs rw
51 40 0:41 / /run/k1s/containerd/io/rootfs rw - overlay overlay rw
52 51 0:42 / /run/k1s/containerd/io/rootfs/with\040space rw - tmpfs tmpfs rw
53 40 0:43 / /var/lib/kubelet2/x rw - tmpfs tmpfs rw
`
	got := mountsBelow(info, "/var/lib/kubelet", "/run/k1s/", "/var/lib/k1s")
	want := []string{"/run/k1s/containerd/io/rootfs/with space", "/run/k1s/containerd/io/rootfs", "/var/lib/kubelet/pods/a/volumes/v"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
