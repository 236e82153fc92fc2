package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/platform"
)

// place is a network namespace that we live in, and the address by which others reach it.
type place struct {
	in   *inside
	addr netip.Addr
}

// podLimit bounds how long a pod may take to run.
const podLimit = time.Minute

// placePod starts a pod and goes into its network namespace. The pod has nothing but /pause, so whatever is sent or
// answered there is sent or answered by us. cgroup is that of its node.
func placePod(ctx context.Context, a *api, cgroup string, manifest map[string]any, name string) (place, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, podLimit, fmt.Errorf("pod %s did not run in %s", name, podLimit))
	defer cancel()
	err := until(ctx, func(ctx context.Context) error { // accepting it takes a service account, which may be a moment away
		err := a.do(ctx, http.MethodPost, podsPath, manifest, nil)
		if answered(err, http.StatusConflict) { // a try that was cut off has worked
			return nil
		}
		return err
	})
	if err != nil {
		return place{}, err
	}
	var ip string
	err = a.watch(ctx, podsPath, name, func(_ string, o object) bool {
		ip = o.Status.PodIP
		return ip != "" && o.readySince(time.Time{})
	})
	if err != nil {
		return place{}, err
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return place{}, fmt.Errorf("the address of pod %s: %w", name, err)
	}
	pid, err := podProcess(cgroup, addr)
	if err != nil {
		return place{}, err
	}
	in, err := enter(pid)
	return place{in, addr}, err
}

// podProcess is a process below a node's cgroup that is called pause and whose network has the address of its own.
// Other clusters of this machine may have a pod with the same address.
func podProcess(cgroup string, addr netip.Addr) (int, error) {
	cg, err := platform.DetectCgroups()
	if err != nil {
		return 0, err
	}
	pids, err := cg.At(cgroup).Procs()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if strings.TrimSpace(text(fmt.Sprintf("/proc/%d/comm", pid))) == "pause" &&
			slices.Contains(localAddrs(text(fmt.Sprintf("/proc/%d/net/fib_trie", pid))), addr) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("finding the network of the pod with the address %s: none of %d processes in %s has it", addr, len(pids), cgroup)
}

// localAddrs are the IPv4 addresses of a network namespace, from its fib_trie: a leaf is a line "|-- ADDRESS", and what
// is known of it stands in the lines below, one "/LENGTH SCOPE TYPE" each.
func localAddrs(trie string) []netip.Addr {
	var out []netip.Addr
	var leaf netip.Addr
	for line := range strings.Lines(trie) {
		line = strings.TrimSpace(line)
		if a, ok := strings.CutPrefix(line, "|-- "); ok {
			leaf, _ = netip.ParseAddr(a)
			continue
		}
		if line == "/32 host LOCAL" && leaf.IsValid() && !slices.Contains(out, leaf) { // every table has it
			out = append(out, leaf)
		}
	}
	return out
}

// leave ends our stay in all the places.
func leave(places ...place) {
	for _, p := range places {
		if p.in != nil {
			p.in.close()
		}
	}
}

// at is a port of the place.
func (p place) at(port uint16) string { return netip.AddrPortFrom(p.addr, port).String() }

// on adds the node and labels to a pod's manifest.
func on(node string, labels map[string]string, pod map[string]any) (map[string]any, error) {
	meta, ok := pod["metadata"].(map[string]any)
	spec, ok2 := pod["spec"].(map[string]any)
	if !ok || !ok2 {
		return nil, errors.New("the manifest of a pod has no metadata or spec")
	}
	meta["labels"], spec["nodeName"] = labels, node
	return pod, nil
}
