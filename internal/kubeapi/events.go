package kubeapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// NodeEvent is something that has happened to a node, as `kubectl get events` shows it.
type NodeEvent struct {
	Node    string
	Reason  string // one word, CamelCase
	Message string
	At      time.Time
}

// WarnOfNode makes an event of type Warning. As with upstream's own about nodes it is in the namespace default, and the node's name
// stands for its UID, so that one about a node that is gone is shown too.
func (c *Client) WarnOfNode(ctx context.Context, e NodeEvent) error {
	at := e.At.UTC().Format(time.RFC3339)
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"generateName": e.Node + ".", "namespace": "default"},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Node", "name": e.Node, "uid": e.Node},
		"reason":         e.Reason, "message": e.Message, "type": "Warning",
		"source":         map[string]any{"component": "k1s"},
		"firstTimestamp": at, "lastTimestamp": at, "count": 1,
	})
	if err != nil {
		return err
	}
	return kind(c.do(ctx, http.MethodPost, "/api/v1/namespaces/default/events", b, &struct{}{}))
}
