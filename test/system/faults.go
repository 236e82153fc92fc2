//go:build system

package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/etcdcare"
)

// survivor is an application that has to outlive what is done to its node.
type survivor struct{ space }

// survives starts it and stores something.
func survives(t *testing.T, c *Cluster) survivor {
	t.Helper()
	s := survivor{c.namespace(t, "survivor")}
	s.apply(t, "survivor.yaml")
	s.rolledOut(t, "deployment/web", "statefulset/store")
	s.client(t)
	s.sh(t, "client", "/bin/wget -q -T 5 -O - --post-data 'kept' 'http://"+s.storeIP(t)+":8080/file?path=/data/word'")
	s.works(t)
	return s
}

func (s survivor) storeIP(t *testing.T) string {
	t.Helper()
	return s.kubectl(t, "get", "pod", "store-0", "-o", "jsonpath={.status.podIP}")
}

// works checks that it answers from outside and inside, by name, and has its data and its settings.
func (s survivor) works(t *testing.T) {
	t.Helper()
	s.rolledOut(t, "deployment/web", "statefulset/store")
	s.ready(t, "client")
	s.untilOutput(t, limit, "the service to answer by its name", contains(" blue"), "exec", "client", "--", "wget", "-q", "-T", "5", "-O", "-", "http://web.survivor/")
	// The address is asked for each time: for a moment after a start the API tells what the kubelet said last.
	eventually(t, limit, "the store to give back its word", func(ctx context.Context) error {
		ip := s.try(ctx, "get", "pod", "store-0", "-o", "jsonpath={.status.podIP}")
		if err := ip.error(); err != nil {
			return err
		}
		word := s.try(ctx, "exec", "client", "--", "/bin/wget", "-q", "-T", "5", "-O", "-", "http://"+strings.TrimSpace(ip.out)+":8080/file?path=/data/word")
		if err := word.error(); err != nil {
			return err
		}
		if out := strings.TrimSpace(word.out); out != "kept" {
			t.Errorf("the volume has %q", out)
		}
		return nil
	})
	if port, ok := s.ports[frontNodePort]; ok {
		eventually(t, limit, "the published port to answer", func(ctx context.Context) error {
			code, body, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d/", port))
			if err == nil && (code != http.StatusOK || !strings.HasSuffix(body, " blue")) {
				err = fmt.Errorf("answer %d %q", code, body)
			}
			return err
		})
	}
}

// containers tells of every container who it is, since when it runs and how often it was started again.
func (c *Cluster) containers(t *testing.T) string {
	t.Helper()
	return c.kubectl(t, "get", "pods", "-A", "--sort-by=.metadata.uid", "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{range .status.containerStatuses[*]} {.containerID} {.state.running.startedAt} {.restartCount}{end}{"\n"}{end}`)
}

// processesOf are those that run the components.
func processesOf(s control.Status) map[string]process {
	out := map[string]process{}
	for name, pid := range pids(s) {
		out[name] = processOf(pid)
	}
	return out
}

// pids are the process of each component.
func pids(s control.Status) map[string]int {
	out := map[string]int{}
	for _, c := range s.Components {
		out[c.Name] = c.PID
	}
	return out
}

// kill ends a process the hard way. One that was there before these tests is not of theirs: a number from another PID namespace,
// for example.
func kill(t *testing.T, pid int) {
	t.Helper()
	if p, self := processOf(pid), processOf(os.Getpid()); pid <= 1 || p.started != "" && p.ticks() < self.ticks() {
		t.Fatalf("process %d was there before", pid)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatalf("killing %d: %v", pid, err)
	}
}

// process is one process and no other: pids are used again, and soon where tests side by side start thousands of processes.
// /proc even answers for what has become a thread's.
type process struct {
	pid     int
	started string // clock ticks after boot, field 22 of /proc/<pid>/stat; "" for none
}

// processOf is the process that has the pid now. One that is dead and not collected is none.
func processOf(pid int) process {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{pid: pid}
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3 on
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return process{pid: pid}
	}
	return process{pid, fields[19]}
}

