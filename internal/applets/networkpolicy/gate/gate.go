// Package gate is how the addresses of a pod become known to the node's network policies before its first container
// starts: a CNI plugin, the last one of the list, tells the agent (package networkpolicy) and waits until the pod's
// policies are in force. From the API the agent would hear of the addresses when the pod is running already. Here are what
// the two say to each other and the plugin; no rules, and nothing heavy, as the plugin is a part of k1s-cni.
package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Plugin is the name of the CNI plugin.
const Plugin = "k1s-policy"

// Request is one line of JSON, answered by a Response.
type Request struct {
	// Gone takes back what was told about the container before.
	Gone      bool         `json:"gone,omitempty"`
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid,omitempty"`
	Container string       `json:"container"` // ID of the sandbox
	IPs       []netip.Addr `json:"ips,omitempty"`
}

// Response says how it went.
type Response struct {
	Error string `json:"error,omitempty"` // "" when the policies are in force
}

// How long the plugin waits. The kubelet gives a sandbox minutes, and tries again when it fails.
const (
	// Patience is for an agent that starts, or waits to hear of the pod from the API server.
	Patience = 15 * time.Second
	pause    = 50 * time.Millisecond
)

// Ask sends a request to the agent's socket, waiting for the agent where wait says so.
func Ask(ctx context.Context, socket string, r Request, wait bool) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	for wait && err != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("asking for the pod's network policies: the agent does not answer at %s: %w", socket, err)
		case <-time.After(pause):
		}
		conn, err = d.DialContext(ctx, "unix", socket)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if at, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(at); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return fmt.Errorf("asking for the pod's network policies at %s: %w", socket, err)
	}
	var answer Response
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return fmt.Errorf("asking for the pod's network policies at %s: %w", socket, err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}
