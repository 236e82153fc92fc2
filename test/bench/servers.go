package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/kubeconfig"
)

// What samples of clusters of several servers are called.
const (
	sampleServers     = "three servers and two agents"
	sampleServerAdded = "server added"
	sampleFailOver    = "fail-over"
	serversName       = "bench-servers"
	// tryEvery is how often a write is begun while none is acknowledged, and tryFor how long each may take.
	tryEvery = 50 * time.Millisecond
	tryFor   = 15 * time.Second
)

// servers makes a cluster of three servers and two agents as a user would, kills whichever server leads, several times,
// and adds another one.
func (b *bench) servers(ctx context.Context) (err error) {
	quiet(ctx, b.o.patience)
	defer func() {
		err = errors.Join(err, b.clusterCommand(context.WithoutCancel(ctx), "delete", serversName, "--yes"))
	}()
	b.say("a cluster of three servers and two agents")
	began := time.Now()
	if err := b.clusterCommand(ctx, "create", serversName, "--servers", "3", "--agents", "2", "--no-kubeconfig"); err != nil {
		return err
	}
	b.took(sampleServers, time.Since(began))
	for range b.o.kills {
		leader, err := b.leader(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := b.clusterCommand(ctx, "node", "kill", serversName, leader); err != nil {
			return err
		}
		if err := b.untilWritten(ctx); err != nil {
			return err
		}
		b.took(sampleFailOver, time.Since(began))
		if err := b.clusterCommand(ctx, "node", "start", serversName, leader); err != nil {
			return err
		}
	}
	began = time.Now()
	if err := b.clusterCommand(ctx, "node", "add", serversName, "--server"); err != nil {
		return err
	}
	b.took(sampleServerAdded, time.Since(began))
	return nil
}

func (b *bench) took(name string, d time.Duration) {
	b.Samples["k1s "+name] = append(b.Samples["k1s "+name], d.Seconds())
}

// running are the servers of the cluster that run.
func (b *bench) running(ctx context.Context) (cluster.Status, []cluster.Node, error) {
	st, err := b.main.provider(k1s).Describe(ctx, serversName)
	var out []cluster.Node
	for _, n := range st.Nodes {
		if n.Role == cluster.Server && n.State == cluster.Running {
			out = append(out, n)
		}
	}
	if err == nil && len(out) == 0 {
		err = errors.New("no server runs")
	}
	return st, out, err
}

// leader is the server that leads etcd.
func (b *bench) leader(ctx context.Context) (string, error) {
	_, servers, err := b.running(ctx)
	if err != nil {
		return "", err
	}
	e, err := control.NewClient(servers[0].ControlSocket).Etcd(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range e.Members {
		for _, n := range servers {
			if m.Leader && (m.Name == n.Name || strings.HasPrefix(m.Name, n.Name+"-")) {
				return n.Name, nil
			}
		}
	}
	return "", fmt.Errorf("no member leads: %+v", e.Members)
}

// untilWritten returns when a write was acknowledged that began after the call, at the port of the cluster on this machine. Each
// try has a connection of its own, and does not wait for the one before: what was on its way to a leader that died is
// not answered for seconds.
func (b *bench) untilWritten(ctx context.Context) error {
	st, servers, err := b.running(ctx)
	if err != nil {
		return err
	}
	c, err := kubeconfig.Load(servers[0].Kubeconfig)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CA)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}}
	ctx, done := context.WithTimeout(ctx, time.Minute)
	defer done()
	var all sync.WaitGroup
	defer all.Wait()
	defer done()
	written := make(chan struct{}, 1)
	write := func(n int) error {
		ctx, cancel := context.WithTimeout(ctx, tryFor)
		defer cancel()
		body := fmt.Sprintf(`{"metadata":{"labels":{"bench":"%d"}}}`, n)
		req, err := http.NewRequestWithContext(ctx, http.MethodPatch, fmt.Sprintf("https://127.0.0.1:%d/api/v1/namespaces/default", st.Spec.APIPort), bytes.NewReader([]byte(body)))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/merge-patch+json")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %w", resp.Status, err)
		}
		return nil
	}
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		all.Go(func() {
			if write(n) == nil { // others are on their way
				select {
				case written <- struct{}{}:
				default:
				}
			}
		})
		select {
		case <-written:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("no write was acknowledged: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}
