package kubeapi

import (
	"encoding/json"
	"net/http"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestAConfigMapIsMadeOnceAndReplacedAsItWasRead(t *testing.T) {
	asked := ""
	c := asks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path
		switch r.Method {
		case http.MethodGet:
			_, _ = w.Write([]byte(`{"metadata":{"name":"m","resourceVersion":"7"},"data":{"k":"v"}}`))
		case http.MethodPut:
			var m ConfigMap
			if err := json.NewDecoder(r.Body).Decode(&m); err != nil || m.Metadata.ResourceVersion != "7" || m.Data["k"] != "w" {
				t.Errorf("written %+v, %v", m, err)
			}
			_, _ = w.Write([]byte(`{}`))
		default:
			w.WriteHeader(http.StatusConflict)
		}
	}))
	m, err := c.ConfigMap(t.Context(), "kube-system", "m")
	if err != nil || m.Data["k"] != "v" || asked != "GET /api/v1/namespaces/kube-system/configmaps/m" {
		t.Fatalf("%s: %+v, %v", asked, m, err)
	}
	m.Data["k"] = "w"
	if err := c.WriteConfigMap(t.Context(), "kube-system", m); err != nil || asked != "PUT /api/v1/namespaces/kube-system/configmaps/m" {
		t.Errorf("%s: %v", asked, err)
	}
	m.Metadata.ResourceVersion = ""
	if err := c.WriteConfigMap(t.Context(), "kube-system", m); !errs.Is(err, errs.Exists) || asked != "POST /api/v1/namespaces/kube-system/configmaps" {
		t.Errorf("%s: %v", asked, err)
	}
}
