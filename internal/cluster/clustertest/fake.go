package clustertest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// Fake is a provider whose clusters exist in memory only.
type Fake struct {
	// Dir is where nodes' files would be.
	Dir string
	// Fail, if set, is asked before every mutation, by method name; its error is returned.
	Fail func(method string) error

	mu       sync.Mutex // guards the rest
	clusters map[string]*fakeCluster
	pid      int
	port     uint16
}

type fakeCluster struct {
	spec    cluster.Spec
	running map[string]int // pids of the nodes that run
}

var (
	_ cluster.Provider     = (*Fake)(nil)
	_ cluster.Killer       = (*Fake)(nil)
	_ cluster.ImageStore   = (*Fake)(nil)
	_ cluster.LogCollector = (*Fake)(nil)
	_ cluster.Executor     = (*Fake)(nil)
	_ cluster.LinkSetter   = (*Fake)(nil)
)

// NewFake has no clusters.
func NewFake(dir string) *Fake {
	return &Fake{Dir: dir, clusters: map[string]*fakeCluster{}, port: 20000}
}

func (f *Fake) begin(ctx context.Context, method string) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.Fail != nil {
		if err := f.Fail(method); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	return f.mu.Unlock, nil
}

// Features implements cluster.Provider.
func (f *Fake) Features(context.Context) (cluster.Features, error) {
	return cluster.Features{Egress: true, UDP: true, MaxServers: cluster.MaxServers, MaxAgents: cluster.MaxAgents}, nil
}

// Prepare implements cluster.Provider.
func (f *Fake) Prepare(ctx context.Context, s cluster.Spec) (cluster.Spec, error) {
	if err := cluster.ValidateSpec(s); err != nil {
		return s, err
	}
	end, err := f.begin(ctx, "Prepare")
	if err != nil {
		return s, err
	}
	defer end()
	c := f.clusters[s.Name]
	if c != nil && s.Creation != "" && s.Creation != c.spec.Creation {
		return s, errs.New(errs.Exists, "there is a cluster %q already", s.Name)
	}
	if c == nil {
		c = &fakeCluster{running: map[string]int{}}
		f.clusters[s.Name] = c
		f.port++
		c.spec = cluster.Spec{Creation: s.Creation, APIPort: f.port, Created: time.Now(), Subnet: cluster.DefaultSubnet}
	}
	s.Nodes, s.Cuts, s.Delays = c.spec.Nodes, c.spec.Cuts, c.spec.Delays
	s.Creation = cmp.Or(s.Creation, c.spec.Creation)
	if s.APIPort == 0 {
		s.APIPort = c.spec.APIPort
	}
	if !s.Subnet.IsValid() {
		s.Subnet = c.spec.Subnet
	}
	if s.Created.IsZero() {
		s.Created = c.spec.Created
	}
	c.spec = s
	return s, nil
}

// Create implements cluster.Provider.
func (f *Fake) Create(ctx context.Context, n cluster.NodeSpec) (cluster.Node, error) {
	if err := cluster.ValidateNode(n); err != nil {
		return cluster.Node{}, err
	}
	end, err := f.begin(ctx, "Create")
	if err != nil {
		return cluster.Node{}, err
	}
	defer end()
	c := f.clusters[n.Cluster]
	if c == nil {
		return cluster.Node{}, errs.New(errs.NotFound, "there is no cluster %q", n.Cluster)
	}
	c.spec.Keep(n)
	if c.running[n.Name()] == 0 {
		f.pid++
		c.running[n.Name()] = f.pid
	}
	return f.node(c, n), nil
}

func (f *Fake) node(c *fakeCluster, n cluster.NodeSpec) cluster.Node {
	dir := filepath.Join(f.Dir, n.Cluster, n.Name())
	out := cluster.Node{
		Cluster: n.Cluster, Name: n.Name(), Role: n.Role, Index: n.Index, State: cluster.Stopped,
		Addr:          cluster.NodeAddr(c.spec.Subnet, n.Role, n.Index),
		ControlSocket: filepath.Join(dir, "k1s.sock"), Kubeconfig: filepath.Join(dir, "admin.kubeconfig"), Log: filepath.Join(dir, "log"),
	}
	if pid := c.running[n.Name()]; pid != 0 {
		out.State, out.PID = cluster.Running, pid
	}
	return out
}

// Stop implements cluster.Provider.
func (f *Fake) Stop(ctx context.Context, name, node string) error {
	end, err := f.begin(ctx, "Stop")
	if err != nil {
		return err
	}
	defer end()
	if c := f.clusters[name]; c != nil {
		if node == "" {
			clear(c.running)
		}
		delete(c.running, node)
	}
	return nil
}

