package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"k1s.io/k1s/internal/paths"
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

// Others have network namespaces and CNI plugins too, of the same names.
func TestOnlyTheNetworksOfOurPodsAreFound(t *testing.T) {
	p, results := paths.Paths{Data: t.TempDir(), Run: t.TempDir()}, t.TempDir()
	kept := func(name, id, netns, dataDir string) string {
		t.Helper()
		config := fmt.Sprintf(`{"name":"k1s","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":%q}}]}`, dataDir)
		b, err := json.Marshal(map[string]any{"kind": "cniCacheV1", "containerId": id, "config": []byte(config), "netns": netns, "networkName": "k1s"})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(results, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	bundle := func(state, id, netns string) {
		t.Helper()
		dir := filepath.Join(state, "io.containerd.runtime.v2.task/k8s.io", id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		spec := fmt.Sprintf(`{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":%q},{"type":"mount","path":"/run/netns/cni-odd"}]}}`, netns)
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(spec), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loopback := `{"kind":"cniCacheV1","containerId":"aaa","config":"e30=","netns":"/var/run/netns/cni-1"}`
	if err := os.WriteFile(filepath.Join(results, "cni-loopback-aaa-lo"), []byte(loopback), 0o600); err != nil {
		t.Fatal(err)
	}
	want := podNetworks{
		namespaces: []string{"cni-1", "cni-2"},
		files:      []string{filepath.Join(results, "cni-loopback-aaa-lo"), kept("k1s-aaa-eth0", "aaa", "/var/run/netns/cni-1", p.CNIState())},
	}
	kept("k1s-bbb-eth0", "bbb", "/var/run/netns/cni-theirs", p.CNIState()+"2")
	kept("cni-loopback-bbb-lo", "bbb", "/var/run/netns/cni-theirs", "")
	bundle(p.ContainerdState(), "aaa", "/var/run/netns/cni-1")
	bundle(p.ContainerdState(), "ccc", "/run/netns/cni-2")
	bundle(p.ContainerdState(), "ddd", "/proc/4711/ns/net") // a container in its pod's
	bundle(p.ContainerdState(), "eee", "/run/netns/blue")   // made by hand
	bundle(t.TempDir(), "fff", "/run/netns/cni-theirs")
	if err := os.WriteFile(filepath.Join(results, "torn"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := findPodNetworks(p, results); !reflect.DeepEqual(got, want) {
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
