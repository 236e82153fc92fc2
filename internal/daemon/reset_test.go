package daemon

import (
	"os"
	"path/filepath"
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

func TestOnlyOurContainersAreFoundInTheSliceOfPods(t *testing.T) {
	slice, state := t.TempDir(), t.TempDir()
	for _, dir := range []string{
		filepath.Join(slice, "kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-aaa.scope"),
		filepath.Join(slice, "kubepods-pod2.slice/cri-containerd-bbb.scope"), // somebody else's
		filepath.Join(slice, "kubepods-pod3.slice"),
		filepath.Join(state, "aaa"), filepath.Join(state, "ccc"),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tasks, err := os.ReadDir(state)
	if err != nil {
		t.Fatal(err)
	}
	got := scopesOf(slice, tasks)
	if want := []string{"/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-aaa.scope"}; !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestDirectoriesOthersUseTooGoOnlyWhenTheyAreEmpty(t *testing.T) {
	top := t.TempDir()
	ours, theirs := filepath.Join(top, "ours"), filepath.Join(top, "theirs")
	for _, dir := range []string{ours + "/s", theirs + "/s", theirs + "/more"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{ours, theirs, filepath.Join(top, "absent")} {
		if err := removeIfEmpty(dir+"/s", dir); err != nil {
			t.Error(err)
		}
	}
	if left, err := filepath.Glob(top + "/*/*"); err != nil || !slices.Equal(left, []string{theirs + "/more"}) {
		t.Errorf("left: %q, %v", left, err)
	}
	if _, err := os.Stat(ours); err == nil {
		t.Error("an empty directory is left")
	}
}
