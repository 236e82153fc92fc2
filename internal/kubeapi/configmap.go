package kubeapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
)

// ConfigMap is what we read and write of a ConfigMap.
type ConfigMap struct {
	Metadata SecretMeta        `json:"metadata"`
	Data     map[string]string `json:"data"`
}

func configMapPath(namespace, name string) string {
	p := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/configmaps"
	if name != "" {
		p += "/" + url.PathEscape(name)
	}
	return p
}

// ConfigMap gets one, from the datastore itself. An error of kind errs.NotFound says that it is not there.
func (c *Client) ConfigMap(ctx context.Context, namespace, name string) (ConfigMap, error) {
	var m ConfigMap
	return m, kind(c.get(ctx, configMapPath(namespace, name), &m))
}

// WriteConfigMap puts one in the place of what was read with its ResourceVersion, or makes it where that is "". An error of
// kind errs.Exists says that somebody else was faster.
func (c *Client) WriteConfigMap(ctx context.Context, namespace string, m ConfigMap) error {
	b, err := json.Marshal(struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		ConfigMap
	}{"v1", "ConfigMap", m})
	if err != nil {
		return err
	}
	method, path := http.MethodPut, configMapPath(namespace, m.Metadata.Name)
	if m.Metadata.ResourceVersion == "" {
		method, path = http.MethodPost, configMapPath(namespace, "")
	}
	return kind(c.do(ctx, method, path, b, &struct{}{}))
}
