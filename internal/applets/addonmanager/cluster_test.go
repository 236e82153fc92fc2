package addonmanager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"k1s.io/k1s/internal/addons"
	"k1s.io/k1s/internal/applets/apiservertest"
)

// fixture is a manager that runs over two directories.
type fixture struct {
	*testing.T
	o       options
	config  *rest.Config
	cluster *cluster
	stop    func()
}

func newFixture(t *testing.T) *fixture {
	config := apiservertest.Start(t)
	dir := t.TempDir()
	f := &fixture{T: t, config: config, o: options{
		packaged: filepath.Join(dir, "packaged"), manifests: filepath.Join(dir, "manifests"), statusFile: filepath.Join(dir, "status.json"),
	}}
	for _, d := range []string{f.o.packaged, f.o.manifests} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if f.cluster, err = newCluster(config); err != nil {
		t.Fatal(err)
	}
	return f
}

// begin starts the manager; end waits until it has ended.
func (f *fixture) begin() {
	f.Helper()
	c, err := newCluster(f.config)
	if err != nil {
		f.Fatal(err)
	}
	if err := os.RemoveAll(f.o.statusFile); err != nil { // as Run does
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(testWriter{f.T}, nil))
	go func() { done <- newManager(f.o, c, log).run(ctx) }()
	stopped := false
	f.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			f.Error(err)
		}
	}
	f.Cleanup(f.stop)
}

type testWriter struct{ *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (f *fixture) write(dir, name, text string) {
	f.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) remove(dir, name string) {
	f.Helper()
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
		f.Fatal(err)
	}
}

// status waits until a stack is as it should be.
func (f *fixture) status(name, what string, ok func(stackReport) bool) {
	f.Helper()
	apiservertest.Until(f.T, name+" to be "+what, func(context.Context) error {
		b, err := os.ReadFile(f.o.statusFile)
		if err != nil {
			return err
		}
		var r report
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		i := slices.IndexFunc(r.Stacks, func(s stackReport) bool { return s.Name == name })
		if i < 0 {
			if ok(stackReport{}) {
				return nil
			}
			return errors.New("it is not in the status")
		}
		if !ok(r.Stacks[i]) {
			return fmt.Errorf("it is %+v", r.Stacks[i])
		}
		return nil
	})
}

func (f *fixture) applied(name string) {
	f.Helper()
	f.status(name, "applied", func(s stackReport) bool { return s.State == stateApplied || s.State == stateWaiting })
}

func (f *fixture) get(kind, namespace, name string) *unstructured.Unstructured {
	f.Helper()
	group := map[string]string{"Deployment": "apps", "CustomResourceDefinition": "apiextensions.k8s.io", "Toy": "example.com"}[kind]
	u, err := f.cluster.look(f.Context(), applied{ref: ref{group, kind, namespace, name}, Version: "v1"})
	if err != nil {
		f.Fatal(err)
	}
	return u
}

func (f *fixture) gone(kind, namespace, name string) {
	f.Helper()
	apiservertest.Until(f.T, kind+" "+name+" to be gone", func(context.Context) error {
		if f.get(kind, namespace, name) != nil {
			return errors.New("it is there")
		}
		return nil
	})
}

// edit changes an object as kubectl does for a person.
func (f *fixture) edit(kind, namespace, name, patch string) {
	f.Helper()
	u := f.get(kind, namespace, name)
	if u == nil {
		f.Fatalf("there is no %s %s", kind, name)
	}
	client, err := f.cluster.client(u.GroupVersionKind(), namespace)
	if err == nil {
		_, err = client.Patch(f.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "kubectl-edit"})
	}
	if err != nil {
		f.Fatal(err)
	}
}

func number(f *fixture, u *unstructured.Unstructured, path ...string) int64 {
	f.Helper()
	n, ok, err := unstructured.NestedInt64(u.Object, path...)
	if !ok || err != nil {
		f.Fatalf("there is no %s in %v", strings.Join(path, "."), u.Object)
	}
	return n
}

func text(u *unstructured.Unstructured, path ...string) string {
	if u == nil {
		return "(not there)"
	}
	s, _, _ := unstructured.NestedString(u.Object, path...)
	return s
}

func configMap(name, value string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\ndata: {value: " + value + "}\n---\n"
}

func TestPackagedStacks(t *testing.T) {
	f := newFixture(t)
	node := addons.Node{ClusterDNS: "10.43.0.10", ClusterDomain: "cluster.local", HasUpstreamDNS: true, PodsProgram: "/p", PayloadID: "1", BaseImage: "k1s.io/base:1", StorageDir: "/s"}
	render := func(disable ...string) {
		files, err := addons.Render(node, disable)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			f.write(f.o.packaged, name, text)
		}
	}
	render()
	began := time.Now()
	f.begin()
	for _, name := range []string{"coredns", "local-path", "metrics-server"} {
		f.applied(name)
	}
	t.Logf("all packaged stacks were applied after %s", time.Since(began).Round(time.Millisecond))
	f.stop()
	generation := f.get("Deployment", "kube-system", "coredns").GetResourceVersion()

	// A restart sends nothing that is there already.
	began = time.Now()
	f.begin()
	f.applied("coredns")
	f.applied("metrics-server")
	t.Logf("after a restart they were found unchanged in %s", time.Since(began).Round(time.Millisecond))
	f.stop()
	if now := f.get("Deployment", "kube-system", "coredns").GetResourceVersion(); now != generation {
		t.Errorf("a restart wrote the deployment: version %s, then %s", generation, now)
	}

	// What a user changes stays, over a restart and an upgrade; what they delete comes back.
	f.edit("Deployment", "kube-system", "coredns", `{"spec":{"replicas":2}}`)
	f.edit("ConfigMap", "kube-system", "coredns", `{"data":{"NodeHosts":"192.0.2.1 example"}}`)
	svc, err := f.cluster.client(f.get("Service", "kube-system", "kube-dns").GroupVersionKind(), "kube-system")
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Delete(t.Context(), "kube-dns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.begin()
	drifted := func(s stackReport) bool {
		return s.Error == "" && len(s.Drift) == 1 && s.Drift[0] == "Deployment.apps kube-system/coredns: .spec.replicas is set by kubectl-edit"
	}
	f.status("coredns", "drifted", drifted)
	if ip := text(f.get("Service", "kube-system", "kube-dns"), "spec", "clusterIP"); ip != node.ClusterDNS {
		t.Errorf("the deleted DNS service has address %s after a restart", ip)
	}
	node.PayloadID = "2"
	render()
	apiservertest.Until(t, "the new payload in the deployment", func(context.Context) error {
		if id := text(f.get("Deployment", "kube-system", "coredns"), "spec", "template", "metadata", "annotations", "k1s.io/payload"); id != "2" {
			return fmt.Errorf("it is %q", id)
		}
		return nil
	})
	f.status("coredns", "drifted", drifted)
	if n := number(f, f.get("Deployment", "kube-system", "coredns"), "spec", "replicas"); n != 2 {
		t.Errorf("the user's replicas became %d", n)
	}
	if hosts := text(f.get("ConfigMap", "kube-system", "coredns"), "data", "NodeHosts"); hosts == "" {
		t.Error("the user's addition to the ConfigMap is gone")
	}

	// Disabled is removed; the rest stays.
	f.remove(f.o.packaged, "metrics-server.yaml")
	f.gone("Deployment", "kube-system", "metrics-server")
	f.gone("ConfigMap", "kube-system", inventoryName(stackID{packaged, "metrics-server"}))
	if f.get("Deployment", "kube-system", "coredns") == nil {
		t.Error("coredns went with metrics-server")
	}
}

