//go:build linux

package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/internal/wait"
)

// These tests run a real containerd in mount and network namespaces of its own. They need root and are
// asked for by naming the program, because it is built elsewhere.
const containerdEnv = "K1S_TEST_CONTAINERD"

type daemon struct {
	t                   *testing.T
	dir, socket, binary string
	cmd                 *exec.Cmd
	ended               func() error // waits for its end
}

func startContainerd(t *testing.T) *daemon {
	t.Helper()
	binary := os.Getenv(containerdEnv)
	if binary == "" {
		t.Skipf("set %s to a containerd program to run this (as root)", containerdEnv)
	}
	if os.Geteuid() != 0 {
		t.Fatalf("%s is set, but this is not root", containerdEnv)
	}
	// A socket's path must be short.
	dir, err := os.MkdirTemp("", "k1s-img-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d := &daemon{t: t, dir: dir, socket: filepath.Join(dir, "c.sock"), binary: binary}
	config := "version = 3\nroot = '" + dir + "/root'\nstate = '" + dir + "/state'\n" +
		"[debug]\nlevel = 'warn'\n" +
		"[grpc]\naddress = '" + d.socket + "'\n[ttrpc]\naddress = '" + d.socket + ".ttrpc'\n" +
		"[plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n" +
		"[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '" + image.BaseName + "'\n"
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(d.binary, "--config", filepath.Join(d.dir, "config.toml"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// Mounts it leaves behind go with the namespace.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if d.ended, err = testenv.Start(d.cmd); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) stop() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.ended()
	d.cmd = nil
	if d.t.Failed() {
		b, _ := os.ReadFile(filepath.Join(d.dir, "log"))
		d.t.Logf("containerd:\n%s", b)
	}
}

func (d *daemon) client() *containerd.Client {
	d.t.Helper()
	c, err := dial(d.t.Context(), d.socket, patienceComponent)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

// images are what containerd has: name → labels, without CRI's second names.
func (d *daemon) images() map[string]map[string]string {
	d.t.Helper()
	all, err := d.client().ImageService().List(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	out := map[string]map[string]string{}
	for _, i := range all {
		if !strings.HasPrefix(i.Name, "sha256:") {
			out[i.Name] = i.Labels
		}
	}
	return out
}

// keep runs the applet until the returned function is called.
func (d *daemon) keep() (stop func()) {
	d.t.Helper()
	payload := filepath.Join(d.dir, "payload")
	if err := os.MkdirAll(payload, 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(payload, "pause"), []byte("\x7fELF"), 0o755); err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(d.t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{
			"--socket=" + d.socket, "--payload=" + payload, "--bundles=" + d.bundles(),
			"--status-file=" + d.status(), "--ready-file=" + d.ready(),
		}, iostreams.Streams{})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			d.t.Errorf("the applet ended with: %v", err)
		}
	}
	d.t.Cleanup(stop)
	return stop
}

func (d *daemon) bundles() string { return filepath.Join(d.dir, "bundles") }
func (d *daemon) status() string  { return filepath.Join(d.dir, "status.json") }
func (d *daemon) ready() string   { return filepath.Join(d.dir, "ready") }

func (d *daemon) waitReady() {
	d.t.Helper()
	d.until("the ready file", func() error { _, err := os.Stat(d.ready()); return err })
}

func (d *daemon) until(what string, probe func() error) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	if err := wait.Until(ctx, 50*time.Millisecond, what, func(context.Context) error { return probe() }); err != nil {
		d.t.Fatal(err)
	}
}

// bundleStates waits for the states of all bundles to be these.
func (d *daemon) bundleStates(want map[string]image.BundleState) status {
	d.t.Helper()
	var s status
	d.until("bundle states", func() error {
		s = status{}
		b, err := os.ReadFile(d.status())
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		got := map[string]image.BundleState{}
		for _, b := range s.Bundles {
			got[b.File] = b.State
		}
		if !maps.Equal(got, want) {
			return errors.New(string(b))
		}
		return nil
	})
	return s
}

func (d *daemon) write(name string, content []byte) {
	d.t.Helper()
	if err := os.MkdirAll(d.bundles(), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.bundles(), name), content, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) remove(name string) {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.bundles(), name)); err != nil {
		d.t.Fatal(err)
	}
}

