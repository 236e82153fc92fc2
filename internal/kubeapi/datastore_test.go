package kubeapi

import (
	"maps"
	"net/http"
	"testing"
)

func TestTheDatastoreIsAskedThroughTheAPIServer(t *testing.T) {
	c := asks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/namespaces":
			_, _ = w.Write([]byte(`{"metadata":{"resourceVersion":"4711"},"items":[{"metadata":{"name":"default","uid":"1"}},{"metadata":{"name":"kube-system","uid":"2"}}]}`))
		case "/metrics":
			_, _ = w.Write([]byte("# TYPE apiserver_storage_size_bytes gauge\napiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} 1.2345678e+07\nother 1\n"))
		}
	}))
	if rev, err := c.Revision(t.Context()); err != nil || rev != 4711 {
		t.Errorf("Revision: %d, %v", rev, err)
	}
	if n, err := c.DatastoreBytes(t.Context()); err != nil || n != 12_345_678 {
		t.Errorf("DatastoreBytes: %d, %v", n, err)
	}
	if all, err := c.Namespaces(t.Context()); err != nil || !maps.Equal(all, map[string]string{"default": "1", "kube-system": "2"}) {
		t.Errorf("Namespaces: %v, %v", all, err)
	}
}
