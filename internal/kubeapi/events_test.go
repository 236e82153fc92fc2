package kubeapi

import (
	"encoding/json"
	"net/http"
	"reflect"
	"testing"
	"time"
)

func TestAnEventAboutANodeIsWhereUpstreamsAre(t *testing.T) {
	var asked string
	var got map[string]any
	c := asks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{}`))
	}))
	at := time.Date(2026, 11, 22, 2, 0, 0, 0, time.UTC)
	if err := c.WarnOfNode(t.Context(), NodeEvent{Node: "server-2", Reason: "Gone", Message: "it is gone", At: at}); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"generateName": "server-2.", "namespace": "default"},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Node", "name": "server-2", "uid": "server-2"},
		"reason":         "Gone", "message": "it is gone", "type": "Warning",
		"source":         map[string]any{"component": "k1s"},
		"firstTimestamp": "2026-11-22T02:00:00Z", "lastTimestamp": "2026-11-22T02:00:00Z", "count": 1.0,
	}
	if asked != "POST /api/v1/namespaces/default/events" || !reflect.DeepEqual(got, want) {
		t.Errorf("%s\n%v\nwant\n%v", asked, got, want)
	}
}