// Describe implements cluster.Provider.
func (f *Fake) Describe(_ context.Context, name string) (cluster.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.clusters[name]
	if c == nil {
		return cluster.Status{}, errs.New(errs.NotFound, "there is no cluster %q", name)
	}
	s := cluster.Status{Spec: c.spec, State: cluster.Running}
	s.Spec.Nodes = slices.Clone(c.spec.Nodes)
	for _, n := range c.spec.Nodes {
		s.Nodes = append(s.Nodes, f.node(c, n))
	}
	switch {
	case len(c.spec.Nodes) == 0:
		s.State, s.Note = cluster.Broken, "it was not created completely"
	case len(c.running) == 0:
		s.State = cluster.Stopped
	case len(c.running) < len(c.spec.Nodes):
		s.State, s.Note = cluster.Broken, fmt.Sprintf("%d of %d nodes run", len(c.running), len(c.spec.Nodes))
	}
	return s, nil
}

// Clusters implements cluster.Provider.
func (f *Fake) Clusters(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for n := range f.clusters {
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

// Delete implements cluster.Provider.
func (f *Fake) Delete(ctx context.Context, name, node string) error {
	end, err := f.begin(ctx, "Delete")
	if err != nil {
		return err
	}
	defer end()
	c := f.clusters[name]
	if c == nil {
		return nil
	}
	if node == "" {
		delete(f.clusters, name)
		return nil
	}
	delete(c.running, node)
	c.spec.Nodes = slices.DeleteFunc(c.spec.Nodes, func(n cluster.NodeSpec) bool { return n.Name() == node })
	return nil
}

// Leftovers implements cluster.Provider.
func (f *Fake) Leftovers(_ context.Context, name string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.clusters[name]; ok {
		return []string{"cluster " + name}, nil
	}
	return nil, nil
}

// Kill implements cluster.Killer.
func (f *Fake) Kill(ctx context.Context, name, node string) error { return f.Stop(ctx, name, node) }

// AddImages implements cluster.ImageStore: the archive is copied to Dir/<cluster>/<node>/images.
func (f *Fake) AddImages(ctx context.Context, name, archive, as string, replaces func(string) bool, on cluster.Selector) error {
	st, err := f.Describe(ctx, name)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	for _, n := range st.Nodes {
		if !on.Matches(n.Role, n.Index) {
			continue
		}
		dir := filepath.Join(f.Dir, name, n.Name, "images")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		there, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range there {
			if e.Name() != as && replaces(e.Name()) {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, as), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// SetLinks implements cluster.LinkSetter.
func (f *Fake) SetLinks(ctx context.Context, name string, change func(cluster.Links) (cluster.Links, error)) error {
	end, err := f.begin(ctx, "SetLinks")
	if err != nil {
		return err
	}
	defer end()
	c := f.clusters[name]
	if c == nil {
		return errs.New(errs.NotFound, "there is no cluster %q", name)
	}
	links, err := change(cluster.Links{Cuts: c.spec.Cuts, Delays: c.spec.Delays}.Clone())
	if err == nil {
		c.spec.Cuts, c.spec.Delays = links.Cuts, links.Delays
	}
	return err
}

// Delayed implements cluster.LinkSetter: nothing is lost.
func (f *Fake) Delayed(ctx context.Context, name string) ([]cluster.Delayed, error) {
	st, err := f.Describe(ctx, name)
	if err != nil || st.State == cluster.Stopped {
		return nil, err
	}
	var out []cluster.Delayed
	for _, d := range st.Spec.Delays {
		out = append(out, cluster.Delayed{Delay: d})
	}
	return out, nil
}

// ImageDir implements cluster.ImageStore.
func (f *Fake) ImageDir(name string) (string, error) {
	dir := filepath.Join(f.Dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// Logs implements cluster.LogCollector: whatever is called *.log below Dir/<cluster>.
func (f *Fake) Logs(_ context.Context, name string) ([]cluster.LogFile, error) {
	dir := filepath.Join(f.Dir, name)
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.log"))
	var out []cluster.LogFile
	for _, file := range files {
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return nil, err
		}
		out = append(out, cluster.LogFile{Name: rel, Path: file})
	}
	return out, err
}

// Exec implements cluster.Executor: a command prints itself.
func (f *Fake) Exec(_ context.Context, _, _ string, argv []string, io cluster.Streams) error {
	_, err := fmt.Fprintln(io.Out, strings.Join(argv, " "))
	return err
}
