package networkpolicy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"k1s.io/k1s/internal/applets/networkpolicy/gate"
	"k1s.io/k1s/internal/applets/networkpolicy/rules"
)

func serve(ctx context.Context, o options) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("reading kubeconfig %q: %w", o.kubeconfig, err)
	}
	cfg.UserAgent = "k1s-network-policy"
	cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("making a client from %q: %w", o.kubeconfig, err)
	}
	a := newAgent(client, slog.Default(), o.nodeName, &nftables{})
	if a.assigned, err = kept(o.stateFile); err != nil {
		a.log.Warn("pods that were starting have their policies when the API server knows their addresses", "err", err)
	}
	a.inherited = slices.Collect(maps.Keys(a.assigned))
	a.remember = func(all map[rules.Key]assigned) error { return keep(o.stateFile, all) }

	ctx, cancel := context.WithCancel(ctx)
	var listened sync.WaitGroup
	var failed error // of listening; read after it has ended
	listened.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-a.inForce:
		}
		if failed = listen(ctx, o.socket, a.requests, a.log); failed != nil {
			cancel()
		}
	})
	err = a.run(ctx)
	cancel()
	listened.Wait()
	return errors.Join(err, failed)
}

// listen answers CNI plugins until ctx ends.
func listen(ctx context.Context, socket string, to chan<- asking, log *slog.Logger) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the socket of the process before: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listening for CNI plugins: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("listening for CNI plugins: %w", err), l.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listening for CNI plugins: %w", err)
		}
		open.Go(func() {
			defer conn.Close()
			if err := talk(ctx, conn, to); err != nil {
				log.Warn("a CNI plugin has no answer", "err", err)
			}
		})
	}
}

// margin is what is left of a plugin's patience to bring it the answer.
const margin = time.Second

// talk answers one request.
func talk(ctx context.Context, conn net.Conn, to chan<- asking) error {
	ctx, cancel := context.WithTimeout(ctx, gate.Patience-margin)
	defer cancel()
	if err := conn.SetDeadline(time.Now().Add(gate.Patience)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	var r gate.Request
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		return nil // somebody looked whether we are here
	}
	answer := make(chan error, 1)
	var out gate.Response
	select {
	case to <- asking{Request: r, ctx: ctx, answer: answer}:
		if err := <-answer; err != nil {
			out.Error = err.Error()
		}
	case <-ctx.Done():
		out.Error = "the network policy agent is busy or stopping"
	}
	return json.NewEncoder(conn).Encode(out)
}
