//go:build system

package system

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestKubectlLogsFollowsAPod(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "logs")
	s.kubectl(t, "run", "counter", "--image=k1s.io/test/busybox:1", "--restart=Never", "--",
		"sh", "-c", "for i in 1 2 3; do echo line $i; sleep 1; done")
	s.untilOutput(t, limit, "the pod to have started", func(out string) bool { return out == "Running" || out == "Succeeded" },
		"get", "pod", "counter", "-o", "jsonpath={.status.phase}")
	// Following ends with the pod.
	if out := s.kubectl(t, "logs", "-f", "counter"); out != "line 1\nline 2\nline 3\n" {
		t.Errorf("followed: %q", out)
	}
	if out := s.kubectl(t, "logs", "--tail=1", "counter"); out != "line 3\n" {
		t.Errorf("the last line: %q", out)
	}
}

// Many clients watch without a LIST before, the Python client's Watch among them.
func TestAWatchThatNamesNoRevisionBeginsWithWhatIsThere(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "watch")
	s.kubectl(t, "create", "configmap", "there")
	for range 2 {
		s.kubectl(t, "create", "serviceaccount", "of-another-kind") // the database goes on, the kind that is watched does not
		s.kubectl(t, "delete", "serviceaccount", "of-another-kind")
		events := s.kubectl(t, "get", "--raw", "/api/v1/namespaces/"+s.ns+"/configmaps?watch=1&timeoutSeconds=5&fieldSelector=metadata.name%3Dthere")
		var first struct {
			Type   string
			Object struct {
				Message  string
				Metadata struct{ Name string }
			}
		}
		if err := json.NewDecoder(strings.NewReader(events)).Decode(&first); err != nil || first.Type != "ADDED" || first.Object.Metadata.Name != "there" {
			t.Errorf("the watch begins with %+v, %v", first, err)
		}
	}
}

func TestKubectlExecPassesInputAndExitCode(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "exec")
	s.client(t)
	r := command(within(t, limit), the.environ(), "to be shouted",
		the.program, "cluster", "kubectl", s.name, "--", "-n", s.ns, "exec", "-i", "client", "--", "tr", "a-z", "A-Z")
	if r.out != "TO BE SHOUTED" {
		t.Errorf("%v", r)
	}
	if r := s.try(within(t, limit), "exec", "client", "--", "sh", "-c", "exit 7"); r.code != 7 {
		t.Errorf("exit code %d, want 7: %v", r.code, r)
	}
}

func TestKubectlAttachTalksToAContainer(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "attach")
	s.apply(t, "echo.yaml")
	s.ready(t, "echo")
	in, out := converse(t, s, "attach", "-i", "echo")
	if _, err := io.WriteString(in, "hello\n"); err != nil {
		t.Fatal(err)
	}
	for out.Scan() {
		if out.Text() == "you said hello" {
			return
		}
	}
	t.Fatalf("the answer did not come: %v", out.Err())
}

func TestKubectlPortForwardReachesAPod(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "forward")
	s.apply(t, "web.yaml")
	s.rolledOut(t, "deployment/web")
	_, out := converse(t, s, "port-forward", "--address=127.0.0.1", "service/web", ":80")
	port := 0
	for port == 0 && out.Scan() {
		_, err := fmt.Sscanf(out.Text(), "Forwarding from 127.0.0.1:%d", &port)
		if err != nil {
			t.Logf("port-forward says %q", out.Text())
		}
	}
	for range 3 {
		code, body, err := get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil || code != http.StatusOK || !strings.HasPrefix(body, "web-") {
			t.Errorf("answer %d %q %v", code, body, err)
		}
	}
}

func TestKubectlCpCopiesBothWays(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "cp")
	s.client(t)
	dir := t.TempDir()
	want := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte(want), 0o640); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "cp", filepath.Join(dir, "there"), "client:/tmp/copy")
	s.kubectl(t, "cp", "client:/tmp/copy", filepath.Join(dir, "back"))
	got, err := os.ReadFile(filepath.Join(dir, "back"))
	if err != nil || string(got) != want {
		t.Errorf("%d bytes came back, want %d: %v", len(got), len(want), err)
	}
}

func TestKubectlTopShowsNodesAndPods(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "top")
	s.client(t)
	s.untilOutput(t, limit, "metrics of the node", contains("server-0"), "top", "nodes", "--no-headers")
	s.untilOutput(t, limit, "metrics of the pod", contains("client"), "top", "pods", "--no-headers")
}

// converse starts kubectl and leaves it running until the test ends; what it writes is read line by line.
func converse(t *testing.T, s space, args ...string) (io.Writer, *bufio.Scanner) {
	t.Helper()
	// k1s passes an interrupt on to kubectl.
	return converseWith(t, the.environ(), append([]string{"cluster", "kubectl", s.name, "--", "-n", s.ns}, args...)...)
}

// converseWith is converse with k1s itself, which is interrupted when the test ends.
func converseWith(t *testing.T, env []string, args ...string) (io.Writer, *bufio.Scanner) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	cmd := exec.CommandContext(ctx, the.program, args...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // interrupted
	})
	return in, bufio.NewScanner(out)
}
