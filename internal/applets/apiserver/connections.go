package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	_ "unsafe" // go:linkname

	clientv3 "go.etcd.io/etcd/client/v3"
	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// newETCD3Client is upstream's variable that opens a connection to the datastore: for each kind of object,
// each health check and the compaction one. Upstream's own tests replace it, and so does connections; nothing
// exported stands there. A test compares its declaration with this one, which the linker does not.
//
//go:linkname newETCD3Client k8s.io/apiserver/pkg/storage/storagebackend/factory.newETCD3Client
var newETCD3Client func(storagebackend.TransportConfig) (*etcdkubernetes.Client, error)

// connections lets everything in an API server that talks to the same datastore share one connection. Upstream
// opens 65 of them, and one more for each custom resource; each costs nine goroutines and their buffers when
// the datastore is a part of the same process. They are opened as upstream opens them, with its keep-alive,
// retries, metrics and balancer.
//
// Who asks for a client gets one of his own, with his own watch streams, endpoints and context: what he
// puts into it, asks of it or closes concerns nobody else.
type connections struct {
	open func(storagebackend.TransportConfig) (*etcdkubernetes.Client, error)

	opening singleflight.Group

	mu     sync.Mutex // guards what follows
	opened map[string]*clientv3.Client
	closed bool
}

// shareConnections puts connections in the place of upstream's function until the returned function is called,
// which closes them. Only one server at a time may do so.
func shareConnections() (undo func() error, err error) {
	upstream := newETCD3Client
	if upstream == nil {
		return nil, errors.New("sharing connections to the datastore: this version of Kubernetes opens them elsewhere; k1s has to be adapted to it")
	}
	c := newConnections(upstream)
	newETCD3Client = c.client
	return func() error {
		newETCD3Client = upstream
		return c.close()
	}, nil
}

func newConnections(open func(storagebackend.TransportConfig) (*etcdkubernetes.Client, error)) *connections {
	return &connections{open: open, opened: map[string]*clientv3.Client{}}
}

// client stands in for upstream's function: it waits for the connection for as long as upstream does.
func (c *connections) client(to storagebackend.TransportConfig) (*etcdkubernetes.Client, error) {
	shared, err := c.connection(to)
	if err != nil {
		return nil, err
	}
	return client(shared)
}

// connection returns the one to a datastore. Callers that find none wait for the same try to open it.
func (c *connections) connection(to storagebackend.TransportConfig) (*clientv3.Client, error) {
	// What else is in the configuration, tracing and dialling, is the same for everything in one server.
	key := fmt.Sprintf("%q", append([]string{to.CertFile, to.KeyFile, to.TrustedCAFile}, to.ServerList...))
	found := func() (*clientv3.Client, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed {
			return nil, errClosed
		}
		return c.opened[key], nil
	}
	if shared, err := found(); shared != nil || err != nil {
		return shared, err
	}
	shared, err, _ := c.opening.Do(key, func() (any, error) {
		if shared, err := found(); shared != nil || err != nil {
			return shared, err
		}
		opened, err := c.open(to)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed {
			return nil, errors.Join(errClosed, opened.Close())
		}
		c.opened[key] = opened.Client
		return opened.Client, nil
	})
	if err != nil {
		return nil, err
	}
	return shared.(*clientv3.Client), nil
}

var errClosed = errors.New("connecting to the datastore: the API server has stopped")

// close ends the connections, and with them what clients are still waiting for.
func (c *connections) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var problems []error
	for _, shared := range c.opened {
		// It ends its context as well, and says so.
		if err := shared.Close(); err != nil && !errors.Is(err, context.Canceled) {
			problems = append(problems, err)
		}
	}
	clear(c.opened)
	return errors.Join(problems...)
}

// client returns a client that works on the connection of another one. Closing it ends its watches, not the
// connection.
//
// Etcd's package makes no client with endpoints and a context but without a connection, so this one begins with
// one of its own, whose balancer connects to nothing, and which is closed at once.
func client(shared *clientv3.Client) (*etcdkubernetes.Client, error) {
	own, err := clientv3.New(clientv3.Config{
		Endpoints: shared.Endpoints(),
		Logger:    shared.GetLogger(),
		DialOptions: []grpc.DialOption{
			grpc.WithDisableServiceConfig(), // etcd's resolver names a balancer as well
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"` + unconnected{}.Name() + `":{}}]}`),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making a client on a shared connection: %w", err)
	}
	if err := own.ActiveConnection().Close(); err != nil {
		return nil, fmt.Errorf("making a client on a shared connection: %w", err)
	}
	own.Auth = clientv3.NewAuth(shared)
	own.Cluster = clientv3.NewCluster(shared)
	own.KV = clientv3.NewKV(shared)
	own.Lease = clientv3.NewLease(shared)
	own.Maintenance = clientv3.NewMaintenance(shared)
	own.Watcher = newWatches(clientv3.NewWatcher(shared))
	c := &etcdkubernetes.Client{Client: own}
	c.Kubernetes = c
	return c, nil
}

// unconnected is a balancer that leaves a connection without a transport. Closing one that is being established
// would be a warning in the log, 132 of them at every start.
type unconnected struct{}

func init() { balancer.Register(unconnected{}) } // a name is all that a connection can be given

func (unconnected) Name() string { return "k1s_unconnected" }
func (unconnected) Build(balancer.ClientConn, balancer.BuildOptions) balancer.Balancer {
	return unconnected{}
}
func (unconnected) UpdateClientConnState(balancer.ClientConnState) error       { return nil }
func (unconnected) ResolverError(error)                                        {}
func (unconnected) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}
func (unconnected) Close()                                                     {}
func (unconnected) ExitIdle()                                                  {}
