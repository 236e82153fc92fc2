//go:build system

package system

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestWhatWatchersHaveToBeTold(t *testing.T) {
	a, b, c := change{"x", "a"}, change{"x", "b"}, change{"x", "c"}
	acked := map[int]change{11: a, 12: b, 14: c}
	at := func(from, listed, last int, events map[int]change) *chapter {
		return &chapter{from: from, listed: map[string]int{"x": listed}, last: last, events: events}
	}
	for name, tc := range map[string]struct {
		watchers [][]*chapter
		want     []string
	}{
		"everything":                           {[][]*chapter{{at(10, 9, 14, map[int]change{11: a, 12: b, 14: c})}}, nil},
		"one is lost":                          {[][]*chapter{{at(10, 9, 14, map[int]change{11: a, 14: c})}}, []string{"does not tell of {x b}, revision 12"}},
		"nothing before the first list":        {[][]*chapter{{at(12, 12, 14, map[int]change{14: c})}}, nil},
		"the list has what was not told":       {[][]*chapter{{at(10, 9, 11, map[int]change{11: a}), at(15, 14, 15, nil)}}, nil},
		"neither told nor in the next list":    {[][]*chapter{{at(10, 9, 11, map[int]change{11: a}), at(15, 12, 15, nil)}}, []string{"the list of revision 15 at 0 has x of revision 12, and not {x c} of 14"}},
		"one of which only another was told":   {[][]*chapter{{at(10, 9, 13, map[int]change{11: a, 12: b, 13: b})}, {at(10, 9, 14, map[int]change{11: a, 12: b, 14: c})}}, []string{"the watch at 1 does not tell of {x b}, revision 13"}},
		"another change than the acknowledged": {[][]*chapter{{at(10, 9, 14, map[int]change{11: a, 12: c, 14: c})}}, []string{"revision 12 is {x b}, and the watch at 0 tells of {x c}"}},
	} {
		t.Run(name, func(t *testing.T) {
			watchers := map[string]*watcher{}
			for i, chapters := range tc.watchers {
				watchers[strconv.Itoa(i)] = &watcher{chapters: chapters}
			}
			got := untold(acked, watchers)
			if len(got) != len(tc.want) {
				t.Fatalf("found is %q, want %q", got, tc.want)
			}
			for i := range got {
				if !strings.Contains(got[i], tc.want[i]) {
					t.Errorf("found is %q, want %q", got[i], tc.want[i])
				}
			}
		})
	}
}

func TestAWatcherGoesOnWhereItWas(t *testing.T) {
	event := func(rev int, name, value string) string {
		return fmt.Sprintf(`{"type":"MODIFIED","object":{"metadata":{"name":%q,"resourceVersion":"%d"},"data":{"n":%q}}}`, name, rev, value)
	}
	// What is answered to each request, in this order; after that a watch hangs.
	answers := []struct{ query, body string }{
		{"", `{"metadata":{"resourceVersion":"10"},"items":[{"metadata":{"name":"x-0","resourceVersion":"9"}},{"metadata":{"name":"y","resourceVersion":"3"}}]}`},
		{"watch=true&resourceVersion=10", event(11, "x-0", "1") + event(12, "y", "1") + event(13, "x-1", "1")},
		{"watch=true&resourceVersion=13", ""},
		{"watch=true&resourceVersion=13", event(12, "x-0", "2")},
		{"watch=true&resourceVersion=13", `{"type":"ERROR","object":{"code":500}}`},
		{"watch=true&resourceVersion=13", `{"type":"ERROR","object":{"code":410}}`},
		{"", `{"metadata":{"resourceVersion":"20"},"items":[{"metadata":{"name":"x-0","resourceVersion":"15"}}]}`},
		{"watch=true&resourceVersion=20", "410"},
		{"", `{"metadata":{"resourceVersion":"19"},"items":[]}`},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(answers) == 0 {
			cancel()
			return
		}
		a := answers[0]
		answers = answers[1:]
		switch {
		case r.URL.RawQuery != a.query:
			t.Errorf("it asks for %q, want %q", r.URL.RawQuery, a.query)
		case a.body == "410":
			w.WriteHeader(http.StatusGone)
		default:
			fmt.Fprint(w, a.body)
		}
	}))
	defer s.Close()
	w := &watcher{api: &api{s.Client(), s.URL}, path: "/x", prefix: "x-"}
	w.run(ctx)
	var got []string
	for _, c := range w.chapters {
		got = append(got, fmt.Sprint(c.from, c.listed, c.last, slices.Sorted(maps.Keys(c.events))))
	}
	if want := []string{"10 map[x-0:9] 13 [11 13]", "20 map[x-0:15] 20 []", "19 map[] 19 []"}; !slices.Equal(got, want) {
		t.Errorf("chapters %q, want %q", got, want)
	}
	if len(w.wrong) != 2 || !strings.Contains(w.wrong[0], `{x-0 2} at revision "12" after 13`) || !strings.Contains(w.wrong[1], "a list is of revision 19 after an event of 20") {
		t.Errorf("wrong is %q", w.wrong)
	}
	if at := w.reached(); at != 19 {
		t.Errorf("it is at %d", at)
	}
}
