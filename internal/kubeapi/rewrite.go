package kubeapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const (
	// pageSize bounds what is in memory at once: a Secret may have a megabyte.
	pageSize = 25
	// namesPageSize is that of lists of names only.
	namesPageSize = 500
	// maxPasses bounds how often everything is written again. The second finds nothing, unless something changes
	// objects whenever they are written.
	maxPasses = 3
)

// object is what we read of any object in a list.
type object struct {
	Metadata struct {
		Namespace       string `json:"namespace"`
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
}

type page[T any] struct {
	Metadata struct {
		Continue           string `json:"continue"`
		RemainingItemCount int    `json:"remainingItemCount"`
	} `json:"metadata"`
	Items []T `json:"items"`
}

// Readable lists all objects of a resource of the core API, and tells why it could not: one that cannot be decrypted
// fails the whole list.
func (c *Client) Readable(ctx context.Context, resource string) error {
	// Names only: nothing of the objects is needed.
	const accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
	token := ""
	for {
		var p page[struct{}]
		q := url.Values{"limit": {strconv.Itoa(namesPageSize)}, "continue": {token}}
		err := c.ask(ctx, http.MethodGet, "/api/v1/"+resource+"?"+q.Encode(), accept, nil, func(r io.Reader) error { return json.NewDecoder(r).Decode(&p) })
		if err != nil {
			if token, err = expired(err); err != nil {
				return fmt.Errorf("listing %s: %w", resource, err)
			}
			continue
		}
		if token = p.Metadata.Continue; token == "" {
			return nil
		}
	}
}

// expired gives the token to go on with where err says that the last one has expired, else err.
func expired(err error) (string, error) {
	var st *StatusError
	if errors.As(err, &st) && st.Code == http.StatusGone && st.Continue != "" {
		return st.Continue, nil
	}
	return "", err
}

// Rewritten counts objects.
type Rewritten struct {
	Objects int // in the last pass
	Written int // of all passes: those that were not as the API server would write them
}

// Rewrite writes every object of a resource of the core API as it is, until a pass finds none that the API server
// would write in another way. An unchanged object is written only then: its resource version tells. Objects that
// somebody else changes or deletes meanwhile are left alone, for that wrote them. progress is told how many of how
// many are done.
func (c *Client) Rewrite(ctx context.Context, resource string, progress func(done, all int)) (Rewritten, error) {
	var sum Rewritten
	for range maxPasses {
		pass, err := c.pass(ctx, resource, progress)
		sum.Objects, sum.Written = pass.Objects, sum.Written+pass.Written
		if err != nil || pass.Written == 0 {
			return sum, err
		}
	}
	return sum, nil
}

func (c *Client) pass(ctx context.Context, resource string, progress func(done, all int)) (Rewritten, error) {
	var sum Rewritten
	var failed []error
	for token := ""; ; {
		var p page[json.RawMessage]
		q := url.Values{"limit": {strconv.Itoa(pageSize)}, "continue": {token}}
		if err := c.get(ctx, "/api/v1/"+resource+"?"+q.Encode(), &p); err != nil {
			if token, err = expired(err); err != nil {
				return sum, errors.Join(append(failed, fmt.Errorf("listing %s: %w", resource, err))...)
			}
			continue
		}
		all := sum.Objects + len(p.Items) + p.Metadata.RemainingItemCount
		for _, raw := range p.Items {
			written, err := c.replace(ctx, resource, raw)
			if err != nil {
				if ctx.Err() != nil {
					return sum, context.Cause(ctx)
				}
				if failed = append(failed, err); len(failed) == 3 {
					return sum, errors.Join(failed...) // most often all fail for one reason
				}
			}
			sum.Objects++
			if written {
				sum.Written++
			}
			progress(sum.Objects, all)
		}
		if token = p.Metadata.Continue; token == "" {
			return sum, errors.Join(failed...)
		}
	}
}

// replace writes one object as it is, and tells whether that changed what the store has.
func (c *Client) replace(ctx context.Context, resource string, raw json.RawMessage) (bool, error) {
	var was, is object
	if err := json.Unmarshal(raw, &was); err != nil {
		return false, fmt.Errorf("reading an object of %s: %w", resource, err)
	}
	m := was.Metadata
	path := "/api/v1/namespaces/" + url.PathEscape(m.Namespace) + "/" + resource + "/" + url.PathEscape(m.Name)
	err := c.do(ctx, http.MethodPut, path, raw, &is)
	var st *StatusError
	switch {
	case err == nil:
		return is.Metadata.ResourceVersion != m.ResourceVersion, nil
	case errors.As(err, &st) && (st.Code == http.StatusConflict || st.Code == http.StatusNotFound):
		return false, nil
	default:
		return false, fmt.Errorf("writing %s %s/%s again: %w", strings.TrimSuffix(resource, "s"), m.Namespace, m.Name, err)
	}
}

// EncryptionConfig is the hash of the EncryptionConfiguration the API server uses, from its metrics.
func (c *Client) EncryptionConfig(ctx context.Context) (string, error) {
	const metric = "apiserver_encryption_config_controller_last_config_info{"
	hash := ""
	err := c.ask(ctx, http.MethodGet, "/metrics", "text/plain", nil, func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			labels, ok := strings.CutPrefix(lines.Text(), metric)
			if !ok {
				continue
			}
			// The other label is called apiserver_id_hash.
			if _, rest, ok := strings.Cut(","+labels, `,hash="`); ok {
				hash, _, _ = strings.Cut(rest, `"`)
			}
		}
		return lines.Err()
	})
	if err == nil && hash == "" {
		err = errors.New("its metrics do not tell which encryption configuration it uses")
	}
	return hash, err
}
