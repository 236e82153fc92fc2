package kubeapi

import (
	"context"
	"net/url"
)

// RootCAs are the bundles that pods are given to verify the API server, by namespace: what upstream's controller manager
// publishes in the ConfigMaps kube-root-ca.crt.
func (c *Client) RootCAs(ctx context.Context) (map[string]string, error) {
	var list page[struct {
		Metadata struct {
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Data map[string]string `json:"data"`
	}]
	q := url.Values{"fieldSelector": {"metadata.name=kube-root-ca.crt"}}
	if err := c.get(ctx, "/api/v1/configmaps?"+q.Encode(), &list); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, cm := range list.Items {
		out[cm.Metadata.Namespace] = cm.Data["ca.crt"]
	}
	return out, nil
}

// ServiceAccountTokens are the Secrets with tokens of service accounts that do not end, as NAMESPACE/NAME: the tokens that
// pods are given are renewed by kubelets, these by nobody.
func (c *Client) ServiceAccountTokens(ctx context.Context) ([]string, error) {
	var list page[struct {
		Metadata struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
	}]
	q := url.Values{"fieldSelector": {"type=kubernetes.io/service-account-token"}}
	if err := c.get(ctx, "/api/v1/secrets?"+q.Encode(), &list); err != nil {
		return nil, err
	}
	var out []string
	for _, s := range list.Items {
		out = append(out, s.Metadata.Namespace+"/"+s.Metadata.Name)
	}
	return out, nil
}
