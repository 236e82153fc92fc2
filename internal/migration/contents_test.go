package migration

import (
	"strings"
	"testing"
)

func entries(kv ...string) Contents {
	c := Contents{}
	for i := 0; i < len(kv); i += 2 {
		leased := strings.HasPrefix(kv[i], "~")
		c["/registry/"+strings.TrimPrefix(kv[i], "~")] = NewEntry([]byte(kv[i+1]), leased, int64(i))
	}
	return c
}

func TestPrefixesOfKinds(t *testing.T) {
	for key, want := range map[string]string{
		"/registry/pods/default/a":              "/registry/pods",
		"/registry/example.com/things/ns/red":   "/registry/example.com/things",
		"/registry/apiregistration.k8s.io/x/v1": "/registry/apiregistration.k8s.io/x",
		"/registry/ranges/serviceips":           "/registry/ranges",
		"/elsewhere/a":                          "/elsewhere/a",
	} {
		if got := Prefix("/registry", key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

func TestComparingFindsEveryDifference(t *testing.T) {
	source := entries("pods/a", "1", "pods/b", "2", "secrets/s", "3", "~events/e", "4")
	for name, c := range map[string]struct {
		target Contents
		bad    string // the prefix that is named, "" for none
	}{
		"the same":                 {entries("secrets/s", "3", "pods/b", "2", "~events/e", "4", "pods/a", "1"), ""},
		"an event has gone":        {entries("pods/a", "1", "pods/b", "2", "secrets/s", "3"), ""},
		"one is missing":           {entries("pods/a", "1", "secrets/s", "3", "~events/e", "4"), "/registry/pods"},
		"one differs":              {entries("pods/a", "1", "pods/b", "x", "secrets/s", "3", "~events/e", "4"), "/registry/pods"},
		"values are exchanged":     {entries("pods/a", "2", "pods/b", "1", "secrets/s", "3", "~events/e", "4"), "/registry/pods"},
		"one is too many":          {entries("pods/a", "1", "pods/b", "2", "secrets/s", "3", "~events/e", "4", "leases/l", "5"), "/registry/leases"},
		"an event differs":         {entries("pods/a", "1", "pods/b", "2", "secrets/s", "3", "~events/e", "x"), "/registry/events"},
		"a lease was lost":         {entries("pods/a", "1", "pods/b", "2", "secrets/s", "3", "events/e", "4"), "/registry/events"},
		"one has a lease that had": {entries("~pods/a", "1", "pods/b", "2", "secrets/s", "3", "~events/e", "4"), "/registry/pods"},
		"nothing is there":         {Contents{}, "/registry/pods, /registry/secrets"},
	} {
		t.Run(name, func(t *testing.T) {
			rows := Compare("/registry", source, c.target)
			r, err := Verify(rows)
			if (err != nil) != (c.bad != "") || err != nil && !strings.HasSuffix(err.Error(), " in "+c.bad) {
				t.Errorf("%v, want %q", err, c.bad)
			}
			if r.Keys != 4 || r.Bytes != int64(len("/registry/pods/a1/registry/pods/b2/registry/secrets/s3/registry/events/e4")) {
				t.Errorf("%d keys, %d bytes", r.Keys, r.Bytes)
			}
		})
	}
}

func TestHashesTellContentsApart(t *testing.T) {
	seen := map[string]string{}
	for name, c := range map[string]Contents{
		"one":          entries("a/b", "cd"),
		"another key":  entries("a/bc", "d"),
		"another":      entries("a/b", "ce"),
		"two":          entries("a/b", "cd", "a/c", ""),
		"an empty one": entries("a/b", ""),
	} {
		h := Compare("/registry", c, c)[0].Source
		if h == "" || seen[h] != "" {
			t.Errorf("%s has the hash of %q", name, seen[h])
		}
		seen[h] = name
		if again := Compare("/registry", c, c)[0].Source; again != h {
			t.Errorf("%s has another hash the second time", name)
		}
	}
	if rows := Compare("/registry", entries("~a/b", "1"), entries("~a/b", "1")); rows[0].Source != "" || rows[0].Leased != 1 {
		t.Errorf("what may go at any time is part of the hash: %+v", rows)
	}
}
