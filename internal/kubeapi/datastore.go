package kubeapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Revision is that of the datastore's last write.
func (c *Client) Revision(ctx context.Context) (int64, error) {
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := c.get(ctx, "/api/v1/namespaces?limit=1", &list); err != nil {
		return 0, err
	}
	return strconv.ParseInt(list.Metadata.ResourceVersion, 10, 64)
}

// DatastoreBytes is the size of the datastore as it tells the API server.
func (c *Client) DatastoreBytes(ctx context.Context) (int64, error) {
	const metric = "apiserver_storage_size_bytes{"
	size := 0.0
	err := c.ask(ctx, http.MethodGet, "/metrics", "text/plain", nil, func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if !strings.HasPrefix(lines.Text(), metric) {
				continue
			}
			_, value, _ := strings.Cut(lines.Text(), "} ")
			var err error
			if size, err = strconv.ParseFloat(value, 64); err != nil {
				return fmt.Errorf("reading the metric %s: %w", lines.Text(), err)
			}
		}
		return lines.Err()
	})
	return int64(size), err
}

// Namespaces are the UIDs of all by their names, from the datastore.
func (c *Client) Namespaces(ctx context.Context) (map[string]string, error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
				UID  string `json:"uid"`
			} `json:"metadata"`
		} `json:"items"`
	}
	if err := c.get(ctx, "/api/v1/namespaces", &list); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, n := range list.Items {
		out[n.Metadata.Name] = n.Metadata.UID
	}
	return out, nil
}
