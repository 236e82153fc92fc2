package kubeapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Secret is what we read and write of a Secret.
type Secret struct {
	Metadata SecretMeta        `json:"metadata"`
	Type     string            `json:"type"`
	Data     map[string][]byte `json:"data"`
}

// SecretMeta is the metadata of a Secret. With a ResourceVersion, a Secret that has changed since is not replaced, with a
// UID another one of that name.
type SecretMeta struct {
	Name              string            `json:"name"`
	UID               string            `json:"uid,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	ResourceVersion   string            `json:"resourceVersion,omitempty"`
	CreationTimestamp time.Time         `json:"creationTimestamp,omitzero"`
}

func secretPath(namespace, name string) string {
	p := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/secrets"
	if name != "" {
		p += "/" + url.PathEscape(name)
	}
	return p
}

// Secret gets one, from the datastore itself. An error of kind errs.NotFound says that it is not there.
func (c *Client) Secret(ctx context.Context, namespace, name string) (Secret, error) {
	var s Secret
	return s, kind(c.get(ctx, secretPath(namespace, name), &s))
}

// Secrets lists those with a label.
func (c *Client) Secrets(ctx context.Context, namespace, label string) ([]Secret, error) {
	var list page[Secret]
	err := c.get(ctx, secretPath(namespace, "")+"?"+url.Values{"labelSelector": {label}}.Encode(), &list)
	return list.Items, kind(err)
}

// CreateSecret fails with kind errs.Exists when there is one of its name.
func (c *Client) CreateSecret(ctx context.Context, namespace string, s Secret) error {
	return c.writeSecret(ctx, http.MethodPost, secretPath(namespace, ""), s)
}

// ReplaceSecret fails with kind errs.Exists when it has changed since s was read.
func (c *Client) ReplaceSecret(ctx context.Context, namespace string, s Secret) error {
	return c.writeSecret(ctx, http.MethodPut, secretPath(namespace, s.Metadata.Name), s)
}

func (c *Client) writeSecret(ctx context.Context, method, path string, s Secret) error {
	b, err := json.Marshal(struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Secret
	}{"v1", "Secret", s})
	if err != nil {
		return err
	}
	return kind(c.do(ctx, method, path, b, &struct{}{}))
}

// DeleteSecret fails with kind errs.NotFound when it is not there, and with errs.Exists when another one has its name, which is not the one with
// the uid; with "" it is whichever there is.
func (c *Client) DeleteSecret(ctx context.Context, namespace, name, uid string) error {
	return c.delete(ctx, secretPath(namespace, name), uid)
}

// Servers are the API servers behind the service "kubernetes", as host:port, sorted. They are in the one object that API servers write
// themselves; another one of that service is somebody else's.
func (c *Client) Servers(ctx context.Context) ([]string, error) {
	var list page[struct {
		Endpoints []struct {
			Addresses []string `json:"addresses"`
		} `json:"endpoints"`
		Ports []struct {
			Port int `json:"port"`
		} `json:"ports"`
	}]
	q := url.Values{"fieldSelector": {"metadata.name=kubernetes"}}
	if err := c.get(ctx, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?"+q.Encode(), &list); err != nil {
		return nil, err
	}
	var out []string
	for _, s := range list.Items {
		for _, p := range s.Ports {
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					out = append(out, net.JoinHostPort(a, strconv.Itoa(p.Port)))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// kind gives answers of the API server the kind that fits.
func kind(err error) error {
	var st *StatusError
	if !errors.As(err, &st) {
		return err
	}
	switch st.Code {
	case http.StatusNotFound:
		return errs.As(errs.NotFound, err)
	case http.StatusConflict:
		return errs.As(errs.Exists, err)
	}
	return err
}
