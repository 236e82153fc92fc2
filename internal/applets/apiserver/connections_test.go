package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/grpclog"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"

	"k1s.io/k1s/internal/applets/apiservertest"
)

// etcd runs a member until the returned function is called or the test ends. The directory and the address may
// be those of an earlier one.
func etcd(t *testing.T, dir, address string) (stop func()) {
	t.Helper()
	at := url.URL{Scheme: "http", Host: address}
	peers := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg := embed.NewConfig()
	cfg.Dir, cfg.ZapLoggerBuilder = dir, embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{at}, []url.URL{at}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(e.Close)
	t.Cleanup(stop)
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		t.Fatal(err)
	}
	return stop
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// counted opens connections as upstream does and counts them.
func counted(opened *atomic.Int32) func(storagebackend.TransportConfig) (*etcdkubernetes.Client, error) {
	return func(to storagebackend.TransportConfig) (*etcdkubernetes.Client, error) {
		opened.Add(1)
		return newETCD3Client(to)
	}
}

// member is an etcd, connections to it and how many were opened.
type member struct {
	*connections
	to     storagebackend.TransportConfig
	opened atomic.Int32
}

func newMember(t *testing.T) *member {
	t.Helper()
	address := freeAddress(t)
	etcd(t, t.TempDir(), address)
	m := &member{to: storagebackend.NewDefaultConfig("", nil).Transport}
	m.to.ServerList = []string{"http://" + address}
	m.connections = newConnections(counted(&m.opened))
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *member) get(t *testing.T) *etcdkubernetes.Client {
	t.Helper()
	c, err := m.client(m.to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func next(t *testing.T, from clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	select {
	case r, ok := <-from:
		if !ok {
			t.Fatal("the watch has ended")
		}
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		return r
	case <-time.After(time.Minute):
		t.Fatal("nothing comes from a watch")
	}
	panic("unreachable")
}

// written waits for the event of a key; a client that reconnects may tell other things before.
func written(t *testing.T, from clientv3.WatchChan, key string) {
	t.Helper()
	for {
		for _, e := range next(t, from).Events {
			if string(e.Kv.Key) == key {
				return
			}
		}
	}
}

func TestUpstreamsVariableIsStillWhatWeTakeItFor(t *testing.T) {
	const pkg = "k8s.io/apiserver/pkg/storage/storagebackend/factory"
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		imports := map[string]string{}
		for _, i := range file.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			local := filepath.Base(path)
			if i.Name != nil {
				local = i.Name.Name
			}
			imports[local] = path
		}
		for _, decl := range file.Decls {
			vars, ok := decl.(*ast.GenDecl)
			if !ok || vars.Tok != token.VAR {
				continue
			}
			for _, spec := range vars.Specs {
				v := spec.(*ast.ValueSpec)
				if v.Names[0].Name != "newETCD3Client" {
					continue
				}
				if len(v.Names) != 1 || len(v.Values) != 1 {
					t.Fatalf("%s declares it in another way", name)
				}
				f, ok := v.Values[0].(*ast.FuncLit)
				if !ok || v.Type != nil {
					t.Fatalf("%s makes it of something else than a function", name)
				}
				found = append(found, types.ExprString(f.Type))
				for local, want := range map[string]string{
					"storagebackend": "k8s.io/apiserver/pkg/storage/storagebackend",
					"kubernetes":     "go.etcd.io/etcd/client/v3/kubernetes",
				} {
					if imports[local] != want {
						t.Errorf("%s: %s is %q, want %q", name, local, imports[local], want)
					}
				}
			}
		}
	}
	want := []string{"func(c storagebackend.TransportConfig) (*kubernetes.Client, error)"}
	if !slices.Equal(found, want) {
		t.Errorf("upstream declares newETCD3Client as %q, want %q: connections.go has to be adapted", found, want)
	}
}

