// Package kubeapi is the handful of questions the daemon asks its own API server, over plain HTTP: is
// the node Ready, which pods run here, with which keys are Secrets written. It is not a client library; whatever needs one lives in the
// payload, where client-go is.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"k1s.io/k1s/internal/pki"
)

// Client asks one API server with one client certificate. The certificate and the CA are read for each new
// connection, so that renewed ones are used without a restart.
type Client struct {
	base string
	http *http.Client
}

// New looks whether there is a CA; it, certificate and key are read when needed.
func New(server, caFile, certFile, keyFile string) (*Client, error) {
	return NewNamed(server, "", caFile, certFile, keyFile)
}

// NewNamed is New for a server whose certificate is for another name than its address; "" is the address.
func NewNamed(server, name, caFile, certFile, keyFile string) (*Client, error) {
	if _, err := pki.Pool(caFile); err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		pool, err := pki.Pool(caFile)
		if err != nil {
			return nil, err
		}
		d := tls.Dialer{Config: &tls.Config{
			RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				c, err := tls.LoadX509KeyPair(certFile, keyFile)
				return &c, err
			},
		}}
		return d.DialContext(ctx, network, addr)
	}
	return &Client{base: server, http: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			Proxy:           nil,
			IdleConnTimeout: 5 * time.Second,
			DialTLSContext:  dial,
		},
	}}, nil
}

// Node is the little we read of a node.
type Node struct {
	Metadata struct {
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR       string `json:"podCIDR"`
		Unschedulable bool   `json:"unschedulable"`
	} `json:"spec"`
	Status struct {
		Conditions []Condition `json:"conditions"`
		Addresses  []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
		NodeInfo struct {
			KubeletVersion          string `json:"kubeletVersion"`
			Architecture            string `json:"architecture"` // as Go has it
			ContainerRuntimeVersion string `json:"containerRuntimeVersion"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

// Condition is a condition of a node or pod.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// LastHeartbeatTime is when the kubelet reported it last; only nodes' conditions have it.
	LastHeartbeatTime time.Time `json:"lastHeartbeatTime"`
}

// Ready is nil when the node has said so since a time, else the reason it is not. What a node said before
// its kubelet was started is still in the database, and no longer true.
func (n Node) Ready(since time.Time) error {
	for _, c := range n.Status.Conditions {
		if c.Type != "Ready" {
			continue
		}
		switch {
		case c.LastHeartbeatTime.Before(since.Truncate(time.Second)): // the report has whole seconds
			return fmt.Errorf("the kubelet has not reported since it was started")
		case c.Status == "True":
			return nil
		default:
			return fmt.Errorf("%s", c.Message)
		}
	}
	return fmt.Errorf("the kubelet has not reported yet")
}

// Node gets one node. An answer of 404 is an error that says so.
func (c *Client) Node(ctx context.Context, name string) (Node, error) {
	var n Node
	err := c.get(ctx, "/api/v1/nodes/"+url.PathEscape(name)+"?resourceVersion=0", &n)
	return n, err
}

// Pod is the little we read of a pod.
type Pod struct {
	Metadata struct {
		Namespace         string  `json:"namespace"`
		Name              string  `json:"name"`
		DeletionTimestamp *string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Status struct {
		Phase      string      `json:"phase"`
		Conditions []Condition `json:"conditions"`
	} `json:"status"`
}

// Ready tells that the pod is Ready, or ended well.
func (p Pod) Ready() bool {
	if p.Status.Phase == "Succeeded" {
		return true
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// Pods lists the pods bound to a node, from the API server's cache.
func (c *Client) Pods(ctx context.Context, node string) ([]Pod, error) {
	var list struct {
		Items []Pod `json:"items"`
	}
	q := url.Values{"fieldSelector": {"spec.nodeName=" + node}, "resourceVersion": {"0"}}
	err := c.get(ctx, "/api/v1/pods?"+q.Encode(), &list)
	return list.Items, err
}

// LabelNode sets a label of a node, with the daemon's authority: some labels a kubelet may not give itself.
func (c *Client) LabelNode(ctx context.Context, name, key, value string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{key: value}}})
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPatch, "/api/v1/nodes/"+url.PathEscape(name), patch, &struct{}{})
}

// PatchNode merges something into a node. An error of kind errs.NotFound says that it is not there, of errs.Exists that it is not any more as it
// was with the resourceVersion in the patch.
func (c *Client) PatchNode(ctx context.Context, name string, patch any) error {
	b, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return kind(c.do(ctx, http.MethodPatch, "/api/v1/nodes/"+url.PathEscape(name), b, &struct{}{}))
}

// Nodes lists all nodes, from the datastore itself.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var list page[Node]
	err := c.get(ctx, "/api/v1/nodes", &list)
	return list.Items, err
}

// DeleteNode removes a node from the cluster. An error of kind errs.NotFound says that it is not there, of errs.Exists that another one has its
// name, which is not the one with the uid; with "" it is whichever there is.
func (c *Client) DeleteNode(ctx context.Context, name, uid string) error {
	return c.delete(ctx, "/api/v1/nodes/"+url.PathEscape(name), uid)
}

func (c *Client) delete(ctx context.Context, path, uid string) error {
	var body []byte
	if uid != "" {
		var err error
		if body, err = json.Marshal(map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": map[string]string{"uid": uid}}); err != nil {
			return err
		}
	}
	return kind(c.do(ctx, http.MethodDelete, path, body, &struct{}{}))
}

func (c *Client) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// Version is that of the API server that answers, as v1.36.3.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	err := c.get(ctx, "/version", &v)
	return v.GitVersion, err
}

// StatusError is an answer of the API server that is no success.
type StatusError struct {
	Code    int
	Message string // "" where it gave none
	// Continue goes on with a list whose own token has expired, from the state of now.
	Continue string
}

func (e *StatusError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the API server answers %d", e.Code)
	}
	return fmt.Sprintf("the API server answers %d: %s", e.Code, e.Message)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	return c.ask(ctx, method, path, "application/json", body, func(answer io.Reader) error {
		return json.NewDecoder(answer).Decode(out)
	})
}

func (c *Client) ask(ctx context.Context, method, path, accept string, body []byte, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Accept", accept)
	switch method {
	case http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case http.MethodPut, http.MethodPost, http.MethodDelete:
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer func() {
		// Read to the end, or the API server takes it for a client that went away.
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
	}()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		var st struct {
			Message  string `json:"message"`
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
		}
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if json.Unmarshal(answer, &st) != nil {
			st.Message = ""
		}
		return &StatusError{Code: resp.StatusCode, Message: st.Message, Continue: st.Metadata.Continue}
	}
	if err := read(resp.Body); err != nil {
		return fmt.Errorf("reading the API server's answer to %s: %w", req.URL.Path, err)
	}
	return nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }
