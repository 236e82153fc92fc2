package backup

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

func TestWhatDoesNotFitIsNamed(t *testing.T) {
	m := manifest(t, files(t))
	m.Settings["spec.network.podCIDR"] = json.RawMessage(`["10.42.0.0/16" ]`)
	here := Here{Kubernetes: "v1.36.9", Root: "/registry", CAs: []string{"newer", m.CA}, Settings: map[string]json.RawMessage{
		"spec.cluster.domain": json.RawMessage(`"cluster.local"`), "spec.network.podCIDR": json.RawMessage(`["10.42.0.0/16"]`), "spec.new": json.RawMessage(`1`),
	}}
	if why := m.Unfit(here); why != nil || m.Foreign(here) {
		t.Errorf("nothing speaks against it: %q", why)
	}
	here.Kubernetes = "v1.37.0"
	if why := m.Unfit(here); why != nil {
		t.Errorf("newer is fine: %q", why)
	}
	here.Kubernetes, here.Root, here.CAs = "v1.35.7", "/other", []string{"beef"}
	here.Settings["spec.cluster.domain"] = json.RawMessage(`"example"`)
	why := m.Unfit(here)
	if len(why) != 3 || !m.Foreign(here) {
		t.Fatalf("%q", why)
	}
	for i, field := range []string{"kubernetes: ", "spec.components.kube-apiserver.args.etcd-prefix: ", "spec.cluster.domain: it is \"cluster.local\" in the backup and \"example\" here"} {
		if !strings.HasPrefix(why[i], field) {
			t.Errorf("%q does not name %q", why[i], field)
		}
	}
	if m.Foreign(Here{}) {
		t.Error("no cluster is no other cluster")
	}
}

func TestFilesAreKnownByTheirNames(t *testing.T) {
	for file, want := range map[string]Entry{
		"/b/k1s-edge-1-20261121T120000Z.tar.zst": {Name: "k1s-edge-1-20261121T120000Z", Node: "edge-1", At: noon},
		"/b/k1s-a-20261121T120000Z.tar.zst.age":  {Name: "k1s-a-20261121T120000Z", Node: "a", At: noon, Encrypted: true},
		"/b/before-upgrade.tar.zst":              {Name: "before-upgrade"},
		"/b/k1s-20261121T120000Z.tar.zst":        {Name: "k1s-20261121T120000Z"},
		"/b/k1s-a-then.tar.zst":                  {Name: "k1s-a-then"},
	} {
		want.File = file
		if got, ok := ParseFile(file, want.At); !ok || got != want {
			t.Errorf("%s: %t %+v", file, ok, got)
		}
		if FileName(want.Name, want.Encrypted) != file[len("/b/"):] || CheckName(want.Name) != nil {
			t.Errorf("%s is written otherwise", file)
		}
	}
	for _, file := range []string{"x.tar", "x.tar.gz", ".k1s-a-20261121T120000Z.tar.zst.part", ".hidden.tar.zst", "x.age", "a b.tar.zst"} {
		if _, ok := ParseFile(file, noon); ok {
			t.Errorf("%s passes for a backup", file)
		}
	}
	for _, name := range []string{"", "-x", "a/b", "..", "ä", strings.Repeat("a", 101), "x.tar.zst", "x.part"} {
		if CheckName(name) == nil {
			t.Errorf("%q is a name", name)
		}
	}
	if NewName("edge-1", noon) != "k1s-edge-1-20261121T120000Z" {
		t.Error(NewName("edge-1", noon))
	}
}

func TestRetentionTakesWhatNobodyNamed(t *testing.T) {
	at := func(node string, hours int, problem string) Entry {
		e := Entry{Node: node, At: noon.Add(-time.Duration(hours) * time.Hour), Problem: problem}
		e.File = FileName(NewName(node, e.At), false)
		return e
	}
	named := Entry{File: "named", At: noon.Add(-1000 * time.Hour)}
	all := []Entry{at("a", 5, ""), at("a", 1, ""), at("b", 9, ""), at("a", 3, "damaged"), at("a", 2, ""), at("a", 7, "damaged"), named}
	for keep, want := range map[int][]int{0: nil, 1: {2, 3, 5, 7}, 2: {3, 5, 7}, 3: {7}, 4: nil} {
		var got []int
		for _, e := range (Retention{Keep: keep, Node: "a", CAs: []string{"ours"}}).Expired(all) {
			if e.Node != "a" {
				t.Errorf("keep %d: %s goes", keep, e.File)
			}
			got = append(got, int(noon.Sub(e.At).Hours()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("keep %d: %v go, want %v", keep, got, want)
		}
	}
	if (Retention{Keep: 1}).Expired(all) != nil {
		t.Error("what has no node goes")
	}
}

// gone are the files that may go.
func gone(all []Entry) string {
	var out []string
	for _, e := range all {
		out = append(out, e.File)
	}
	return strings.Join(out, " ")
}

func TestRetentionKeepsWhatWasJustMade(t *testing.T) {
	at := func(file string, hours int, ca string) Entry {
		return Entry{File: file, Node: "a", At: noon.Add(time.Duration(hours) * time.Hour), Manifest: &Manifest{CA: ca}}
	}
	// The clock was ahead for a while.
	all := []Entry{at("made", 0, "ours"), at("ahead", 9000, "ours"), at("before", -1, "ours")}
	for keep, want := range map[int]string{1: "ahead before", 2: "before", 3: ""} {
		if got := gone(Retention{Keep: keep, Node: "a", CAs: []string{"ours", "replaced"}, Made: "made"}.Expired(all)); got != want {
			t.Errorf("keep %d: %q go, want %q", keep, got, want)
		}
	}
	// One that somebody has named is not one of those that are counted.
	if got := gone(Retention{Keep: 2, Node: "a", CAs: []string{"ours", "replaced"}, Made: "named"}.Expired(all)); got != "before" {
		t.Errorf("%q go", got)
	}
	// Another cluster whose server has the same name keeps its archives there too.
	encrypted := at("encrypted", -2, "")
	encrypted.Manifest, encrypted.Encrypted = nil, true
	all = []Entry{at("made", 0, "ours"), at("theirs", -1, "theirs"), encrypted, at("before", -3, "replaced")}
	if got := gone(Retention{Keep: 1, Node: "a", CAs: []string{"ours", "replaced"}, Made: "made"}.Expired(all)); got != "encrypted before" {
		t.Errorf("%q go", got)
	}
}

func TestARevisionBehindWhichNothingCanBeginIsRefused(t *testing.T) {
	for _, revision := range []int64{-1, math.MaxInt64} {
		m := manifest(t, files(t))
		m.Store.Revision = revision
		if err := m.Check(); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "revision") {
			t.Errorf("%d: %v", revision, err)
		}
	}
}
