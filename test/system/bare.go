//go:build system

package system

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/unitlog"
)

// bare is a machine with nothing on it for `k1s server` to start on, or to refuse to: network, mount, host
// name and process namespaces of one command, with an address, without a way out, and with k1s' directories
// in a directory of the test. It ends with the command, whatever that started. Servers on it are no workers,
// because a kubelet would change settings of the real machine.
type bare struct {
	dir     string
	program string
	// ownPayload: the programs are unpacked into the data directory instead of being shared by all tests.
	ownPayload bool
	// prepare is a shell script that runs first, inside; $DIR is dir.
	prepare string
	// pid is the process, as this machine sees it, of the server that was started last.
	pid int
}

const bareAddress = "10.88.0.10"

func newBare(t *testing.T) *bare {
	t.Helper()
	root(t)
	b := &bare{dir: filepath.Join(the.dir, "bare-"+short(t)), program: the.program}
	for _, d := range []string{b.data(), b.dir + "/etc"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		b.prepare = ""
		if err := b.k1s(ctx, "reset", "--yes").error(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(b.dir); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bare) data() string { return b.dir + "/data" }

func (b *bare) environ() []string {
	return append(outside(), "DIR="+b.dir, "SHARED="+the.dir+"/payload", "HOME="+b.dir,
		"K1S_DATA_DIR="+b.data(), "K1S_RUN_DIR="+b.dir+"/run", "K1S_CONFIG_DIR="+b.dir+"/etc", "K1S_KUBELET_DIR="+b.dir+"/kubelet",
		"K1S_CGROUP_ROOT=/"+filepath.Base(b.dir)+the.suffix, "K1S_NODE_IP="+bareAddress, "K1S_NODE_NAME=bare",
	)
}

// script makes the machine and becomes the command. A bridge without ports stands in for a network card.
const script = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /var/log
ip link set lo up
ip link add eth0 type bridge
ip address add ` + bareAddress + `/24 dev eth0
ip link set eth0 up
%s
exec "$@"
`

// sharePayload spares a test the unpacking.
const sharePayload = "mkdir -p $SHARED $DIR/data/payload; mount --bind $SHARED $DIR/data/payload\n"

func (b *bare) command(ctx context.Context, args ...string) *exec.Cmd {
	prepare := b.prepare
	if !b.ownPayload {
		prepare = sharePayload + prepare
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", fmt.Sprintf(script, prepare), "sh", b.program}, args...)...)
	cmd.Env = b.environ()
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	return cmd
}

// k1s runs a command on the machine to its end.
func (b *bare) k1s(ctx context.Context, args ...string) result {
	cmd := b.command(ctx, args...)
	return end(ctx, cmd)
}

// fails starts a server that must end by itself.
func (b *bare) fails(t *testing.T, args ...string) result {
	t.Helper()
	return b.k1s(within(t, limit), append([]string{"server", "--no-worker"}, args...)...)
}

// server starts a server, which runs until the returned function is called; that returns what it logged.
func (b *bare) server(t *testing.T, args ...string) (stop func() string) {
	t.Helper()
	var log bytes.Buffer
	cmd := b.command(context.Background(), append([]string{"server", "--no-worker"}, args...)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as in end
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	b.pid = cmd.Process.Pid
	done := false
	stop = func() string {
		if done {
			return log.String()
		}
		done = true
		_ = cmd.Process.Signal(unix.SIGTERM) // it may have ended by itself
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the server ended with %v", err)
			}
		case <-time.After(limit):
			_ = cmd.Process.Kill()
			t.Errorf("the server did not end within a minute: %v", <-ended)
		}
		return log.String()
	}
	t.Cleanup(func() {
		if out := stop(); t.Failed() {
			t.Logf("the server logged:\n%s", lastLines(out, 60))
			logs, _ := filepath.Glob(b.data() + "/log/*.log") // the pattern is well-formed
			for _, f := range logs {
				lines, err := unitlog.Tail(f, 60)
				t.Logf("end of %s: %v\n%s", f, err, strings.Join(lines, "\n"))
			}
		}
	})
	return stop
}

func (b *bare) status(ctx context.Context) (control.Status, error) {
	return control.NewClient(b.dir + "/run/k1s.sock").Status(ctx)
}

// runs waits until the server runs.
func (b *bare) runs(t *testing.T) control.Status {
	t.Helper()
	var st control.Status
	eventually(t, limit, "the server to be running", func(ctx context.Context) (err error) {
		st, err = b.status(ctx)
		if err == nil && st.State != control.Running {
			err = fmt.Errorf("it is %s %s: %s", st.State, st.Doing, notReady(st))
		}
		return err
	})
	return st
}

// api is a client of the server that runs, as its administrator.
func (b *bare) api(t *testing.T) *api {
	t.Helper()
	return administratorOf(t, b.dir+"/etc/admin.kubeconfig", networkOf(t, b.pid))
}

// configured writes the configuration file.
func (b *bare) configured(t *testing.T, spec string) {
	t.Helper()
	content := "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
	if err := os.WriteFile(b.dir+"/etc/config.yaml", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// files are the names and sizes of everything in the data directory but the lock.
func (b *bare) files(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(b.data(), func(path string, st os.FileInfo, err error) error {
		if err == nil && !st.IsDir() && filepath.Base(path) != "daemon.lock" {
			fmt.Fprintln(&out, strings.TrimPrefix(path, b.data()), st.Size())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
