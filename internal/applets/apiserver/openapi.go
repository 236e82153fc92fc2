package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	restful "github.com/emicklei/go-restful/v3"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	basecompatibility "k8s.io/component-base/compatibility"
	utilversion "k8s.io/component-base/version"
	"k8s.io/klog/v2"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
)

const (
	pathV2 = "/openapi/v2"
	pathV3 = "/openapi/v3"

	// keepDocument is how long a document stays in memory after its last use. Clients ask for several
	// documents in a row and then keep what they got.
	keepDocument = 2 * time.Minute
)

// documents serves the OpenAPI documents of the built-in APIs in place of upstream's own installation, which
// builds all of them while the server starts and keeps them: half of its start-up CPU and 45 of 85 MB
// live heap. Here a document is built by the same upstream functions when it is first asked for, and let go
// when nobody has asked for a while. Custom resources and aggregated APIs are not concerned: upstream's
// aggregator asks this handler as it asks theirs.
//
// The index at /openapi/v3 names each document with a hash of its content, which clients put into the URL to
// cache it for good. Content is not known before it is built, so the hash is taken of what determines it: the
// modules the program was built from, the switched features, and the routes of the group.
type documents struct {
	v2     *common.Config
	v3     *common.OpenAPIV3Config
	inputs string // what determines the documents besides the routes

	services func() []*restful.WebService
	index    func() (*index, error) // computed once, when every route is there

	mu   sync.Mutex // guards kept
	kept map[string]*document

	building sync.Mutex // one at a time: each takes the definitions of all types into memory, 7 MB
}

// newDocuments prepares the configurations of the servers to be built, which share them, so that they keep
// as little as may be. Install comes next.
func newDocuments(v2 *common.Config, v3 *common.OpenAPIV3Config, inputs string) *documents {
	// Where it is missing the first builder puts in a function that keeps the builder, and with it the
	// definitions of all types, 7 MB.
	v2.GetOperationIDAndTagsFromRoute = fromRoute(v2.GetOperationIDAndTags)
	v3.GetOperationIDAndTagsFromRoute = fromRoute(v3.GetOperationIDAndTags)
	return &documents{v2: v2, v3: v3, inputs: inputs, kept: map[string]*document{}}
}

func fromRoute(f func(*restful.Route) (string, []string, error)) func(common.Route) (string, []string, error) {
	if f == nil {
		return nil
	}
	return func(r common.Route) (string, []string, error) {
		adapter, ok := r.(*restfuladapter.RouteAdapter)
		if !ok {
			return "", nil, fmt.Errorf("naming an operation: the route is a %T", r)
		}
		return f(adapter.Route)
	}
}

// install puts the handlers where upstream would have put its own. The routes are asked for at the first request.
func (d *documents) install(services func() []*restful.WebService, m *mux.PathRecorderMux) {
	d.services = services
	d.index = sync.OnceValues(func() (*index, error) { return newIndex(d.inputs, services()) })
	m.Handle(pathV2, http.HandlerFunc(d.serveV2))
	m.Handle(pathV3, http.HandlerFunc(d.serveIndex))
	m.HandlePrefix(pathV3+"/", http.HandlerFunc(d.serveV3))
}

// prepared says that the servers are built: from here on only documents need the definitions of types, and each
// gets its own.
func (d *documents) prepared() {
	if d != nil {
		d.v3.Definitions = nil
	}
}

func (d *documents) serveV2(w http.ResponseWriter, r *http.Request) {
	d.serve(w, r, pathV2, d.buildV2)
}

