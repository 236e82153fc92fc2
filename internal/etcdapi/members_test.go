package etcdapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/etcdcare"
)

// gateway answers as etcd's does, and remembers what it was asked.
func gateway(t *testing.T, status int, answer string) (*Client, *[]string) {
	t.Helper()
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		asked = append(asked, fmt.Sprint(r.URL.Path, " ", body))
		w.WriteHeader(status)
		_, _ = w.Write([]byte(answer))
	}))
	c := New(srv.URL, nil)
	t.Cleanup(func() { c.Close(); srv.Close() })
	return c, &asked
}

// etcd never answers who asked for a change that it left out because another one was on its way.
func TestAChangeThatIsNeverAnsweredEnds(t *testing.T) {
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-ended }))
	c := New(srv.URL, nil)
	c.changeTime = 10 * time.Millisecond
	t.Cleanup(func() { close(ended); c.Close(); srv.Close() })
	_, _, err := c.AddLearner(t.Context(), "https://10.0.0.2:2380")
	for what, err := range map[string]error{"add": err, "promote": c.Promote(t.Context(), 1), "remove": c.Remove(t.Context(), 1), "update": c.SetPeerURL(t.Context(), 1, "https://10.0.0.2:2380")} {
		if err == nil || !strings.Contains(err.Error(), "no answer within 10ms") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestMembersAreAddedAsLearnersAndNamedByTheirNumbers(t *testing.T) {
	c, asked := gateway(t, http.StatusOK, `{"header":{},"member":{"ID":"18332262301143020433","peerURLs":["https://10.0.0.2:2380"],"isLearner":true},`+
		`"members":[{"ID":"1","name":"server-0","peerURLs":["https://10.0.0.1:2380"]},{"ID":"18332262301143020433","peerURLs":["https://10.0.0.2:2380"],"isLearner":true}]}`)
	added, all, err := c.AddLearner(t.Context(), "https://10.0.0.2:2380")
	if err != nil || added.ID != 18332262301143020433 || !added.IsLearner || len(all) != 2 || all[0].Name != "server-0" || all[0].IsLearner {
		t.Fatalf("%+v %+v %v", added, all, err)
	}
	for _, do := range []func() error{
		func() error { return c.Promote(t.Context(), added.ID) },
		func() error { return c.Remove(t.Context(), added.ID) },
		func() error { return c.SetPeerURL(t.Context(), added.ID, "https://10.0.0.3:2380") },
		func() error { _, err := c.AgreedMembers(t.Context()); return err },
	} {
		if err := do(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"/v3/cluster/member/add map[isLearner:true peerURLs:[https://10.0.0.2:2380]]",
		"/v3/cluster/member/promote map[ID:18332262301143020433]",
		"/v3/cluster/member/remove map[ID:18332262301143020433]",
		"/v3/cluster/member/update map[ID:18332262301143020433 peerURLs:[https://10.0.0.3:2380]]",
		"/v3/cluster/member/list map[linearizable:true]",
	}
	if !reflect.DeepEqual(*asked, want) {
		t.Errorf("asked\n%s\nwant\n%s", strings.Join(*asked, "\n"), strings.Join(want, "\n"))
	}
}

func TestWhatEtcdSaysOfAChangeIsUnderstood(t *testing.T) {
	for text, want := range told {
		answer, err := json.Marshal(map[string]any{"code": 9, "message": text})
		if err != nil {
			t.Fatal(err)
		}
		c, _ := gateway(t, http.StatusBadRequest, string(answer))
		if err := c.Promote(t.Context(), 1); !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	c, _ := gateway(t, http.StatusServiceUnavailable, `{"code":14,"message":"etcdserver: request timed out"}`)
	if err := c.Remove(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "request timed out") {
		t.Errorf("something else: %v", err)
	}
}

func TestAMembersClockIsComparedWithThisOnes(t *testing.T) {
	for name, want := range map[string]time.Duration{"ahead": 24 * time.Hour, "behind": -24 * time.Hour, "the same": 0} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/version" {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.Header().Set("Date", time.Now().Add(want).UTC().Format(http.TimeFormat))
			}))
			defer srv.Close()
			c := New("", nil)
			defer c.Close()
			skew, err := c.Alive(t.Context(), srv.URL)
			if err != nil || (skew-want).Abs() > time.Hour {
				t.Errorf("%s, %v, want %s", skew, err, want)
			}
		})
	}
}

