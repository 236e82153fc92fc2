package ledger

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

func open(t *testing.T) *Ledger {
	t.Helper()
	l := Open(filepath.Join(t.TempDir(), "state", "ledger.json"))
	l.now = func() time.Time { return time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC) }
	return l
}

func list(t *testing.T, l *Ledger) []string {
	t.Helper()
	entries, err := l.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.String())
	}
	return out
}

func TestListsInTheOrderOfCreationAndForgets(t *testing.T) {
	l := open(t)
	if err := l.Remove(t.Context(), Link, "cni0"); err != nil {
		t.Fatal(err)
	}
	if err := l.Add(t.Context(), Entry{Kind: Link, Name: "cni0"}, Entry{Kind: NFTTable, Name: "ip kube-proxy"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Add(t.Context(), Entry{Kind: Route, Name: "10.42.1.0/24"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(t.Context(), NFTTable, "ip kube-proxy"); err != nil {
		t.Fatal(err)
	}
	again := Open(l.path) // another process
	if got, want := list(t, again), []string{"link cni0", "route 10.42.1.0/24"}; !reflect.DeepEqual(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestTheFirstOldValueStays(t *testing.T) {
	l := open(t)
	key := "net.ipv4.ip_forward"
	for _, old := range []string{"0", "1"} { // the second start finds our own value
		if err := l.Add(t.Context(), Entry{Kind: Sysctl, Name: key, Old: old, Attrs: map[string]string{"seen": old}}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := l.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{{Kind: Sysctl, Name: key, Old: "0", Attrs: map[string]string{"seen": "1"}, Created: l.now()}}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func TestWritersDoNotLoseEachOthersEntries(t *testing.T) {
	l := open(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := Open(l.path).Add(t.Context(), Entry{Kind: Link, Name: fmt.Sprint("veth", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := list(t, l); len(got) != 20 {
		t.Fatalf("%d of 20 entries left: %q", len(got), got)
	}
}

func TestACorruptLedgerIsNeitherTrustedNorOverwritten(t *testing.T) {
	l := open(t)
	if err := l.Add(t.Context(), Entry{Kind: Link, Name: "cni0"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path, []byte("{\n\"entries\": [\n!"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := l.Add(context.WithoutCancel(t.Context()), Entry{Kind: Link, Name: "cni1"})
	if err == nil || !strings.Contains(err.Error(), "ledger.json:3:") {
		t.Fatalf("got %v", err)
	}
	if hint, _ := errs.HintOf(err); hint == "" {
		t.Fatal("no hint")
	}
	if b, _ := os.ReadFile(l.path); !strings.HasSuffix(string(b), "!") {
		t.Fatalf("overwritten: %q", b)
	}
}