func TestUpstreamsStorageUsesTheSharedConnectionUntilItIsUndone(t *testing.T) {
	m := newMember(t)
	var opened atomic.Int32
	upstream := newETCD3Client
	defer func() { newETCD3Client = upstream }()
	newETCD3Client = func(to storagebackend.TransportConfig) (*etcdkubernetes.Client, error) {
		opened.Add(1)
		return upstream(to)
	}
	replaced := reflect.ValueOf(newETCD3Client).Pointer()
	undo, err := shareConnections()
	if err != nil {
		t.Fatal(err)
	}
	codec := scheme.Codecs.CodecForVersions(scheme.Codecs.LegacyCodec(corev1.SchemeGroupVersion), scheme.Codecs.UniversalDeserializer(),
		corev1.SchemeGroupVersion, corev1.SchemeGroupVersion)
	store := func(resource string) (storage.Interface, func()) {
		c := storagebackend.NewDefaultConfig("/registry", codec)
		c.Transport = m.to
		s, destroy, err := factory.Create(*c.ForResource(schema.GroupResource{Resource: resource}),
			func() kruntime.Object { return &corev1.ConfigMap{} }, func() kruntime.Object { return &corev1.ConfigMapList{} }, "/"+resource)
		if err != nil {
			t.Fatal(err)
		}
		return s, destroy
	}
	works := func(s storage.Interface, key string) {
		t.Helper()
		var out corev1.ConfigMap
		in := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: key}}
		if err := s.Create(t.Context(), key, in, &out, 0); err != nil {
			t.Fatal(err)
		}
		if err := s.Get(t.Context(), key, storage.GetOptions{}, &out); err != nil || out.Name != key {
			t.Fatalf("got %q, %v", out.Name, err)
		}
	}
	a, destroyA := store("a")
	b, destroyB := store("b")
	works(a, "/a/1")
	works(b, "/b/1")
	if n := opened.Load(); n != 1 {
		t.Errorf("two kinds of objects and the compaction opened %d connections, want 1", n)
	}
	events, err := b.Watch(t.Context(), "/b/", storage.ListOptions{Recursive: true, Predicate: storage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	destroyA() // as when a custom resource is removed
	works(b, "/b/2")
	for name := ""; name != "/b/2"; {
		e, ok := <-events.ResultChan()
		if !ok || e.Type != watch.Added {
			t.Fatalf("got %+v", e)
		}
		name = e.Object.(*corev1.ConfigMap).Name
	}
	destroyB()
	if err := undo(); err != nil {
		t.Error(err)
	}
	if reflect.ValueOf(newETCD3Client).Pointer() != replaced {
		t.Error("what was replaced was not put back")
	}
}

func TestClientsShareAConnectionAndNothingElse(t *testing.T) {
	m := newMember(t)
	a, b := m.get(t), m.get(t)
	if n := m.opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
	if !slices.Equal(a.Endpoints(), m.to.ServerList) {
		t.Errorf("its endpoints are %q, want %q", a.Endpoints(), m.to.ServerList)
	}
	ctx := clientv3.WithRequireLeader(t.Context())
	fromA, fromB := a.Watch(ctx, "k", clientv3.WithCreatedNotify()), b.Watch(ctx, "k", clientv3.WithCreatedNotify())
	if !next(t, fromA).Created || !next(t, fromB).Created {
		t.Fatal("a watch does not begin with saying that it does")
	}
	if err := a.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if r := next(t, fromA); !r.IsProgressNotify() {
		t.Errorf("a watch whose client asked for progress got %+v", r)
	}
	if _, err := a.Put(ctx, "k", "1"); err != nil {
		t.Fatal(err)
	}
	// What is a's alone would have come first.
	if r := next(t, fromB); len(r.Events) != 1 || r.Events[0].Type != mvccpb.PUT {
		t.Errorf("a watch whose client did not ask for progress got %+v", r)
	}
	written(t, fromA, "k")

	_ = a.Close() // etcd's client reports that a context was cancelled even when all is well
	if r, ok := <-fromA; ok {
		t.Errorf("a watch of a closed client got %+v", r)
	}
	if a.Ctx().Err() == nil || b.Ctx().Err() != nil {
		t.Errorf("contexts after one was closed: its own %v, another's %v", a.Ctx().Err(), b.Ctx().Err())
	}
	c := m.get(t)
	if _, err := c.Put(ctx, "k", "2"); err != nil {
		t.Fatal(err)
	}
	written(t, fromB, "k")
	if lease, err := b.Grant(ctx, 60); err != nil || lease.ID == 0 {
		t.Errorf("a lease: %+v, %v", lease, err)
	}
	if s, err := b.Status(ctx, b.Endpoints()[0]); err != nil || s.Version == "" {
		t.Errorf("status: %+v, %v", s, err)
	}
	if n := m.opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
}

// warnings keeps what gRPC warns of.
type warnings struct {
	grpclog.LoggerV2
	mu   sync.Mutex
	said []string // guarded by mu
}

func (w *warnings) Warningln(args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, fmt.Sprintln(args...))
}

// connecting tells whether any connection of gRPC's is being established.
func connecting() bool {
	stacks := make([]byte, 1<<20)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("(*addrConn)."))
}

