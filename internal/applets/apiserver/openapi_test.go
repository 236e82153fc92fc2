package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	restful "github.com/emicklei/go-restful/v3"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/client-go/rest"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler3"

	"k1s.io/k1s/internal/applets/apiservertest"
)

// answer is what a client sees of a response.
type answer struct {
	code    int
	kind    string // Content-Type
	body    string
	headers http.Header
}

func get(t *testing.T, c *http.Client, url, accept string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	response, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header.Get("Content-Type"), string(body), response.Header}
}

const (
	asJSON = "application/json"
	asV2PB = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	asV3PB = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// published is every document of a server by its path, in both forms, and the index.
func published(t *testing.T, c *rest.Config) (documents map[string]string, paths map[string]handler3.OpenAPIV3DiscoveryGroupVersion) {
	t.Helper()
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	documents = map[string]string{}
	fetch := func(path, accept string) string {
		a := get(t, client, c.Host+path, accept)
		if a.code != http.StatusOK || a.body == "" {
			t.Fatalf("GET %s as %s: %d, %d bytes", path, accept, a.code, len(a.body))
		}
		return a.body
	}
	documents["v2 as JSON"] = fetch(pathV2, asJSON)
	documents["v2 as protobuf"] = fetch(pathV2, asV2PB)
	var ix handler3.OpenAPIV3Discovery
	if err := json.Unmarshal([]byte(fetch(pathV3, asJSON)), &ix); err != nil {
		t.Fatal(err)
	}
	for name, g := range ix.Paths {
		documents[name+" as JSON"] = fetch(g.ServerRelativeURL, asJSON)
		documents[name+" as protobuf"] = fetch(g.ServerRelativeURL, asV3PB)
	}
	return documents, ix.Paths
}

func TestEveryDocumentIsTheOneUpstreamServes(t *testing.T) {
	if os.Getenv(apiservertest.KubeVar) == "" {
		t.Skipf("needs a k1s-kube program; name it in %s", apiservertest.KubeVar)
	}
	var upstream, ours map[string]string
	var before, again map[string]handler3.OpenAPIV3DiscoveryGroupVersion
	t.Run("upstream", func(t *testing.T) { upstream, _ = published(t, apiservertest.Start(t, EnvUpstreamHooks+"=1")) })
	t.Run("k1s", func(t *testing.T) { ours, before = published(t, apiservertest.Start(t)) })
	t.Run("k1s again", func(t *testing.T) { _, again = published(t, apiservertest.Start(t)) })
	if len(upstream) < 80 {
		t.Fatalf("upstream serves %d documents, expected more", len(upstream))
	}
	names := slices.Collect(maps.Keys(upstream))
	for name := range ours {
		if _, ok := upstream[name]; !ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if upstream[name] != ours[name] {
			t.Errorf("%s: upstream's document has %d bytes, ours %d, or they differ", name, len(upstream[name]), len(ours[name]))
		}
	}
	if !maps.Equal(before, again) {
		t.Error("the same program names its documents otherwise after a restart, so that clients load them again")
		for name := range again {
			if before[name] != again[name] {
				t.Errorf("%s: %v, then %v", name, before[name], again[name])
			}
		}
		for name := range before {
			if _, ok := again[name]; !ok {
				t.Errorf("%s is gone: %v", name, before[name])
			}
		}
	}
}

// oneService serves documents of /apis/example.com/v1 with one route; builds counts how often they were built.
func oneService(t *testing.T, operation string, builds *int) (*documents, *httptest.Server) {
	t.Helper()
	ws := new(restful.WebService).Path("/apis/example.com/v1")
	ws.Route(ws.GET("/things").Operation(operation).To(func(*restful.Request, *restful.Response) {}))
	definitions := func(common.ReferenceCallback) map[string]common.OpenAPIDefinition {
		*builds++
		return nil
	}
	d := newDocuments(&common.Config{GetDefinitions: definitions}, &common.OpenAPIV3Config{GetDefinitions: definitions}, "test")
	m := mux.NewPathRecorderMux("test")
	d.install(func() []*restful.WebService { return []*restful.WebService{ws} }, m)
	d.prepared()
	s := httptest.NewServer(m)
	t.Cleanup(s.Close)
	s.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return d, s
}

func TestADocumentIsBuiltWhenItIsAskedForAndForgottenLater(t *testing.T) {
	var builds int
	d, s := oneService(t, "listThings", &builds)
	var ix handler3.OpenAPIV3Discovery
	if err := json.Unmarshal([]byte(get(t, s.Client(), s.URL+pathV3, asJSON).body), &ix); err != nil {
		t.Fatal(err)
	}
	if builds != 0 || len(ix.Paths) != 1 {
		t.Fatalf("the index was answered with %d builds and has the paths %v", builds, ix.Paths)
	}
	u := s.URL + ix.Paths["apis/example.com/v1"].ServerRelativeURL
	first := get(t, s.Client(), u, asJSON)
	if first.code != http.StatusOK || !strings.Contains(first.body, "/apis/example.com/v1/things") || first.headers.Get("Cache-Control") != "public, immutable" {
		t.Fatalf("GET %s: %+v", u, first)
	}
	after := builds
	if again := get(t, s.Client(), u, asJSON); again.body != first.body || builds != after {
		t.Errorf("a kept document was built again, or is another: %+v", again)
	}
	doc := d.kept["apis/example.com/v1"]
	d.forget("apis/example.com/v1", doc)
	if again := get(t, s.Client(), u, asJSON); again.body != first.body || builds == after {
		t.Errorf("a forgotten document was not built again, or is another: %+v", again)
	}
	if v2 := get(t, s.Client(), s.URL+pathV2, asJSON); v2.code != http.StatusOK || !strings.Contains(v2.body, "/apis/example.com/v1/things") {
		t.Errorf("GET %s: %+v", pathV2, v2)
	}
}

func TestAnOldHashIsSentToTheDocumentOfNow(t *testing.T) {
	var builds int
	_, s := oneService(t, "listThings", &builds)
	a := get(t, s.Client(), s.URL+pathV3+"/apis/example.com/v1?hash=OLD", asJSON)
	if a.code != http.StatusMovedPermanently || builds != 0 {
		t.Fatalf("%+v after %d builds", a, builds)
	}
	if b := get(t, s.Client(), s.URL+a.headers.Get("Location"), asJSON); b.code != http.StatusOK {
		t.Errorf("following %s: %+v", a.headers.Get("Location"), b)
	}
	if c := get(t, s.Client(), s.URL+pathV3+"/apis/example.com/v2", asJSON); c.code != http.StatusNotFound {
		t.Errorf("a group that is not there: %+v", c)
	}
	if c := get(t, s.Client(), s.URL+pathV3+"/apis/example.com/v1", "text/html"); c.code != http.StatusNotAcceptable {
		t.Errorf("a form that is not there: %+v", c)
	}
}

func TestTheHashFollowsRoutesAndInputs(t *testing.T) {
	var builds int
	d, _ := oneService(t, "listThings", &builds)
	other, _ := oneService(t, "listOthers", &builds)
	hash := hashOf("test", d.services()[0])
	if hash != hashOf("test", d.services()[0]) {
		t.Error("the same routes have two hashes")
	}
	if hash == hashOf("test", other.services()[0]) || hash == hashOf("another program", d.services()[0]) {
		t.Error("other routes, or another program, have the same hash")
	}
}

func TestConcurrentRequestsBuildADocumentOnce(t *testing.T) {
	var builds int
	_, s := oneService(t, "listThings", &builds)
	get(t, s.Client(), s.URL+pathV3+"/apis/example.com/v1", asJSON)
	one := builds
	_, s = oneService(t, "listThings", &builds)
	builds = 0
	done := make(chan struct{})
	for range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			r, err := s.Client().Get(s.URL + pathV3 + "/apis/example.com/v1")
			if err != nil {
				t.Error(err)
				return
			}
			_ = r.Body.Close()
		}()
	}
	for range 8 {
		<-done
	}
	if builds != one {
		t.Errorf("%d builds for eight requests, %d for one", builds, one)
	}
}

