package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// podLatency creates pods one after the other, each when the one before is gone, and takes the time from
// sending the request to seeing the pod Ready, in seconds.
func podLatency(ctx context.Context, n *node, count int) ([]float64, error) {
	a, err := n.api()
	if err != nil {
		return nil, err
	}
	defer a.close()
	var out []float64
	for i := range count {
		name := fmt.Sprintf("bench-%d", i)
		ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, fmt.Errorf("pod %s was not ready in a minute", name))
		defer cancel()
		t0 := time.Now()
		if err := a.do(ctx, http.MethodPost, podsPath, pod(name), nil); err != nil {
			return nil, err
		}
		err := a.watch(ctx, podsPath, name, func(_ string, o object) bool { return o.readySince(time.Time{}) })
		if err != nil {
			return nil, err
		}
		out = append(out, time.Since(t0).Seconds())
		if err := a.do(ctx, http.MethodDelete, podsPath+"/"+name+"?gracePeriodSeconds=0", nil, nil); err != nil {
			return nil, err
		}
		err = until(ctx, func(ctx context.Context) error {
			err := a.do(ctx, http.MethodGet, podsPath+"/"+name, nil, nil)
			if answered(err, http.StatusNotFound) {
				return nil
			}
			return fmt.Errorf("pod %s is still there: %w", name, err)
		})
		if err != nil {
			return nil, err
		}
		// The runtime ends the sandbox after the API has forgotten the pod.
		if !sleep(ctx, 500*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
	}
	return out, nil
}

// listAfterWrite writes to one resource and then lists a quiet other one with the consistency of a read of
// the store, which is what a LIST without resourceVersion promises. In seconds.
func listAfterWrite(ctx context.Context, n *node, count int) ([]float64, error) {
	a, err := n.api()
	if err != nil {
		return nil, err
	}
	defer a.close()
	const path = "/api/v1/namespaces/default/configmaps"
	var out []float64
	for i := range count {
		name := fmt.Sprintf("bench-%d", i)
		cm := map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "data": map[string]string{"i": name}}
		if err := a.do(ctx, http.MethodPost, path, cm, nil); err != nil {
			return nil, err
		}
		t0 := time.Now()
		if err := a.do(ctx, http.MethodGet, "/api/v1/secrets", nil, nil); err != nil {
			return nil, err
		}
		out = append(out, time.Since(t0).Seconds())
		if err := a.do(ctx, http.MethodDelete, path+"/"+name, nil, nil); err != nil {
			return nil, err
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
	}
	return out, nil
}

// commandLatency runs a k1s command again and again, against the node's daemon. In seconds.
func commandLatency(ctx context.Context, n *node, program string, count int, args ...string) ([]float64, error) {
	var out []float64
	for range count {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Env = append(os.Environ(), "K1S_RUN_DIR="+n.runDir())
		t0 := time.Now()
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("running %v: %w: %s", cmd.Args, err, text)
		}
		out = append(out, time.Since(t0).Seconds())
	}
	return out, nil
}
