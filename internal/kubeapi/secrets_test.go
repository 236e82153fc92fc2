package kubeapi

import (
	"net/http"
	"slices"
	"testing"
)

func TestServersAreThoseThatAPIServersTell(t *testing.T) {
	c := asks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Path + " " + r.URL.Query().Get("fieldSelector"); got != "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices metadata.name=kubernetes" {
			t.Errorf("asked for %s", got)
		}
		_, _ = w.Write([]byte(`{"items":[{"endpoints":[{"addresses":["10.0.0.2"]},{"addresses":["10.0.0.1"]}],"ports":[{"port":6443}]}]}`))
	}))
	if got, err := c.Servers(t.Context()); err != nil || !slices.Equal(got, []string{"10.0.0.1:6443", "10.0.0.2:6443"}) {
		t.Errorf("%v, %v", got, err)
	}
}
