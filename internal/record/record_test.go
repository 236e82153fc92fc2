package record

import (
	"strings"
	"testing"
	"time"
)

type thing struct {
	Name  string    `json:"name"`
	Since time.Time `json:"since,omitzero"`
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	v := thing{"a", time.Unix(1700000000, 5).UTC()}
	for _, b := range [][]byte{Compact(v), Indented(v)} {
		if got, err := Read[thing](b); err != nil || got != v {
			t.Errorf("%s: %+v, %v", b, got, err)
		}
	}
	if got := string(Compact(thing{Name: "a"})); got != `{"name":"a"}` {
		t.Errorf("%q", got)
	}
	if got := string(Indented(thing{Name: "a"})); got != "{\n  \"name\": \"a\"\n}\n" {
		t.Errorf("%q", got)
	}
}

func TestWhatIsDamagedIsNotReadInPart(t *testing.T) {
	for _, b := range []string{"", "{", `{"name":"a","since":5}`, `{"name":"a"}}`, "[]"} {
		if got, err := Read[thing]([]byte(b)); err == nil || got != (thing{}) || !strings.HasPrefix(err.Error(), "it is not what k1s wrote: ") {
			t.Errorf("%q: %+v, %v", b, got, err)
		}
	}
	if got, err := Read[thing]([]byte(`{"name":"a","later":1}`)); err != nil || got.Name != "a" {
		t.Errorf("a later version's: %+v, %v", got, err)
	}
}

func TestWhatIsNoPlainDataIsAFaultOfTheProgram(t *testing.T) {
	for _, write := range []func(any) []byte{Compact, Indented} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a channel was written")
				}
			}()
			write(make(chan int))
		}()
	}
}
