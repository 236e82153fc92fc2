//go:build system

package system

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/netns"
	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/test/images/testimage"
)

// clusterFile is what TestALocalClusterIsAsItsFileSays makes; paths are relative to the file.
const clusterFile = `apiVersion: k1s.io/v1alpha1
kind: Cluster
name: %s
image: k1s-other
agents:
  count: 1
  spec:
    kubelet: {maxPods: 77}
publish:
  - 8080:30080
  - 5353:30053/udp
  - 192.0.2.2:9090:9090@agent-0
volumes:
  - shown:/shown
  - storage:/var/lib/k1s/storage@agent-0
labels: [disk=fast@agent-0, made=here]
taints: ["k1s.test/for=nobody:PreferNoSchedule@servers"]
env: ["GREETING=hello@agents"]
registries: registries.yaml
registry: ["https://localhost:5000"]
`

// localWorld is a host with a registry, and a directory with what a cluster file names.
type localWorld struct {
	*host
	file     string
	registry *registry
}

func newLocalWorld(t *testing.T, name string) localWorld {
	t.Helper()
	w := localWorld{host: newHost(t, "")}
	w.run(t, "ip address add 192.0.2.2/32 dev lo")
	w.registry = startRegistry(t, w.network, cluster.HostName)
	w.registry.push(t, "by/registry")
	w.file = filepath.Join(w.dir, "cluster.yaml")
	for _, d := range []string{"shown", "storage"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(the.program)
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{
		"cluster.yaml":   fmt.Appendf(nil, clusterFile, name),
		"shown/greeting": []byte("hello"),
		"ca.crt":         w.registry.ca,
		"registries.yaml": fmt.Appendf(nil, "configs:\n  localhost:5000:\n    auth: {username: %s, password: %s}\n    tls: {ca_file: %s/ca.crt}\n",
			registryUser, registryPassword, w.dir),
		"k1s-other": program,
	} {
		if err := os.WriteFile(filepath.Join(w.dir, file), content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// answers waits for a URL, asked on the host, and checks what it says.
func (w localWorld) answers(t *testing.T, url, want string) {
	t.Helper()
	eventually(t, limit, url+" to answer "+want, func(ctx context.Context) error {
		code, out, err := w.get(ctx, url)
		if err != nil || code != http.StatusOK || !strings.HasPrefix(out, want) {
			return fmt.Errorf("it answers %d %q, %v", code, out, err)
		}
		return nil
	})
}

// dns asks the cluster's DNS through a published UDP port.
func (w localWorld) dns(t *testing.T, address string) {
	t.Helper()
	query, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("kubernetes.default.svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, limit, "DNS at "+address, func(ctx context.Context) error {
		c, err := w.dial(ctx, "udp4", address)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Write(query); err != nil {
			return err
		}
		b := make([]byte, 1500)
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if err := m.Unpack(b[:n]); err != nil || len(m.Answers) != 1 {
			return fmt.Errorf("it says %+v, %v", m, err)
		}
		return nil
	})
}

func TestALocalClusterIsAsItsFileSays(t *testing.T) {
	t.Parallel()
	root(t)
	c := newCluster("local")
	w := newLocalWorld(t, c.name)
	c = createdOn(t, w.host, "local", "--config", w.file, "--no-switch")
	s := c.namespace(t, "local")
	s.apply(t, "local.yaml")
	if err := c.try(within(t, limit), "apply", "-f", manifestFile(t, "localdns.yaml")).error(); err != nil {
		t.Fatal(err)
	}
	agents := []member{{c, "agent-0"}, {c, "agent-1"}}
	do := func(verb ...string) result {
		return c.k1s(within(t, limit), append([]string{"cluster"}, verb...)...)
	}

	inTurn(t, "nodes are as they were asked for", func(t *testing.T) {
		if out := c.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.disk}{.metadata.labels.made} {.status.capacity.pods} {.spec.taints[?(@.key=="k1s.test/for")].effect};{end}`); strings.TrimSpace(out) != "agent-0 fasthere 77 ;server-0 here 110 PreferNoSchedule;" {
			t.Errorf("nodes: %s", out)
		}
		var here unix.Stat_t
		if err := unix.Stat(filepath.Join(w.dir, "k1s-other"), &here); err != nil {
			t.Fatal(err)
		}
		agents[0].in(within(t, limit), "sh", "-c", fmt.Sprintf("[ $(stat -c %%i /opt/k1s/k1s) = %d ] && [ $GREETING = hello ]", here.Ino)).wants(t, 0)
		for _, format := range []string{"json", "wide"} {
			if r := do("ls", "-o", format); !strings.Contains(r.out, "k1s-other") || !strings.Contains(r.out, "agent-0") || strings.Contains(r.out, registryPassword) {
				t.Errorf("ls -o %s: %v", format, r)
			}
		}
	})
	inTurn(t, "an agent is added that is like the others", func(t *testing.T) {
		do("node", "add", c.name, "--label", "late=yes", patience).wants(t, 0, "node agent-1 is there")
		if out := c.kubectl(t, "get", "node", "agent-1", "-o", `jsonpath={.metadata.labels.late}{.metadata.labels.made}{.metadata.labels.disk} {.status.capacity.pods}`); out != "yeshere 77" {
			t.Errorf("agent-1: %s", out)
		}
	})
	inTurn(t, "ports, registry and volumes work on every node", func(t *testing.T) {
		s.rolledOut(t, "daemonset/shown")
		s.ready(t, "writer")
		w.answers(t, "http://127.0.0.1:8080/", "hello from ")
		w.answers(t, "http://192.0.2.2:9090/", "hello from agent-0")
		w.dns(t, "127.0.0.1:5353")
		for _, file := range []string{"shown/server-0", "shown/agent-0", "shown/agent-1", "storage/*/file"} {
			if found, err := filepath.Glob(filepath.Join(w.dir, file)); err != nil || len(found) != 1 {
				t.Errorf("%s of this machine: %v, %v", file, found, err)
			}
		}
		if _, _, err := w.get(t.Context(), "http://192.0.2.2:8080/"); err == nil {
			t.Error("a port without an address appears at others than 127.0.0.1")
		}
	})
	inTurn(t, "images are loaded into the nodes chosen, once on the disk", func(t *testing.T) {
		oci := filepath.Join(w.dir, "oci.tar")
		if err := os.WriteFile(oci, ownArchive(t, "k1s.io/test/loaded-oci:1", image.OCI), 0o600); err != nil {
			t.Fatal(err)
		}
		do("image", "load", c.name, oci).wants(t, 0, "node server-0 has k1s.io/test/loaded-oci:1", "node agent-1 has k1s.io/test/loaded-oci:1")
		c.k1sWith(within(t, limit), string(ownArchive(t, "k1s.io/test/loaded-docker:1", image.Docker)), "cluster", "image", "load", c.name, "-", "--nodes", "agent-1").
			wants(t, 0, "node agent-1 has k1s.io/test/loaded-docker:1")
		var st unix.Stat_t
		stored, err := filepath.Glob(filepath.Join(c.clusters(), "state", c.name, "images", "oci-*.tar"))
		if err != nil || len(stored) != 1 || unix.Stat(stored[0], &st) != nil || st.Nlink != 4 {
			t.Errorf("stored: %v, %v, with %d names", stored, err, st.Nlink)
		}
		for pod, at := range map[string]string{"oci": "agent-0", "docker": "agent-1"} {
			s.kubectl(t, "run", pod, "--image=k1s.io/test/loaded-"+pod+":1", "--image-pull-policy=Never", "--restart=Never",
				"--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q}}`, at), "--", "echo", "it works")
			if r := s.try(within(t, limit), "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+pod, "--timeout=4m"); r.failure != nil {
				t.Errorf("%v\n%s", r, s.kubectl(t, "describe", "pod", pod))
			}
		}
		broken := filepath.Join(w.dir, "broken.tar")
		if err := os.WriteFile(broken, []byte("no archive"), 0o600); err != nil {
			t.Fatal(err)
		}
		do("image", "load", c.name, broken).wants(t, 2, "is no image archive", "hint:")
	})
	inTurn(t, "what is in the way of another cluster is told before anything is made", func(t *testing.T) {
		r := do("create", "other", "-p", "8080:80", "-p", "192.0.2.2:9090:80", "-v", filepath.Join(w.dir, "nothing")+":/x")
		r.wants(t, 2, "127.0.0.1:8080 (tcp)", "192.0.2.2:9090 (tcp)", "nothing")
		do("create", c.name).wants(t, 1, "there is a cluster", "hint:")
		if r := do("ls"); strings.Contains(r.out, "other") {
			t.Errorf("it was made: %v", r)
		}
	})
	inTurn(t, "a killed node comes back, and the cluster after a stop with another port and other addresses", func(t *testing.T) {
		c.kubectl(t, "create", "configmap", "kept", "--from-literal=word=swordfish")
		agents[0].nodeCommand(t, "kill").wants(t, 0, "agent-0 is killed")
		if r := do("node", "ls", c.name); strings.Count(r.out, "running") != 2 {
			t.Errorf("after the kill: %v", r)
		}
		if err := do("stop", c.name).error(); err != nil {
			t.Fatal(err)
		}
		port := c.apiPort(t)
		w.listen(t, fmt.Sprintf("127.0.0.1:%d", port))
		if err := errors.Join(do("start", c.name, "--subnet", "10.99.0.0/24", patience).error(), c.find(t.Context())); err != nil {
			t.Fatal(err)
		}
		if out := c.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.status.addresses[?(@.type=="InternalIP")].address} {end}`); strings.TrimSpace(out) != "10.99.0.30 10.99.0.31 10.99.0.10" {
			t.Errorf("addresses: %s", out)
		}
		if now := c.apiPort(t); now == port {
			t.Errorf("the API is still at port %d, which somebody else has", port)
		}
		if out := c.kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.word}"); out != "swordfish" {
			t.Errorf("the data became %q", out)
		}
		s.rolledOut(t, "daemonset/shown")
		s.ready(t, "writer")
		w.answers(t, "http://192.0.2.2:9090/", "hello from agent-0")
		file := filepath.Join(w.dir, "merged")
		do("kubeconfig", "merge", c.name, "--file", file).wants(t, 0, "written")
		if r := c.try(within(t, limit), "--kubeconfig", file, "get", "nodes", "-o", "name"); strings.Count(r.out, "node/") != 3 {
			t.Errorf("with the kubeconfig that was merged: %v", r)
		}
	})
	inTurn(t, "logs are exported without secrets", func(t *testing.T) {
		dir := filepath.Join(w.dir, "logs")
		r := do("logs", "export", c.name, dir)
		r.wants(t, 0, "are in "+dir)
		for _, file := range []string{
			"cluster.json", "switch.log", "server-0/daemon.log", "agent-1/daemon.log", "server-0/status.json", "agent-0/images.json",
			"agent-0/etc/registries.yaml", "agent-0/firewall.txt", "cluster/nodes.yaml", "cluster/events.txt", "cluster/pods.txt", "server-0/*.log", "agent-0/pods/*/*/*.log",
		} {
			found, err := filepath.Glob(filepath.Join(dir, file))
			if err != nil || len(found) == 0 {
				t.Errorf("%s is not there: %v; %v", file, err, r)
			}
		}
		token, err := os.ReadFile(agents[0].disk("etc/token"))
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(strings.TrimSpace(string(token)), ".")
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			for _, secret := range []string{registryPassword, "PRIVATE KEY-----", "client-key-data: ", parts[len(parts)-2]} {
				if strings.Contains(string(b), secret) {
					t.Errorf("%s tells %q", path, secret)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	c.setGone()
	if err := c.remove(within(t, limit)); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"shown/greeting", "shown/agent-0", "storage", "k1s-other"} {
		if _, err := os.Stat(filepath.Join(w.dir, file)); err != nil {
			t.Errorf("after the deletion: %v", err)
		}
	}
}

// ownArchive is an image that is no other's: an image whose content the kubelet has pulled under one name it does not
// take for present under another one that was not pulled.
func ownArchive(t *testing.T, name string, format image.Format) []byte {
	t.Helper()
	spec, err := testimage.BusyboxSpec(t.Context(), testimage.DefaultBusybox, testimage.Arch())
	if err != nil {
		t.Fatal(err)
	}
	spec.Names, spec.Config.Labels = []string{name}, map[string]string{"k1s.test/own": name}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := testimage.WriteFile(file, format, spec); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func manifestFile(t *testing.T, name string) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("manifests", name))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// apiPort is where the cluster's API is on its host.
func (c *Cluster) apiPort(t *testing.T) uint16 {
	t.Helper()
	var all []cluster.Status
	r := c.k1s(within(t, limit), "cluster", "ls", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &all); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	for _, s := range all {
		if s.Spec.Name == c.name {
			return s.Spec.APIPort
		}
	}
	t.Fatalf("%s is not there: %v", c.name, r)
	return 0
}

// Whoever creates a cluster is killed when it says that it does something.
func TestACreationThatWasKilledIsDeletedWithoutATrace(t *testing.T) {
	t.Parallel()
	root(t)
	p := netns.New(netns.Below(the.clusters()))
	for i, when := range []string{"creating the network", "starting node server-0", "waiting for node server-0"} {
		name := the.name(fmt.Sprintf("killed%d", i))
		t.Cleanup(func() {
			if err := p.Delete(context.Background(), name, ""); err != nil {
				t.Error(err)
			}
		})
		cmd := exec.Command(the.program, "cluster", "create", name)
		cmd.Env = the.environ()
		out, err := cmd.StderrPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		said := ""
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if said = lines.Text(); strings.HasPrefix(said, when) {
				break
			}
		}
		if err := errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait())); err != nil || !strings.HasPrefix(said, when) {
			t.Fatalf("%s: it said %q: %v", when, said, err)
		}
		if err := k1s(within(t, limit), "cluster", "delete", name, "--yes").error(); err != nil {
			t.Fatal(err)
		}
		left, err := p.Leftovers(t.Context(), name)
		if err != nil || len(left) > 0 {
			t.Errorf("killed while %s: left are %q, %v", when, left, err)
		}
	}
}

// ignoreExit is for processes that were killed.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}