func archiveOf(t *testing.T, format image.Format, arch string, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	for i := range names {
		if !strings.Contains(names[i], ":") {
			names[i] += ":1"
		}
	}
	spec := image.Spec{Names: names, Arch: arch, Files: []image.File{image.Text("/name", strings.Join(names, " "))}}
	if _, err := image.Write(&b, format, spec); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBaseImageAndBundlesAreImportedAndSeenByCRI(t *testing.T) {
	d := startContainerd(t)
	d.write("a.anything", archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/oci"))
	d.write("b", gzipped(t, archiveOf(t, image.Docker, runtime.GOARCH, "docker.io/library/docker:latest")))
	d.write("c.tar.zst", zstded(t, archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/zstd")))
	d.write(".partial", []byte("not looked at"))
	d.keep()
	d.waitReady()
	s := d.bundleStates(map[string]image.BundleState{"a.anything": image.BundleImported, "b": image.BundleImported, "c.tar.zst": image.BundleImported})
	if !s.Base || len(s.Problems) != 0 {
		t.Errorf("status is %+v", s)
	}
	got := d.images()
	for name, bundle := range map[string]string{
		image.BaseName: "", "k1s.io/test/oci:1": "a.anything",
		"docker.io/library/docker:latest": "b", "k1s.io/test/zstd:1": "c.tar.zst",
	} {
		l, ok := got[name]
		if !ok || l[labelPinned] != valuePinned || l[labelManaged] != valueManaged || l[labelBundle] != bundle {
			t.Errorf("%s: there %t, labels %v", name, ok, l)
		}
	}
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// CRI follows containerd's events, so it may be a moment behind.
	d.until("CRI to list the images as pinned", func() error {
		list, err := cri.NewImageServiceClient(conn).ListImages(t.Context(), &cri.ListImagesRequest{})
		if err != nil {
			return err
		}
		pinned := 0
		for _, i := range list.Images {
			if i.Pinned {
				pinned += len(i.RepoTags)
			}
		}
		if pinned != 4 {
			return errors.New(list.String())
		}
		return nil
	})
	st, err := cri.NewImageServiceClient(conn).ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "docker:latest"}})
	if err != nil || st.Image == nil {
		t.Errorf("CRI does not find docker:latest: %v %v", st, err)
	}
	c := d.client()
	base, err := c.GetImage(t.Context(), image.BaseName)
	if err != nil {
		t.Fatal(err)
	}
	snapshotter, err := (&importer{client: c}).unpackWith(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := base.IsUnpacked(t.Context(), snapshotter); err != nil || !ok {
		t.Errorf("base image is not unpacked into %s: %v", snapshotter, err)
	}
}

func TestBadBundlesAreProblemsAndHinderNothing(t *testing.T) {
	d := startContainerd(t)
	good := archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/good")
	packed := gzipped(t, good)
	// An image of its own: with the right content already in containerd the wrong one would not matter.
	flipped := archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/flipped")
	i := bytes.Index(flipped, []byte("k1s.io/test/flipped")) // the layer's content: its digest no longer fits
	flipped[i] ^= 1
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	for name, content := range map[string][]byte{
		"empty":       {},
		"garbage":     bytes.Repeat([]byte("garbage "), 1000),
		"truncated":   good[:len(good)/3],
		"cut.gz":      packed[:len(packed)-10],
		"checksum.gz": append(bytes.Clone(packed[:len(packed)-8]), 0, 0, 0, 0, 0, 0, 0, 0),
		"flipped":     flipped,
		"wrong-arch":  archiveOf(t, image.OCI, other, "k1s.io/test/foreign"),
		"wrong-arch2": archiveOf(t, image.Docker, other, "k1s.io/test/foreign2"),
		"good":        archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/other"),
	} {
		d.write(name, content)
	}
	if err := syscall.Mkfifo(filepath.Join(d.bundles(), "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.keep()
	d.waitReady()
	bad := []string{"empty", "garbage", "truncated", "cut.gz", "checksum.gz", "flipped", "wrong-arch", "wrong-arch2", "fifo"}
	want := map[string]image.BundleState{"good": image.BundleImported}
	for _, name := range bad {
		want[name] = image.BundleFailed
	}
	s := d.bundleStates(want)
	reasons := map[string]string{}
	for _, p := range s.Problems {
		if p.Code != health.BundleUnreadable || p.Component != "images" {
			t.Errorf("problem is %+v", p)
		}
		file, reason, _ := strings.Cut(strings.TrimPrefix(p.Text, d.bundles()+"/"), ": ")
		reasons[file] = reason
	}
	for file, want := range map[string]string{
		"empty": "empty", "garbage": "tar", "truncated": "truncated", "cut.gz": "truncated", "checksum.gz": "checksum",
		"flipped": "", "wrong-arch": "this machine is linux/", "wrong-arch2": "this machine is linux/", "fifo": "not a file",
	} {
		if reason, ok := reasons[file]; !ok || !strings.Contains(reason, want) {
			t.Errorf("%s: reason is %q, want %q in it", file, reason, want)
		}
	}
	names := slices.Sorted(maps.Keys(d.images()))
	if !slices.Equal(names, []string{image.BaseName, "k1s.io/test/other:1"}) {
		t.Errorf("images are %v", names)
	}
	// A bundle that is mended is imported; the fault is gone from the status.
	d.write("truncated", good)
	want["truncated"] = image.BundleImported
	d.bundleStates(want)
}

func TestBundlesComeAndGoWhileRunning(t *testing.T) {
	d := startContainerd(t)
	d.keep()
	d.waitReady()
	d.write("one", archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/shared", "k1s.io/test/only"))
	d.write("two", archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/shared"))
	d.bundleStates(map[string]image.BundleState{"one": image.BundleImported, "two": image.BundleImported})

	// A copy in progress is left alone until its writer is done.
	f, err := os.Create(filepath.Join(d.bundles(), "slow"))
	if err != nil {
		t.Fatal(err)
	}
	slow := archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/slow")
	if _, err := f.Write(slow[:1000]); err != nil {
		t.Fatal(err)
	}
	d.bundleStates(map[string]image.BundleState{"one": image.BundleImported, "two": image.BundleImported, "slow": image.BundleWaiting})
	if _, err := f.Write(slow[1000:]); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d.bundleStates(map[string]image.BundleState{"one": image.BundleImported, "two": image.BundleImported, "slow": image.BundleImported})

	d.remove("one")
	d.bundleStates(map[string]image.BundleState{"two": image.BundleImported, "slow": image.BundleImported})
	got := d.images()
	if l := got["k1s.io/test/only:1"]; l[labelPinned] != "" || l[labelBundle] != "" || l[labelManaged] == "" {
		t.Errorf("an image no bundle brings has labels %v", l)
	}
	if l := got["k1s.io/test/shared:1"]; l[labelPinned] != valuePinned || l[labelBundle] != "two" {
		t.Errorf("an image another bundle brings has labels %v", l)
	}

	// Images that are deleted behind our back come back.
	c := d.client()
	for _, name := range []string{image.BaseName, "k1s.io/test/slow:1"} {
		if err := c.ImageService().Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	d.until("deleted images to be back", func() error {
		got := d.images()
		if got[image.BaseName] == nil || got["k1s.io/test/slow:1"] == nil {
			return errors.New("not there")
		}
		return nil
	})
}

func TestARestartImportsOnlyWhatIsNotThere(t *testing.T) {
	d := startContainerd(t)
	d.write("one", archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/one"))
	d.write("two", archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/two"))
	stop := d.keep()
	d.waitReady()
	stop()
	before := d.updated()
	if err := d.client().ImageService().Delete(t.Context(), "k1s.io/test/two:1"); err != nil {
		t.Fatal(err)
	}
	d.keep()
	d.waitReady()
	after := d.updated()
	if !after["k1s.io/test/one:1"].Equal(before["k1s.io/test/one:1"]) {
		t.Error("an image that was there has been imported again")
	}
	if !after[image.BaseName].Equal(before[image.BaseName]) {
		t.Error("the base image has been made again")
	}
	if after["k1s.io/test/two:1"].IsZero() {
		t.Error("an image that was gone has not been imported")
	}
}

func (d *daemon) updated() map[string]time.Time {
	d.t.Helper()
	all, err := d.client().ImageService().List(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	out := map[string]time.Time{}
	for _, i := range all {
		out[i.Name] = i.UpdatedAt
	}
	return out
}

func TestContainerdMayRestartAndEvenLoseItsImages(t *testing.T) {
	d := startContainerd(t)
	d.write("one", archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/one"))
	d.keep()
	d.waitReady()
	d.stop()
	if err := os.RemoveAll(filepath.Join(d.dir, "root")); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.until("the images to be back", func() error {
		got := d.images()
		if got[image.BaseName] == nil || got["k1s.io/test/one:1"] == nil {
			return errors.New("not there")
		}
		return nil
	})
}

func TestTheVerbsPrintWhatTheyDid(t *testing.T) {
	d := startContainerd(t)
	d.write("x.tar", archiveOf(t, image.OCI, runtime.GOARCH, "k1s.io/test/x", "k1s.io/test/y"))
	d.write("bad.tar", []byte("bad"))
	var out bytes.Buffer
	err := run(t.Context(), []string{"import", "--socket=" + d.socket, filepath.Join(d.bundles(), "bad.tar"), filepath.Join(d.bundles(), "x.tar")}, iostreams.Streams{Out: &out})
	if err == nil || !strings.Contains(err.Error(), "bad.tar") {
		t.Errorf("error is %v", err)
	}
	if out.String() != "k1s.io/test/x:1\nk1s.io/test/y:1\n" {
		t.Errorf("printed %q", out.String())
	}
	stdin := archiveOf(t, image.Docker, runtime.GOARCH, "k1s.io/test/z")
	if err := run(t.Context(), []string{"import", "--socket=" + d.socket, "--pin=false", "-"}, iostreams.Streams{In: bytes.NewReader(stdin), Out: io.Discard}); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := run(t.Context(), []string{"ls", "--socket=" + d.socket, "-o", "json"}, iostreams.Streams{Out: &out}); err != nil {
		t.Fatal(err)
	}
	var list []listed
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 3 || !list[0].Pinned || list[2].Pinned || list[0].Size == 0 {
		t.Errorf("listed %+v", list)
	}
}

func TestMain(m *testing.M) {
	slog.SetLogLoggerLevel(slog.LevelWarn)
	os.Exit(m.Run())
}