func TestUsersStacks(t *testing.T) {
	f := newFixture(t)
	f.begin()
	f.write(f.o.manifests, "a.yaml", configMap("one", "a")+configMap("two", "a"))
	f.write(f.o.manifests, "app/1.yaml", configMap("three", "a"))
	f.applied("a")
	f.applied("app")

	// An object that leaves a file goes, one that moves to another file stays.
	uid := f.get("ConfigMap", "default", "two").GetUID()
	f.write(f.o.manifests, "a.yaml", configMap("four", "a"))
	f.write(f.o.manifests, "app/2.yaml", configMap("two", "a"))
	f.gone("ConfigMap", "default", "one")
	f.applied("app")
	if u := f.get("ConfigMap", "default", "two"); u == nil || u.GetUID() != uid {
		t.Error("an object that moved between stacks was deleted on the way")
	}

	// Files win when they change, over whom ever.
	f.edit("ConfigMap", "default", "four", `{"data":{"value":"mine"}}`)
	f.write(f.o.manifests, "a.yaml", configMap("four", "b"))
	apiservertest.Until(t, "the file's value", func(context.Context) error {
		if v := text(f.get("ConfigMap", "default", "four"), "data", "value"); v != "b" {
			return fmt.Errorf("it is %s", v)
		}
		return nil
	})

	// A broken file is reported, disturbs no other stack, and keeps what it had.
	f.write(f.o.manifests, "a.yaml", configMap("four", "c")+"kind: [")
	f.status("a", "broken", func(s stackReport) bool { return s.State == stateFailed && strings.Contains(s.Error, "a.yaml:6: ") })
	f.write(f.o.manifests, "b.yaml", configMap("five", "a"))
	f.applied("b")
	f.remove(f.o.manifests, "b.yaml") // may have moved into what cannot be read
	f.status("b", "kept", func(s stackReport) bool { return strings.Contains(s.Error, "kept until a can be read") })
	if v := text(f.get("ConfigMap", "default", "four"), "data", "value"); v != "b" {
		t.Errorf("a broken file changed an object to %s", v)
	}
	f.write(f.o.manifests, "a.yaml", configMap("four", "d"))
	f.applied("a")
	f.gone("ConfigMap", "default", "five")

	// The API's refusal and unknown kinds name file and line, and are tried again.
	f.write(f.o.manifests, "bad.yaml", configMap("six", "a")+"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 99999}]}\n")
	f.status("bad", "refused", func(s stackReport) bool { return strings.Contains(s.Error, "bad.yaml:6: applying Service default/s: ") })
	f.write(f.o.manifests, "typo.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: t}\ndatta: {a: b}\n")
	f.status("typo", "refused", func(s stackReport) bool { return strings.Contains(s.Error, "datta") })
	f.write(f.o.manifests, "toy.yaml", "apiVersion: example.com/v1\nkind: Toy\nmetadata: {name: toy, namespace: play}\nspec: {size: 1}\n")
	f.status("toy", "unknown", func(s stackReport) bool { return strings.Contains(s.Error, "no kind Toy in example.com/v1") })
	f.write(f.o.manifests, "crd.yaml", toys)
	f.applied("crd")
	f.applied("toy")
	f.remove(f.o.manifests, "toy.yaml")
	f.gone("Toy", "play", "toy")
	if u := f.get("ConfigMap", "default", "six"); u == nil {
		t.Error("a refused object kept the others of its stack away")
	}
	events, err := f.cluster.dynamic.Resource(builtin[f.get("ConfigMap", "default", "six").GroupVersionKind()].resource.GroupResource().WithVersion("v1").GroupVersion().WithResource("events")).
		Namespace(inventoryNamespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events.Items, func(u unstructured.Unstructured) bool { return strings.Contains(text(&u, "message"), "bad.yaml:6") }) {
		t.Error("there is no event of the refusal")
	}

	// A directory that vanishes takes nothing with it; emptied by hand it does, also what asks to be kept not.
	away := f.o.manifests + ".away"
	if err := os.Rename(f.o.manifests, away); err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.begin()
	f.status("a", "kept", func(s stackReport) bool { return strings.Contains(s.Error, "kept although") })
	if err := os.Mkdir(f.o.manifests, 0o755); err != nil { // a mount point without its disk
		t.Fatal(err)
	}
	f.stop()
	f.begin()
	f.status("a", "kept", func(s stackReport) bool { return strings.Contains(s.Error, "the directory is empty") })
	f.stop()
	if f.get("ConfigMap", "default", "four") == nil {
		t.Fatal("an empty mount point deleted what was applied")
	}
	if err := errors.Join(os.Remove(f.o.manifests), os.Rename(away, f.o.manifests)); err != nil {
		t.Fatal(err)
	}
	f.edit("ConfigMap", "default", "two", `{"metadata":{"annotations":{"k1s.io/prune":"false"}}}`)
	f.begin()
	f.applied("a")
	for _, name := range []string{"a.yaml", "app", "bad.yaml", "typo.yaml", "crd.yaml"} {
		f.remove(f.o.manifests, name)
	}
	f.gone("ConfigMap", "default", "four")
	f.gone("CustomResourceDefinition", "", "toys.example.com")
	f.status("app", "gone", func(s stackReport) bool { return s.Name == "" })
	if f.get("ConfigMap", "default", "two") == nil {
		t.Error("an object that asks to be kept was pruned")
	}
	apiservertest.Until(t, "no inventory to be left", func(ctx context.Context) error {
		left, err := f.cluster.inventories().List(ctx, metav1.ListOptions{LabelSelector: inventoryLabel})
		if err == nil && len(left.Items) != 0 {
			err = fmt.Errorf("there are %d", len(left.Items))
		}
		return err
	})
}

func TestExamplesAreAccepted(t *testing.T) {
	f := newFixture(t)
	files, err := filepath.Glob("../../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no examples (%v)", err)
	}
	f.begin()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f.write(f.o.manifests, filepath.Base(file), string(text))
		f.applied(strings.TrimSuffix(filepath.Base(file), ".yaml"))
	}
}

func TestOneOfSeveralActs(t *testing.T) {
	f := newFixture(t)
	f.write(f.o.packaged, "a.yaml", configMap("one", "a"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 2)
	var files []string
	for i := range 2 {
		o := f.o
		o.statusFile += fmt.Sprint(i)
		files = append(files, o.statusFile)
		c, err := newCluster(f.config)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			ended <- elect(ctx, slog.New(slog.DiscardHandler), f.config, newManager(o, c, slog.New(slog.DiscardHandler)))
		}()
	}
	apiservertest.Until(t, "one to act and one to stand by", func(context.Context) error {
		var standby, acting int
		for _, name := range files {
			b, err := os.ReadFile(name)
			if errors.Is(err, fs.ErrNotExist) {
				return err
			}
			var r report
			if err := errors.Join(err, json.Unmarshal(b, &r)); err != nil {
				return err
			}
			if r.Standby {
				standby++
			} else if len(r.Stacks) == 1 && r.Stacks[0].State == stateApplied {
				acting++
			}
		}
		if standby != 1 || acting != 1 {
			return fmt.Errorf("%d stand by, %d act", standby, acting)
		}
		return nil
	})
	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if f.get("ConfigMap", "default", "one") == nil {
		t.Error("nobody acted")
	}
}

const toys = `
apiVersion: v1
kind: Namespace
metadata: {name: play}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: toys.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Toy, plural: toys, singular: toy, listKind: ToyList}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec: {type: object, properties: {size: {type: integer}}}
`
