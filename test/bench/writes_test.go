package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// mapServer knows ConfigMaps as an API server does: it tells watches what there is, and then what is new.
type mapServer struct {
	mu      sync.Mutex
	bodies  map[string]string
	same    int // PUTs that change nothing
	watches []chan string
}

func (s *mapServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Query().Get("watch") != "" {
		events := make(chan string, 1000)
		s.mu.Lock()
		for name := range s.bodies {
			events <- name
		}
		s.watches = append(s.watches, events)
		s.mu.Unlock()
		w.WriteHeader(http.StatusOK)
		for {
			select {
			case name := <-events:
				fmt.Fprintf(w, `{"type":"ADDED","object":{"metadata":{"name":%q}}}`+"\n", name)
				w.(http.Flusher).Flush()
			case <-req.Context().Done():
				return
			}
		}
	}
	var o struct {
		Metadata struct{ Name string }
		Data     map[string]string
	}
	if err := json.NewDecoder(req.Body).Decode(&o); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name, body := o.Metadata.Name, fmt.Sprint(o.Data)
	s.mu.Lock()
	defer s.mu.Unlock()
	was, there := s.bodies[name]
	switch {
	case req.Method == http.MethodPost && there:
		w.WriteHeader(http.StatusConflict)
		return
	case req.Method == http.MethodPut && !strings.HasSuffix(req.URL.Path, "/"+name):
		w.WriteHeader(http.StatusNotFound)
		return
	case req.Method == http.MethodPut && was == body:
		s.same++
	case req.Method == http.MethodPost:
		for _, events := range s.watches {
			events <- name
		}
	}
	s.bodies[name] = body
}

func newMapServer(t *testing.T) (*mapServer, *api) {
	t.Helper()
	s := &mapServer{bodies: map[string]string{}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, &api{base: server.URL, http: server.Client()}
}

func TestEachWriterChangesItsOwnObject(t *testing.T) {
	s, a := newMapServer(t)
	for _, writers := range []int{1, 4} {
		took, err := writeLoad(t.Context(), a, writers, 10*time.Millisecond, time.Second)
		if err != nil || len(took) == 0 {
			t.Fatalf("%d writers: %d writes, %v", writers, len(took), err)
		}
		if len(s.bodies) != writers {
			t.Errorf("%d writers have %d objects", writers, len(s.bodies))
		}
	}
	if s.same > 0 {
		t.Errorf("%d writes changed nothing", s.same)
	}
}

func TestEveryWriteIsSeenAtTheWatch(t *testing.T) {
	s, a := newMapServer(t)
	s.bodies["there-before"] = ""
	took, err := watchLatency(t.Context(), a, 5)
	if err != nil || len(took) != 5 {
		t.Fatalf("%v, %v", took, err)
	}
	if len(s.bodies) != 7 { // and one to see that the watch is open
		t.Errorf("%d objects", len(s.bodies))
	}
}

func TestAFailedWriteEndsTheWriters(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	a := &api{base: server.URL, http: server.Client()}
	if _, err := writeLoad(t.Context(), a, 3, 0, time.Minute); !answered(err, http.StatusNotFound) {
		t.Errorf("writers: %v", err)
	}
	if _, err := watchLatency(t.Context(), a, 3); !answered(err, http.StatusNotFound) {
		t.Errorf("the watch: %v", err)
	}
}