func TestABuildThatPanicsIsAnErrorForOthersAndTriedAgain(t *testing.T) {
	d := newDocuments(&common.Config{}, &common.OpenAPIV3Config{}, "test")
	ask := func(build func() (http.Handler, error)) int {
		w := httptest.NewRecorder()
		func() {
			defer func() { _ = recover() }() // as net/http does
			d.serve(w, httptest.NewRequest(http.MethodGet, pathV2, nil), pathV2, build)
		}()
		return w.Code
	}
	ask(func() (http.Handler, error) { panic("upstream") })
	never := func() (http.Handler, error) { t.Error("built twice"); return nil, nil }
	if code := ask(never); code != http.StatusInternalServerError {
		t.Errorf("the document that could not be built: %d", code)
	}
	fine := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	if code := ask(func() (http.Handler, error) { return fine, nil }); code != http.StatusNoContent {
		t.Errorf("the next try: %d", code)
	}
}

func TestDocumentsAreBuiltOneAfterTheOther(t *testing.T) {
	d := newDocuments(&common.Config{}, &common.OpenAPIV3Config{}, "test")
	var now, most atomic.Int32
	build := func() (http.Handler, error) {
		most.Store(max(most.Load(), now.Add(1)))
		runtime.Gosched()
		now.Add(-1)
		return http.NotFoundHandler(), nil
	}
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			d.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, pathV3, nil), fmt.Sprint(i), build)
		})
	}
	all.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at once", most.Load())
	}
}