func (d *documents) serveIndex(w http.ResponseWriter, r *http.Request) {
	ix, err := d.index()
	if err != nil {
		failed(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Etag", strconv.Quote(ix.etag))
	http.ServeContent(w, r, pathV3, ix.since, strings.NewReader(ix.json))
}

// serveV3 answers as upstream's handler3.OpenAPIService does, but for the hash.
func (d *documents) serveV3(w http.ResponseWriter, r *http.Request) {
	ix, err := d.index()
	if err != nil {
		failed(w, r, err)
		return
	}
	group := strings.TrimPrefix(r.URL.Path, pathV3+"/")
	g, ok := ix.groups[group]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if hash := r.URL.Query().Get("hash"); hash != "" {
		if hash != g.hash {
			http.Redirect(w, r, documentURL(group, g.hash), http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
		// Upstream's handler would compare it with a hash of the content.
		r = r.Clone(r.Context())
		r.URL.RawQuery = ""
	}
	d.serve(w, r, group, func() (http.Handler, error) { return d.buildV3(g.service) })
}

// document is one document with its JSON and protobuf forms, which upstream's handler makes on demand.
type document struct {
	http.Handler
	err   error
	build sync.Once
	drop  *time.Timer // removes it from kept; no document outlives its timer by more than the requests it serves
}

func (d *documents) serve(w http.ResponseWriter, r *http.Request, name string, build func() (http.Handler, error)) {
	d.mu.Lock()
	doc := d.kept[name]
	if doc == nil {
		doc = &document{}
		doc.drop = time.AfterFunc(keepDocument, func() { d.forget(name, doc) })
		d.kept[name] = doc
	} else {
		doc.drop.Reset(keepDocument)
	}
	d.mu.Unlock()
	doc.build.Do(func() {
		d.building.Lock()
		defer d.building.Unlock()
		doc.err = fmt.Errorf("building the OpenAPI document %s failed", name) // should it panic
		doc.Handler, doc.err = build()
	})
	if doc.err != nil {
		d.forget(name, doc)
		failed(w, r, doc.err)
		return
	}
	doc.ServeHTTP(w, r)
}

func (d *documents) forget(name string, doc *document) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept[name] == doc {
		delete(d.kept, name)
	}
	doc.drop.Stop()
}

// buildV2 is upstream's routes.OpenAPI.InstallV2, which would end the process where this returns an error.
func (d *documents) buildV2() (http.Handler, error) {
	swagger, err := builder.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(d.services()), d.v2)
	if err != nil {
		return nil, fmt.Errorf("building the OpenAPI v2 document: %w", err)
	}
	swagger.Definitions = handler.PruneDefaults(swagger.Definitions)
	m := mux.NewPathRecorderMux("openapi")
	handler.NewOpenAPIService(swagger).RegisterOpenAPIVersionedService(pathV2, m)
	return m, nil
}

func (d *documents) buildV3(service *restful.WebService) (http.Handler, error) {
	only := restful.NewContainer()
	only.Add(service)
	m := mux.NewPathRecorderMux("openapi")
	// It logs what it cannot build and leaves it out, so that the document is missing from its index.
	routes.OpenAPI{V3Config: d.v3}.InstallV3(only, m)
	return m, nil
}

// index is what /openapi/v3 answers.
type index struct {
	groups map[string]group // by path without the first slash: api/v1, apis/apps/v1, version …
	json   string
	etag   string
	since  time.Time
}

// ofEveryServer is the one document that the servers behind and before this one have too. They name it with a hash of its
// content, and upstream's aggregator lists the one it has seen last: with ours among them, its name would be chance.
const ofEveryServer = "version"

type group struct {
	hash    string
	service *restful.WebService
}

func newIndex(inputs string, services []*restful.WebService) (*index, error) {
	ix := &index{groups: map[string]group{}, since: time.Now()}
	answer := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for _, s := range services {
		name := strings.TrimPrefix(s.RootPath(), "/")
		if name == ofEveryServer {
			continue
		}
		hash := hashOf(inputs, s)
		ix.groups[name] = group{hash: hash, service: s}
		answer.Paths[name] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: documentURL(name, hash)}
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("writing the index of OpenAPI documents: %w", err)
	}
	sum := sha256.Sum256(text)
	ix.json, ix.etag = string(text), hex.EncodeToString(sum[:])
	return ix, nil
}

// hashOf identifies the document of a group.
func hashOf(inputs string, service *restful.WebService) string {
	lines := make([]string, 0, len(service.Routes()))
	for _, r := range service.Routes() {
		lines = append(lines, fmt.Sprintf("%s %s %s %T %T", r.Method, r.Path, r.Operation, r.ReadSample, r.WriteSample))
	}
	slices.Sort(lines)
	h := sha256.New()
	io.WriteString(h, inputs)
	for _, l := range lines {
		io.WriteString(h, "\n"+l)
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

func documentURL(group, hash string) string {
	u := url.URL{Path: pathV3 + "/" + group, RawQuery: url.Values{"hash": {hash}}.Encode()}
	return u.String()
}

// documentInputs says what the documents of this process are made from, besides their routes.
func documentInputs(registry basecompatibility.ComponentGlobalsRegistry) string {
	var b strings.Builder
	fmt.Fprintln(&b, utilversion.Get().GitVersion) // stands in every document
	if info, ok := debug.ReadBuildInfo(); ok {
		fmt.Fprintln(&b, info) // Go's version and every module's
	}
	const component = basecompatibility.DefaultKubeComponent
	if version := registry.EffectiveVersionFor(component); version != nil {
		fmt.Fprintln(&b, version)
	}
	if gate := registry.FeatureGateFor(component); gate != nil {
		var features []string
		for feature := range gate.DeepCopy().GetAll() {
			features = append(features, fmt.Sprintf("%s=%t", feature, gate.Enabled(feature)))
		}
		slices.Sort(features)
		fmt.Fprintln(&b, strings.Join(features, ","))
	}
	return b.String()
}

func failed(w http.ResponseWriter, r *http.Request, err error) {
	klog.FromContext(r.Context()).Error(err, "OpenAPI document not served", "path", r.URL.Path)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}