func TestAClientDoesNotTryToConnectByItself(t *testing.T) {
	m := newMember(t)
	m.get(t)
	w := &warnings{LoggerV2: grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)}
	grpclog.SetLoggerV2(w)
	defer grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, os.Stderr, os.Stderr))
	for range 5 {
		c := m.get(t)
		if _, err := c.KV.Get(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
		if state := c.ActiveConnection().GetState(); state != connectivity.Shutdown {
			t.Errorf("its own connection is %s", state)
		}
	}
	for connecting() {
		time.Sleep(time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.said) > 0 {
		t.Errorf("gRPC warned %d times: %s", len(w.said), w.said[0])
	}
}

func TestWatchesAndRequestsGoOnWhenTheDatastoreComesBack(t *testing.T) {
	dir, address, other := t.TempDir(), freeAddress(t), freeAddress(t)
	stop := etcd(t, dir, address)
	conns := newConnections(newETCD3Client)
	defer func() {
		if err := conns.close(); err != nil {
			t.Error(err)
		}
	}()
	to := storagebackend.NewDefaultConfig("", nil).Transport
	to.ServerList = []string{"http://" + other, "http://" + address} // one of them is never there
	c, err := conns.client(to)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	events := c.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	next(t, events)
	if _, err := c.Put(ctx, "k1", ""); err != nil {
		t.Fatal(err)
	}
	written(t, events, "k1")
	stop()
	etcd(t, dir, address)
	if _, err := c.Put(ctx, "k2", ""); err != nil {
		t.Fatal(err)
	}
	written(t, events, "k2")
}

func TestOthersAreConnectedToWhileOneDatastoreIsTried(t *testing.T) {
	m := newMember(t)
	asked, fail := make(chan struct{}, 1), make(chan error)
	real := m.open
	var tries atomic.Int32
	m.open = func(to storagebackend.TransportConfig) (*etcdkubernetes.Client, error) {
		if to.ServerList[0] != "absent" {
			return real(to)
		}
		if tries.Add(1) > 2 {
			return real(m.to)
		}
		asked <- struct{}{}
		return nil, <-fail
	}
	absent := m.to
	absent.ServerList = []string{"absent"}
	failed := errors.New("nobody there")
	for range 2 { // a failure is not remembered
		result := make(chan error)
		go func() {
			_, err := m.client(absent)
			result <- err
		}()
		<-asked
		m.get(t)
		fail <- failed
		if err := <-result; !errors.Is(err, failed) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := m.client(absent); err != nil {
		t.Error(err)
	}
}

func TestManyAtOnceOpenOneConnection(t *testing.T) {
	m := newMember(t)
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			c, err := m.client(m.to)
			if err == nil {
				_, err = c.Put(t.Context(), fmt.Sprint(i), "")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := m.opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
}

func TestAfterItsEndThereAreNoMoreClients(t *testing.T) {
	m := newMember(t)
	c := m.get(t)
	events := c.Watch(t.Context(), "k", clientv3.WithCreatedNotify())
	next(t, events)
	if err := m.close(); err != nil {
		t.Error(err)
	}
	for r := range events { // until it ends
		if len(r.Events) > 0 {
			t.Errorf("a watch on a closed connection got %+v", r)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.KV.Get(ctx, "k"); err == nil || ctx.Err() != nil {
		t.Errorf("a request on a closed connection: %v", err)
	}
	if _, err := m.client(m.to); !errors.Is(err, errClosed) {
		t.Errorf("got %v, want %v", err, errClosed)
	}
}

// connected counts the connections to kine's socket in this network namespace, from the side of kine: those
// carry the name of the socket and are in the kernel's state 3, see net/unix/af_unix.c, unix_seq_show.
func connected(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 8 && f[5] == "03" && strings.HasSuffix(f[7], "/kine.sock") {
			n++
		}
	}
	return n
}

func TestARealServerNeedsOneConnectionAndOutlivesItsCustomResources(t *testing.T) {
	config := apiservertest.Start(t)
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	before := connected(t)
	if before < 1 || before > 3 { // asking for the size of the database and the version opens one for a moment
		t.Errorf("the server has %d connections to kine, want 1", before)
	}
	ctx := t.Context()
	maps := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default")
	list, err := maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	events, err := maps.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for round := range 2 {
		crd := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
			"metadata": map[string]any{"name": "things.example.com"},
			"spec": map[string]any{
				"group": "example.com", "scope": "Namespaced", "names": map[string]any{"plural": "things", "kind": "Thing"},
				"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{
					"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
			},
		}}
		if _, err := crds.Create(ctx, crd, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		things := client.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "things"}).Namespace("default")
		thing := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Thing", "metadata": map[string]any{"name": "a"}}}
		apiservertest.Until(t, "a custom object", func(ctx context.Context) error {
			_, err := things.Create(ctx, thing, metav1.CreateOptions{})
			return err
		})
		if there, err := things.List(ctx, metav1.ListOptions{}); err != nil || len(there.Items) != 1 {
			t.Errorf("custom objects: %+v, %v", there, err)
		}
		if err := crds.Delete(ctx, "things.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		apiservertest.Until(t, "the custom resource to be gone", func(ctx context.Context) error {
			if _, err := crds.Get(ctx, "things.example.com", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there, or %w", err)
			}
			return nil
		})
		name := fmt.Sprintf("after-%d", round)
		m := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}}}
		if _, err := maps.Create(ctx, m, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for got := ""; got != name; {
			e, ok := <-events.ResultChan()
			if !ok || e.Type == watch.Error {
				t.Fatalf("a watch of something else ended with a custom resource: %+v", e)
			}
			got = e.Object.(*unstructured.Unstructured).GetName()
		}
	}
	if after := connected(t); after > 3 {
		t.Errorf("two custom resources came and went, and the server has %d connections, had %d", after, before)
	}
}
