//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/test/images/testimage"
)

// EnvProgram names the k1s under test; without it that is the one `make build` leaves at the top.
const EnvProgram = "K1S_PROGRAM"

// bench is where the tests of one run happen. Nothing of it is outside of dir, except what k1s makes.
type bench struct {
	dir     string // everything is below it
	program string // the k1s under test
	suffix  string // of all cluster names, so that they are known to be ours

	mu    sync.Mutex
	given map[string]int // names of clusters; guarded by mu

	images sync.Once // guards the archives
	imgErr error

	sharedOnce sync.Once
	sharedErr  error
	shared     *Cluster
}

// the is the bench of this run: `go test` gives tests nothing else to share.
var the *bench

func newBench() (*bench, error) {
	program := os.Getenv(EnvProgram)
	if program == "" {
		program = "../../k1s"
	}
	program, err := filepath.Abs(program)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("there is no k1s to test: %w; run: make build", err)
	}
	// Short, because sockets below it have at most 108 bytes of path; and on a disk, not in memory.
	dir, err := os.MkdirTemp("/var/tmp", "k1s-sys-")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, program: program, suffix: "-t" + filepath.Base(dir)[len("k1s-sys-"):]}
	// The host's side of k1s has its payload where the clusters have theirs, so that it is unpacked once.
	for _, d := range []string{b.clusters() + "/state/.payload", dir + "/host", dir + "/images"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	return b, os.Symlink(b.clusters()+"/state/.payload", dir+"/host/payload")
}

func (b *bench) clusters() string   { return filepath.Join(b.dir, "c") }
func (b *bench) kubeconfig() string { return filepath.Join(b.dir, "kubeconfig") }

// environ keeps k1s on this machine away from everything that is not the bench's.
func (b *bench) environ() []string {
	return append(outside(),
		"K1S_CLUSTERS_DIR="+b.clusters(), "KUBECONFIG="+b.kubeconfig(), "HOME="+b.dir,
		"K1S_DATA_DIR="+b.dir+"/host", "K1S_RUN_DIR="+b.dir+"/host/run", "K1S_CONFIG_DIR="+b.dir+"/host/etc",
	)
}

// outside is the environment of this process without what would be settings of k1s.
func outside() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "K1S_") })
}

// marks are what shows that something belongs to this run: it is in the name or path of everything.
func (b *bench) marks() []string { return []string{b.dir, b.suffix} }

// close removes what the tests have in common.
func (b *bench) close(ctx context.Context) error {
	var err error
	if b.shared != nil {
		err = b.shared.remove(ctx)
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// name makes a name that is known to be ours.
func (b *bench) name(base string) string { return base + b.suffix }

// another makes the name of a cluster, which no other test of this run has: they run side by side.
func (b *bench) another(base string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.given == nil {
		b.given = map[string]int{}
	}
	b.given[base]++
	if n := b.given[base]; n > 1 {
		base += strconv.Itoa(n)
	}
	return b.name(base)
}

// archives builds the images of the tests, once.
func (b *bench) archives(t *testing.T) (busybox, app string) {
	t.Helper()
	busybox, app = filepath.Join(b.dir, "images/busybox.tar"), filepath.Join(b.dir, "images/app.tar")
	b.images.Do(func() {
		ctx := context.Background() // not of the test that happens to be the first
		b.imgErr = errors.Join(
			testimage.WriteBusybox(ctx, busybox, testimage.DefaultBusybox, testimage.Arch()),
			testimage.WriteApp(ctx, app, testimage.Arch()))
	})
	if b.imgErr != nil {
		t.Fatalf("building the images of the tests: %v", b.imgErr)
	}
	return busybox, app
}

// root skips the test where tests with root are not asked for.
func root(t *testing.T) {
	t.Helper()
	testenv.Root(t)
	if the == nil {
		t.Fatal("there is no bench")
	}
}

// freePort is a port of 127.0.0.1 nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// nodePort is where the shared cluster publishes workloads: its port in the cluster, see services and load.
const (
	frontNodePort   = 30080
	rollingNodePort = 30081
)

// shared is the cluster all workload tests use, each in namespaces of its own.
func shared(t *testing.T) *Cluster {
	t.Helper()
	root(t)
	busybox, app := the.archives(t)
	the.sharedOnce.Do(func() {
		c := newCluster("work")
		c.ports = map[int]int{frontNodePort: freePort(t), rollingNodePort: freePort(t)}
		the.shared = c
		args := []string{"--image-bundle", busybox, "--image-bundle", app}
		for node, host := range c.ports {
			args = append(args, "--publish", fmt.Sprintf("%d:%d", host, node))
		}
		r := c.create(context.Background(), args...)
		the.sharedErr = r.error()
	})
	if the.sharedErr != nil {
		the.shared.dump(t)
		t.Fatalf("creating the cluster of the workload tests: %v", the.sharedErr)
	}
	the.shared.showOnFailure(t)
	return the.shared
}

// short is a name that fits everywhere, from a test's.
func short(t *testing.T) string {
	s := strings.ToLower(strings.NewReplacer("Test", "", "/", "-", "_", "-").Replace(t.Name()))
	return s[:min(len(s), 40)]
}