func TestAMemberCanHaveSeveralAlarms(t *testing.T) {
	s := Status{Errors: []string{"memberID:7 alarm:CORRUPT ", "memberID:7 alarm:NOSPACE ", "memberID:8 alarm:NOSPACE ", "alarm:CORRUPT ", "etcdserver: no leader", "memberID:9 "}}
	if got, want := s.Alarms(), (map[uint64][]string{7: {"CORRUPT", "NOSPACE"}, 8: {"NOSPACE"}, 0: {"CORRUPT"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// What is known about damage is not hidden by a quota that is used up, whichever was told first.
	for _, order := range []string{`"memberID:7 alarm:CORRUPT ","memberID:7 alarm:NOSPACE "`, `"memberID:7 alarm:NOSPACE ","memberID:7 alarm:CORRUPT "`} {
		c, _ := gateway(t, http.StatusOK, `{"header":{"member_id":"7"},"members":[],"errors":[`+order+`]}`)
		var f etcdcare.Facts
		if _, err := c.Facts(t.Context(), &f); err != nil || f.Alarms[7] != etcdcare.Corruption {
			t.Errorf("%s: %v, %v", order, f.Alarms, err)
		}
	}
}

func TestWhoIsConnectedIsReadFromTheMetrics(t *testing.T) {
	const text = "# TYPE etcd_network_active_peers gauge\n" +
		"etcd_network_active_peers{Local=\"8e9e05c52164694d\",Remote=\"91bc3c398fb3c146\"} 1\n" +
		"etcd_network_active_peers{Local=\"8e9e05c52164694d\",Remote=\"fd\"} 0\n" +
		"etcd_network_active_peers{Local=\"1\",Remote=\"2\"} 1\n" +
		"etcd_network_client_grpc_received_bytes_total 12\n" +
		"etcd_network_peer_received_bytes_total{From=\"0\"} 1.5e+03\n" +
		"etcd_network_peer_received_bytes_total{From=\"fd\"} 1.234567e+06\n"
	got, received, err := readLinked(strings.NewReader(text), 0x8e9e05c52164694d)
	if want := map[uint64]bool{0x91bc3c398fb3c146: true, 0xfd: false}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if want := map[uint64]uint64{0: 1500, 0xfd: 1234567}; !reflect.DeepEqual(received, want) {
		t.Errorf("received %v, want %v", received, want)
	}
	for _, bad := range []string{"etcd_network_peer_received_bytes_total{From=\"x\"} 1\n", "etcd_network_peer_received_bytes_total{From=\"1\"} many\n", "etcd_network_active_peers{Local=\"1\"} 1\n", "etcd_network_active_peers{Remote=\"1\",Local=\"2\"} 1\n", "etcd_network_active_peers{Local=\"1\",Remote=\"x\"} 1\n"} {
		if got, _, err := readLinked(strings.NewReader(bad), 1); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
}

func TestOneThatIsSilentIsNotKnownToBeConnectedWithoutMetrics(t *testing.T) {
	metrics := "" // none
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v3/maintenance/status":
			fmt.Fprint(w, `{"header":{"member_id":"1"},"leader":"1"}`)
		case "/v3/cluster/member/list":
			fmt.Fprintf(w, `{"members":[{"ID":"1","name":"a"},{"ID":"2","name":"b","peerURLs":["http://%[1]s/b"]},{"ID":"3","name":"c","peerURLs":["http://%[1]s/c"]}]}`, r.Host)
		case "/b/version":
		case "/metrics":
			if metrics != "" {
				fmt.Fprint(w, metrics)
				return
			}
			fallthrough
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	c := New(srv.URL, nil)
	c.Metrics = srv.URL + "/metrics"
	t.Cleanup(c.Close)
	look := func(linked, unsure bool, received uint64, tooFew bool) {
		t.Helper()
		var f etcdcare.Facts
		if _, err := c.Facts(t.Context(), &f); err != nil || len(f.Members) != 3 {
			t.Fatalf("%+v, %v", f, err)
		}
		if m := f.Members[2]; m.Healthy || m.Linked != linked || m.Unsure != unsure || m.Received != received || f.Members[1].Unsure || !f.Members[1].Healthy {
			t.Errorf("%+v", f.Members)
		}
		if why := etcdcare.TooFew(f.Members, 2); (why != "") != tooFew {
			t.Errorf("without b: %q", why)
		}
	}
	look(true, true, 0, true)
	metrics = "etcd_network_active_peers{Local=\"1\",Remote=\"3\"} 0\netcd_network_peer_received_bytes_total{From=\"3\"} 70\n"
	look(false, false, 70, true)
	metrics = "etcd_network_active_peers{Local=\"1\",Remote=\"3\"} 1\n"
	look(true, false, 0, false)
}
