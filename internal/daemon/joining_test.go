package daemon

import (
	"slices"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/token"
)

func TestTokensAreRemovedADayAfterTheyWereSeenToHaveExpired(t *testing.T) {
	start := time.Now()
	one := func(expired bool) []control.Token {
		return []control.Token{{Record: token.Record{ID: "one"}, Expired: expired}, {Record: token.Record{ID: "other"}}, {Record: token.Record{ID: "damaged"}, Problem: "it is damaged"}}
	}
	e := expiredSince{}
	for _, step := range []struct {
		after   time.Duration
		expired bool
		want    []string
	}{
		{0, false, nil},
		{time.Hour, true, nil}, // however long ago that was by the clock, which may have jumped
		{24 * time.Hour, true, nil},
		{26 * time.Hour, true, []string{"one"}},
		{27 * time.Hour, true, []string{"one"}}, // it could not be removed
		{28 * time.Hour, false, nil},            // the clock is right again
		{60 * time.Hour, true, nil},
		{85 * time.Hour, true, []string{"one"}},
	} {
		if got := e.due(one(step.expired), start.Add(step.after)); !slices.Equal(got, step.want) {
			t.Errorf("after %s: %v, want %v", step.after, got, step.want)
		}
	}
	if got := e.due(nil, start); got != nil || len(e) != 0 {
		t.Errorf("what is gone is remembered: %v, %v", got, e)
	}
}
