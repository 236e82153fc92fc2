package encryption

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

var now = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

func newKey(t *testing.T, p Provider) Key {
	t.Helper()
	k, err := NewKey(p, now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// names are the providers in their order, as the tables have them.
func names(keys []Key, of map[string]string) string {
	var out []string
	for _, k := range keys {
		n := of[k.Name]
		if k.None() {
			n = "identity"
		}
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

func TestAKeyIsReadBeforeItWritesAndUntilNothingNeedsIt(t *testing.T) {
	a, b := newKey(t, Secretbox), newKey(t, AESCBC)
	of := map[string]string{a.Name: "old", b.Name: "new"}
	for _, tt := range []struct {
		action Action
		from   Key
		want   map[Stage]string
		end    string
	}{
		{Enable, Key{}, map[Stage]string{Adding: "identity new", Switching: "new identity", Rewriting: "new identity", Removing: "new identity"}, "new identity"},
		{Rotate, a, map[Stage]string{Adding: "old new identity", Switching: "new old identity", Rewriting: "new old identity", Removing: "new identity"}, "new identity"},
		{Disable, a, map[Stage]string{Adding: "old identity", Switching: "identity old", Rewriting: "identity old", Removing: "identity"}, "identity"},
	} {
		t.Run(string(tt.action), func(t *testing.T) {
			s, err := State{Key: tt.from}.Begin(tt.action, now, func() (Key, error) { return b, nil })
			if err != nil {
				t.Fatal(err)
			}
			for _, stage := range []Stage{Adding, Switching, Rewriting, Removing} {
				if s.Change == nil || s.Change.Stage != stage {
					t.Fatalf("stage %+v, want %s", s.Change, stage)
				}
				if got := names(s.Providers(), of); got != tt.want[stage] {
					t.Errorf("%s: providers %q, want %q", stage, got, tt.want[stage])
				}
				s = s.Advance(Check{Objects: 3})
			}
			if got := names(s.Providers(), of); s.Change != nil || got != tt.end {
				t.Errorf("in the end %q, change %+v", got, s.Change)
			}
			if s.Checked == nil || s.Checked.Objects != 3 || s.Checked.Key != s.Key.Name {
				t.Errorf("checked %+v", s.Checked)
			}
		})
	}
}

func TestWhatCannotBeginIsRefusedAndWhatIsAlreadySoStays(t *testing.T) {
	k := newKey(t, Secretbox)
	changing := func(a Action) *Change { return &Change{Action: a, Stage: Rewriting, To: k} }
	for _, tt := range []struct {
		name   string
		s      State
		action Action
		want   string // of the error
	}{
		{"enable what is on", State{Key: k}, Enable, ""},
		{"disable what is off", State{}, Disable, ""},
		{"the same again", State{Change: changing(Enable)}, Enable, ""},
		{"another one", State{Change: changing(Enable)}, Rotate, "enable is not finished"},
		{"rotate what is off", State{}, Rotate, "not encrypted"},
		{"something else", State{}, "melt", "no action"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.s.Begin(tt.action, now, func() (Key, error) { t.Error("a key was made"); return Key{}, nil })
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if got != tt.s {
				t.Errorf("the state changed: %+v", got)
			}
		})
	}
}

func TestAStateIsKeptWhole(t *testing.T) {
	a, b := newKey(t, Secretbox), newKey(t, AESCBC)
	for _, s := range []State{
		{}, {Key: a}, {Key: a, Change: &Change{Action: Rotate, Stage: Removing, To: b, Since: now}},
		{Key: a, Change: &Change{Action: Disable, Stage: Adding, Since: now}, Checked: &Check{At: now, Objects: 3, Rewritten: 2, Key: a.Name}, Serial: 7},
	} {
		got, err := Unmarshal(s.Marshal())
		if err != nil || !bytes.Equal(got.Marshal(), s.Marshal()) || got.Key != s.Key {
			t.Errorf("%+v became %+v, %v", s, got, err)
		}
	}
}

func TestADamagedStateIsRefusedAndItsKeyNotTold(t *testing.T) {
	k := newKey(t, Secretbox)
	whole := State{Key: k}.Marshal()
	for i := range whole {
		for name, damaged := range map[string][]byte{
			"cut": whole[:i], "changed": append(append(bytes.Clone(whole[:i]), whole[i]^1), whole[i+1:]...),
		} {
			s, err := Unmarshal(damaged)
			if err == nil && s.Key != k {
				t.Fatalf("%s at %d: taken for %+v", name, i, s)
			}
			if err != nil && strings.Contains(err.Error(), k.Secret.Reveal()) {
				t.Fatalf("%s at %d: %v", name, i, err)
			}
		}
	}
}

func TestAKeyShowsItselfToNobody(t *testing.T) {
	k := newKey(t, Secretbox)
	s := State{Key: k, Change: &Change{To: k}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, s) + fmt.Sprintf(verb, *s.Change) + fmt.Sprintf(verb, k); strings.Contains(out, k.Secret.Reveal()) {
			t.Errorf("%q shows the key: %s", verb, out)
		}
	}
}

func TestOnlyProvidersWithKeysHaveKeys(t *testing.T) {
	if _, err := NewKey("rot13", now, rand.Reader); !errs.Is(err, errs.Usage) {
		t.Errorf("error %v", err)
	}
	if _, err := NewKey(Secretbox, now, strings.NewReader("short")); err == nil {
		t.Error("a key was made of too few random bytes")
	}
}
