package version

import "testing"

func TestMinorVersionsAreCompared(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"v1.37.0", "v1.36.3", true}, {"v1.36.9", "v1.36.3", false}, {"v1.36.3", "v1.37.0", false}, {"v2.0.0", "v1.99.0", true}, {"v1.9.0", "v1.10.0", false}, {"", "v1.36.3", false}, {"v1.36.3", "devel", false},
	} {
		if got := Newer(c.a, c.b); got != c.want {
			t.Errorf("%s is newer than %s: %t", c.a, c.b, got)
		}
	}
}
