// Package balancer is the applet through which an agent reaches its cluster's servers, and they reach it: packages balancer
// and tunnel, with what they are told by the cluster. It learns the servers from the endpoints of the service "kubernetes",
// keeps them in a file for the next start, and falls back to the address the node joined at.
package balancer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"k1s.io/k1s/internal/balancer"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/pki"
)

type options struct {
	listen, fallback, kubeconfig, caFile, serversFile string
	node                                              nodeOptions
}

// Run is the applet. It returns nil when ctx ends.
func Run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	log := slog.With("component", "balancer")
	if _, err := pki.Pool(o.caFile); err != nil {
		return err
	}
	known, err := readServers(o.serversFile)
	if err != nil {
		log.Warn("the servers of the last run are not known", "err", err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("reading %s: %w", o.kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	n, err := newNode(o.node, o.caFile, slog.With("component", "tunnel"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("opening this node's way to the servers: %w", err)
	}
	asks := &http.Client{Transport: &http.Transport{
		DialTLSContext:      o.dial,
		MaxIdleConnsPerHost: 1,
	}}
	defer asks.CloseIdleConnections()
	b := balancer.New(balancer.Options{Check: balancer.Ready(asks), Log: log})
	b.Set(known, []string{o.fallback})
	n.Set(known, o.fallback)

	factory, err := learn(client, func(servers []string) {
		if len(servers) == 0 || slices.Equal(servers, known) {
			return // none at all is a moment in which they are changing, or somebody's mistake
		}
		log.Info("servers", "servers", servers)
		known = servers
		b.Set(known, []string{o.fallback})
		n.Set(known, o.fallback)
		if err := writeServers(o.serversFile, known); err != nil {
			log.Error("the servers are not kept for the next start", "err", err)
		}
	})
	if err != nil {
		_ = l.Close()
		return err
	}
	lctx, stop := context.WithCancel(ctx)
	factory.Start(lctx.Done())
	var wg sync.WaitGroup
	wg.Go(func() { n.Run(lctx) })
	wg.Go(func() { tell(lctx, o.node.stateFile, n, b, log) })
	defer factory.Shutdown()
	defer wg.Wait()
	defer stop()
	return b.Run(ctx, l)
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("balancer", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.listen, "listen", "", "address to listen at, on loopback")
	fs.StringVar(&o.fallback, "fallback", "", "host:port to try when no other server answers")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "how to learn of servers, through this balancer; needs list and watch of endpointslices")
	fs.StringVar(&o.caFile, "ca-file", "", "the cluster's CA")
	fs.StringVar(&o.serversFile, "servers-file", "", "where the servers are kept for the next start")
	fs.StringVar(&o.node.name, "node-name", "", "name of this node")
	fs.StringVar(&o.node.ip, "node-ip", "", "address at which servers know its kubelet")
	fs.StringVar(&o.node.kubeletPort, "kubelet-port", "", "port of its kubelet")
	fs.StringVar(&o.node.podCIDR, "pod-cidr", "", "network of all pods of the cluster; several are separated by commas")
	fs.StringVar(&o.node.kubeconfig, "node-kubeconfig", "", "how to learn of this node and its pods, as this node")
	fs.StringVar(&o.node.cert, "node-cert", "", "certificate with which this node opens tunnels")
	fs.StringVar(&o.node.key, "node-key", "", "its key")
	fs.StringVar(&o.node.stateFile, "tunnels-file", "", "where is told which servers have a tunnel to this node")
	if err := fs.Parse(args); err != nil {
		return o, errs.As(errs.Usage, err)
	}
	var bad []error
	fs.VisitAll(func(f *flag.Flag) {
		if f.Value.String() == "" {
			bad = append(bad, fmt.Errorf("--%s is missing", f.Name))
		}
	})
	if fs.NArg() > 0 {
		bad = append(bad, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	if host, _, err := net.SplitHostPort(o.listen); err != nil || !net.ParseIP(host).IsLoopback() {
		bad = append(bad, fmt.Errorf("--listen %q is no address on loopback", o.listen))
	}
	return o, errs.As(errs.Usage, errors.Join(bad...))
}

// dial connects to a server, and reads the CA for it: the cluster may replace it.
func (o options) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	pool, err := pki.Pool(o.caFile)
	if err != nil {
		return nil, err
	}
	d := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: join.ServerName, MinVersion: tls.VersionTLS12}}
	return d.DialContext(ctx, network, addr)
}

// learn calls fn, one call at a time, with the servers whenever they change. They are in the one object that API servers write themselves;
// another one of the service "kubernetes" is somebody else's.
func learn(client kubernetes.Interface, fn func(servers []string)) (informers.SharedInformerFactory, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(metav1.NamespaceDefault),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, "kubernetes").String()
		}))
	slices := factory.Discovery().V1().EndpointSlices()
	lister := slices.Lister()
	tell := func(any) {
		all, err := lister.List(labels.Everything())
		if err == nil { // a cache cannot fail
			fn(serversOf(all))
		}
	}
	_, err := slices.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, now any) { tell(now) }, DeleteFunc: tell,
	})
	if err != nil {
		return nil, fmt.Errorf("watching the servers: %w", err)
	}
	return factory, nil
}

// serversOf are the API servers of the service's endpoints, as host:port, sorted.
func serversOf(all []*discoveryv1.EndpointSlice) []string {
	var out []string
	for _, s := range all {
		for _, p := range s.Ports {
			if p.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, a := range e.Addresses {
					out = append(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// kept is the file of servers.
type kept struct {
	Servers []string  `json:"servers"`
	Learned time.Time `json:"learned"`
}

func readServers(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	for _, s := range k.Servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
	}
	return k.Servers, nil
}

func writeServers(file string, servers []string) error {
	b, err := json.Marshal(kept{servers, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	return durable.WriteFile(file, append(b, '\n'), 0o600)
}
