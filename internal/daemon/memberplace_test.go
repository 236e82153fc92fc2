package daemon

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/join"
)

func TestWhatAServerFindsInThePlaceOfItsMember(t *testing.T) {
	const here, elsewhere = "https://10.0.0.2:2380", "https://10.0.0.9:2380"
	who := join.Member{Name: "server-1-0a1b2c3d", PeerURL: here}
	for name, tc := range map[string]struct {
		m    etcdapi.Member
		want memberPlace
	}{
		"nobody":                                   {etcdapi.Member{Name: "server-2-00000000", PeerURLs: []string{elsewhere}}, placeFree},
		"added, never started":                     {etcdapi.Member{PeerURLs: []string{here}, IsLearner: true}, placeKept},
		"started, without a vote":                  {etcdapi.Member{Name: "server-1-0a1b2c3d", PeerURLs: []string{here}, IsLearner: true}, placeKept},
		"with a vote, and its data is gone":        {etcdapi.Member{Name: "server-1-0a1b2c3d", PeerURLs: []string{here}}, placeLost},
		"under another name":                       {etcdapi.Member{Name: "server-1-ffffffff", PeerURLs: []string{here}}, placeOld},
		"the first server, again":                  {etcdapi.Member{Name: "server-1", PeerURLs: []string{here}}, placeOld},
		"one that is off, at its old address":      {etcdapi.Member{Name: "server-2-00000000", PeerURLs: []string{here}}, placeTaken},
		"the first one, that is off":               {etcdapi.Member{Name: "server-0", PeerURLs: []string{here}}, placeTaken},
		"another one without a vote":               {etcdapi.Member{Name: "server-2-00000000", PeerURLs: []string{here}, IsLearner: true}, placeTaken},
		"one whose name begins like that":          {etcdapi.Member{Name: "server-10-00000000", PeerURLs: []string{here}}, placeTaken},
		"one of a node that is named like another": {etcdapi.Member{Name: "server-1-frankfur", PeerURLs: []string{here}}, placeTaken},
	} {
		if got, m := placeOf([]etcdapi.Member{{Name: "x", PeerURLs: []string{"https://10.0.0.77:2380"}}, tc.m}, who); got != tc.want || got != placeFree && m.Name != tc.m.Name {
			t.Errorf("%s: %d of %q, want %d", name, got, m.Name, tc.want)
		}
	}
}

// etcdThat is one that answers so, by path; what it is not to be asked is not there.
func etcdThat(t *testing.T, answers map[string]string) *etcdapi.Client {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := answers[r.URL.Path]
		switch {
		case !ok:
			w.WriteHeader(http.StatusServiceUnavailable)
		case strings.Contains(text, `"message"`):
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = w.Write([]byte(text))
	}))
	c := etcdapi.New(srv.URL, nil)
	t.Cleanup(func() { c.Close(); srv.Close() })
	return c
}

func TestWhoAsksForItsVoteIsKnownByItsNameBeforeItsAddress(t *testing.T) {
	who := join.Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}
	for name, c := range map[string]struct {
		members, promoted string
		gone              bool
	}{
		// The daemon was killed before it could keep that it has a vote, and all servers have moved meanwhile.
		"with a vote, known at an old address": {`{"ID":"5","name":"server-1-0a1b2c3d","peerURLs":["https://10.0.0.99:2380"]}`, `{"message":"etcdserver: can only promote a learner member"}`, false},
		"a learner at its address":             {`{"ID":"5","name":"server-1-0a1b2c3d","peerURLs":["https://10.0.0.2:2380"],"isLearner":true}`, `{}`, false},
		"one that has not told its name":       {`{"ID":"5","peerURLs":["https://10.0.0.2:2380"],"isLearner":true}`, `{}`, false},
		"beside one that never came":           {`{"ID":"9","peerURLs":["https://10.0.0.2:2380"],"isLearner":true},{"ID":"5","name":"server-1-0a1b2c3d","peerURLs":["https://10.0.0.99:2380"]}`, `{}`, false},
		"another one at its address":           {`{"ID":"5","name":"server-2-0a1b2c3d","peerURLs":["https://10.0.0.2:2380"]}`, `{}`, true},
		"nobody":                               {`{"ID":"1","name":"server-0","peerURLs":["https://10.0.0.1:2380"]}`, `{}`, true},
	} {
		d := &Daemon{}
		etcd := etcdThat(t, map[string]string{"/v3/cluster/member/list": `{"members":[` + c.members + `]}`, "/v3/cluster/member/promote": c.promoted})
		err := members{d}.promote(t.Context(), etcd, who)
		if (err == nil) == c.gone || errs.Is(err, errs.NotFound) != c.gone {
			t.Errorf("%s: %v", name, err)
		}
		if _, asked := d.learners[5]; asked == c.gone {
			t.Errorf("%s: asked for are %v", name, d.learners)
		}
	}
}

