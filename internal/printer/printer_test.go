package printer

import (
	"strings"
	"testing"
)

func TestColumnsAreAlignedAlsoWhereNothingFollows(t *testing.T) {
	var out strings.Builder
	err := Columns(&out, []string{"NAME", "LOG", "NOTE"}, [][]string{
		{"kine", "/var/log/kine.log", ""},
		{"a", "", "two\nlines"},
		{"b", "", ""},
	})
	want := "NAME  LOG                NOTE\n" +
		"kine  /var/log/kine.log\n" +
		"a                        two lines\n" +
		"b\n"
	if err != nil || out.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out.String(), want)
	}
}
