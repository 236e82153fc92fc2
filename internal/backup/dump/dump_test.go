package dump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

var records = []Record{
	{Key: "/registry/a", Value: []byte{}},
	{Key: "/registry/b", Value: []byte("value\x00\xff")},
	{Key: "/registry/events/e", Value: bytes.Repeat([]byte("x"), 3<<20), Lease: 7587, TTL: 3600},
}

func written(t testing.TB, all []Record, revision int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, r := range all {
		if err := w.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(revision); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(b []byte) ([]Record, Summary, error) {
	d, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, Summary{}, err
	}
	var out []Record
	for {
		r, err := d.Next()
		if errors.Is(err, io.EOF) {
			return out, d.Summary(), nil
		}
		if err != nil {
			return out, d.Summary(), err
		}
		out = append(out, r)
	}
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	b := written(t, records, 48213)
	got, sum, err := read(b)
	if err != nil || !reflect.DeepEqual(got, records) || sum.Keys != 3 || sum.Revision != 48213 {
		t.Errorf("%d records, %+v, %v", len(got), sum, err)
	}
	if again, err := Check(bytes.NewReader(b)); err != nil || again != sum {
		t.Errorf("%+v, %v", again, err)
	}
	if _, sum, err := read(written(t, nil, 0)); err != nil || sum != (Summary{}) {
		t.Errorf("an empty one: %+v, %v", sum, err)
	}
}

func TestWhatIsCutOffOrChangedIsFound(t *testing.T) {
	small := written(t, records[:2], 9)
	for n := range len(small) {
		if _, _, err := read(small[:n]); !errs.Is(err, errs.Invalid) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"more behind the end": {append(bytes.Clone(small), 0), "behind its end"},
		"another form":        {[]byte("k1s datastore dump 2\n\x00\x00\x00"), "does not know"},
		"not in order":        {[]byte(Magic + "\x01b\x00\x00" + "\x01a\x00\x00" + "\x00\x02\x01"), "stands after"},
		"twice":               {[]byte(Magic + "\x01b\x00\x00" + "\x01b\x00\x00" + "\x00\x02\x01"), "stands after"},
		"another count":       {[]byte(Magic + "\x01b\x00\x00" + "\x00\x02\x01"), "says 2"},
		"a key too long":      {[]byte(Magic + "\xff\xff\xff\x7f"), "at most"},
		"a value too long":    {[]byte(Magic + "\x01b\xff\xff\xff\xff\x0f"), "at most"},
		"no number":           {[]byte(Magic + strings.Repeat("\xff", 11)), "number"},
		"a value that is not": {[]byte(Magic + "\x01b\x80\x80\x80\x10"), "cut off"},
	} {
		if _, _, err := read(c.b); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADatastoreThatGivesNonsenseIsNotWritten(t *testing.T) {
	for name, all := range map[string][]Record{
		"no key":         {{}},
		"out of order":   {{Key: "b"}, {Key: "a"}},
		"twice":          {{Key: "b"}, {Key: "b"}},
		"a key too long": {{Key: strings.Repeat("k", MaxKey+1)}},
	} {
		w := NewWriter(io.Discard)
		var err error
		for _, r := range all {
			if err == nil {
				err = w.Add(r)
			}
		}
		if err == nil {
			t.Errorf("%s was written", name)
		}
	}
	w := NewWriter(full{})
	err := w.Add(Record{Key: "a", Value: make([]byte, 1<<20)})
	if _, closing := w.Close(1); err == nil || closing == nil {
		t.Errorf("a full disk: %v, %v", err, closing)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, fmt.Errorf("no space left") }

// FuzzReader: whatever is read either is refused or is written again as it was.
func FuzzReader(f *testing.F) {
	f.Add(written(f, records[:2], 5))
	f.Add(written(f, nil, 0))
	f.Add([]byte(Magic + "\x01b\x00\x00" + "\x00\x02\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, sum, err := read(b)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("of another kind: %v", err)
			}
			return
		}
		if again, other, err := read(written(t, all, sum.Revision)); err != nil || other != sum || !reflect.DeepEqual(again, all) {
			t.Errorf("%+v and %+v, %v", sum, other, err)
		}
	})
}