// What has a vote may be all that is left of something.
func TestDataOfAMemberWithAVoteIsNotThrownAway(t *testing.T) {
	const status = "/v3/maintenance/status"
	if err := mayCopyAgain(t.Context(), etcdThat(t, map[string]string{status: `{"header":{"member_id":"5"}}`})); !errs.Is(err, errs.Denied) {
		t.Errorf("with a vote: %v", err)
	}
	if err := mayCopyAgain(t.Context(), etcdThat(t, map[string]string{status: `{"header":{"member_id":"5"},"isLearner":true}`})); err != nil {
		t.Errorf("a learner: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := mayCopyAgain(ctx, etcdThat(t, nil)); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}

// state refuses what etcd refuses.
func state(all []etcdapi.Member, id uint64, peerURL string) error {
	for i, m := range all {
		if m.ID != id && slices.Contains(m.PeerURLs, peerURL) {
			return fmt.Errorf("%s is %s's", peerURL, m.Name)
		}
		if m.ID == id {
			defer func() { all[i].PeerURLs = []string{peerURL} }()
		}
	}
	return nil
}

// In whichever order they come.
func TestMembersThatHaveEachOthersAddressesTellTheirOwn(t *testing.T) {
	for name, was := range map[string][]int{"nobody has moved": {0, 1, 2}, "two have swapped": {1, 0, 2}, "a ring": {1, 2, 0}, "the other way": {2, 0, 1}, "one has moved": {7, 1, 2}} {
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {0, 2, 1}} {
			var all []etcdapi.Member
			for i, at := range was {
				all = append(all, etcdapi.Member{ID: uint64(i + 1), Name: fmt.Sprintf("server-%d", i), PeerURLs: []string{fmt.Sprintf("https://10.0.0.%d:2380", at)}})
			}
			for range 3 { // each asks again every few seconds
				for _, i := range order {
					next, _ := nextPeerURL(all, uint64(i+1), fmt.Sprintf("server-%d", i), fmt.Sprintf("https://10.0.0.%d:2380", i))
					if next == "" {
						continue
					}
					if err := state(all, uint64(i+1), next); err != nil {
						t.Fatalf("%s, %v: %v", name, order, err)
					}
				}
			}
			for i, m := range all {
				ours := fmt.Sprintf("https://10.0.0.%d:2380", i)
				next, settled := nextPeerURL(all, m.ID, m.Name, ours)
				if !slices.Equal(m.PeerURLs, []string{ours}) || next != "" || !settled {
					t.Errorf("%s, %v: %s is at %q", name, order, m.Name, m.PeerURLs)
				}
			}
		}
	}
	// Of a member that is off and whose address we have now nothing is taken.
	all := []etcdapi.Member{{ID: 1, Name: "a", PeerURLs: []string{"https://a:2380"}}, {ID: 2, Name: "b", PeerURLs: []string{"https://10.0.0.1:2380"}}}
	if next, settled := nextPeerURL(all, 1, "a", "https://10.0.0.1:2380"); next != "" || settled {
		t.Errorf("%q, %t", next, settled)
	}
}