// ticks is when it started, 0 for none.
func (p process) ticks() uint64 {
	n, _ := strconv.ParseUint(p.started, 10, 64) // the kernel writes a number
	return n
}

// alive tells whether it still runs.
func (p process) alive() bool { return p.started != "" && processOf(p.pid) == p }

// processes are all of the cluster's, pods included: those in its cgroups, in any hierarchy.
func (c *Cluster) processes(t *testing.T) []int {
	t.Helper()
	return c.processesOf(t, "")
}

// processesOf are those of one of its nodes, or of all for "".
func (c *Cluster) processesOf(t *testing.T, node string) []int {
	t.Helper()
	seen := map[int]bool{}
	var roots []string
	// In every hierarchy, or the only one; below what is named after a directory of clusters that is not the usual one.
	for _, pattern := range []string{"/sys/fs/cgroup/*/k1s/*/", "/sys/fs/cgroup/*/k1s/", "/sys/fs/cgroup/k1s/*/", "/sys/fs/cgroup/k1s/"} {
		found, err := filepath.Glob(filepath.Join(pattern, c.name, node))
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, found...)
	}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) || err == nil && d.Name() != "cgroup.procs" {
				return nil
			}
			if err != nil {
				return err
			}
			b, err := os.ReadFile(path)
			for f := range strings.FieldsSeq(string(b)) {
				if pid, perr := strconv.Atoi(f); perr == nil && pid > 0 {
					seen[pid] = true
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var out []int
	for pid := range seen {
		out = append(out, pid)
	}
	return out
}

// podProcess is a process inside of a pod's container, as the machine sees it.
func (s space) podProcess(t *testing.T, pod string) process {
	t.Helper()
	id := s.kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	_, id, _ = strings.Cut(id, "://")
	r := s.in(within(t, limit), "k1s", "crictl", "inspect", "-o", "json", id)
	found := regexp.MustCompile(`"pid": *(\d+)`).FindStringSubmatch(r.out)
	if found == nil {
		t.Fatalf("the process of pod %s: %v", pod, r)
	}
	pid, err := strconv.Atoi(found[1])
	p := processOf(pid)
	if err != nil || !p.alive() {
		t.Fatalf("the process %d of pod %s does not run: %v", pid, pod, err)
	}
	return p
}

// net runs `k1s cluster net`.
func (c *Cluster) net(t *testing.T, args ...string) {
	t.Helper()
	if err := c.k1s(within(t, limit), append([]string{"cluster", "net", "--cluster", c.name}, args...)...).error(); err != nil {
		t.Fatal(err)
	}
}

// client of the node's daemon.
func (m member) client() *control.Client {
	return control.NewClient(strings.Replace(m.where().ControlSocket, m.where().Name, m.node, 1))
}

// etcdMembers are the members of etcd, as one of the servers knows them.
func etcdMembers(t *testing.T, servers []member) []etcdcare.Member {
	t.Helper()
	var out []etcdcare.Member
	eventually(t, limit, "a server to tell of etcd's members", func(ctx context.Context) error {
		var all []error
		for _, s := range servers {
			e, err := s.client().Etcd(ctx)
			if err == nil && e.Problem == "" && slices.ContainsFunc(e.Members, func(m etcdcare.Member) bool { return m.Leader }) {
				out = e.Members
				return nil
			}
			all = append(all, fmt.Errorf("%s: %v %s %v", s.node, err, e.Problem, e.Members))
		}
		return errors.Join(all...)
	})
	return out
}

// leader is the server whose member of etcd leads, and the others.
func leader(t *testing.T, servers []member) (lead member, others []member) {
	t.Helper()
	for _, m := range etcdMembers(t, servers) {
		for i, s := range servers {
			if m.Leader && etcdcare.NodeOf(m.Name) == s.node {
				return s, slices.Delete(slices.Clone(servers), i, i+1)
			}
		}
	}
	t.Fatal("none of the servers leads")
	return member{}, nil
}
