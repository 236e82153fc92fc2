//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// proxy is an HTTP proxy that leads everything to one registry, and remembers what it was asked for.
type proxy struct {
	in     network
	to     *registry
	mu     sync.Mutex // guards what follows
	asked  map[string]bool
	tunnel sync.WaitGroup
}

// startProxy starts one at an address of the registry's network; it ends with the test.
func startProxy(t *testing.T, in network, address string, to *registry) *proxy {
	t.Helper()
	p := &proxy{in: in, to: to, asked: map[string]bool{}}
	srv := &http.Server{Handler: p}
	l := in.listen(t, address)
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
		p.tunnel.Wait()
	})
	return p
}

// seen are the hosts it was asked for, each once, those with a port by CONNECT.
func (p *proxy) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.asked))
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked[r.Host] = true
	p.mu.Unlock()
	if r.Method == http.MethodConnect {
		p.connect(w, r)
		return
	}
	// It speaks TLS with the registry in the client's place.
	out := r.Clone(r.Context())
	out.RequestURI, out.URL.Scheme, out.URL.Host, out.Host = "", "https", "127.0.0.1:"+registryPort, ""
	resp, err := p.to.client.Do(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

func (p *proxy) connect(w http.ResponseWriter, r *http.Request) {
	out, err := p.in.dial(r.Context(), "tcp", "127.0.0.1:"+registryPort)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		out.Close()
		return
	}
	_, _ = io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n")
	half := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from)
		in.Close()
		out.Close()
	}
	p.tunnel.Go(func() { half(out, buffered) })
	p.tunnel.Go(func() { half(in, out) })
}

// startsWith starts the node's daemon as a user would by hand, with an environment of his own.
func (c *Cluster) startsWith(t *testing.T, env ...string) {
	t.Helper()
	c.running(t)
	// The node's first process would take the cluster for stopped.
	kill(t, c.where().PID)
	c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
	argv := slices.Concat([]string{"env"}, env, []string{"k1s", "server"})
	ended := make(chan result, 1)
	go func() { ended <- c.in(context.Background(), argv...) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		stopped := c.in(ctx, "k1s", "stop", "--pods")
		select {
		case r := <-ended:
			if err := errors.Join(stopped.error(), r.error()); err != nil || t.Failed() {
				t.Log(err, lastLines(r.err, 30))
			}
		case <-ctx.Done():
			t.Errorf("the server does not end: %v", stopped)
		}
	})
	c.running(t)
}

func TestImagesArePulledThroughTheProxyAndNothingOfTheClusterIs(t *testing.T) {
	t.Parallel()
	c := created(t, "proxy")
	const service = "10.43.0.77"
	address, in := c.where().Addr.String(), c.network(t)
	r := startRegistry(t, in, "registry.example", address, service)
	p := startProxy(t, in, "127.0.0.1:3128", r)
	c.put(t, r.ca, "/etc/k1s/registry-ca.crt")
	var configs strings.Builder
	for _, host := range []string{"registry.example", "plain.example", address + ":" + registryPort, service + ":" + registryPort} {
		fmt.Fprintf(&configs, "  %s:\n    auth: {username: %s, password: %s}\n    tls: {ca_file: /etc/k1s/registry-ca.crt}\n", host, registryUser, registryPassword)
	}
	c.put(t, []byte("mirrors:\n  plain.example:\n    endpoint: ['http://plain.example']\nconfigs:\n"+configs.String()), "/etc/k1s/registries.yaml")
	c.startsWith(t, "HTTP_PROXY=http://127.0.0.1:3128", "https_proxy=http://127.0.0.1:3128", "NO_PROXY=kept.example")

	s := c.namespace(t, "proxy")
	s.apply(t, "registry.yaml")
	images := map[string]string{
		"connect": "registry.example/by/connect:1",
		"plain":   "plain.example/by/http:1",
		"node":    net.JoinHostPort(address, registryPort) + "/by/address:1",
		"service": net.JoinHostPort(service, registryPort) + "/by/service:1",
	}
	for _, repository := range []string{"by/connect", "by/http", "by/address", "by/service"} {
		r.push(t, repository)
	}
	images["kept"] = "kept.example/by/nobody:1" // what the user excludes is asked directly, and not to be found here
	for pod, image := range images {
		s.kubectl(t, "run", pod, "--image="+image, "--image-pull-policy=Always", "--restart=Never", "--", "echo", "it works")
	}
	for pod := range images {
		if pod != "kept" {
			s.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+pod, "--timeout=4m")
		}
	}
	s.untilOutput(t, limit, "the name that is not asked of the proxy to be unknown", contains("lookup kept.example"),
		"get", "events", "--field-selector=reason=Failed,involvedObject.name=kept", "-o", "jsonpath={.items[*].message}")
	if got, want := p.seen(), []string{"plain.example", "registry.example:443"}; !slices.Equal(got, want) {
		t.Errorf("the proxy was asked for %q, want %q", got, want)
	}
}
