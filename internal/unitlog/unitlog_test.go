package unitlog

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func write(t *testing.T, f *os.File, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if _, err := fmt.Fprintf(f, "line %d %s\n", i, strings.Repeat("x", 100)); err != nil {
			t.Fatal(err)
		}
	}
}

func openLog(t *testing.T) *os.File {
	t.Helper()
	f, err := Open(filepath.Join(t.TempDir(), "log", "unit.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// stream is everything the rotated files and the log hold, in order.
func stream(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	for i := 9; i >= 0; i-- {
		name := path
		if i > 0 {
			name = rotated(path, i)
		}
		data, err := os.ReadFile(name)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		b.Write(data)
	}
	return b.String()
}

func wantLines(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "line %d %s\n", i, strings.Repeat("x", 100))
	}
	return b.String()
}

func TestRotationKeepsTheStreamAndTheDescriptorOfTheWriter(t *testing.T) {
	f := openLog(t)
	p := Policy{MaxBytes: 20_000, Keep: 20}
	rotations := 0
	for i := range 10 {
		write(t, f, i*100, (i+1)*100)
		did, err := Rotate(f.Name(), p)
		if err != nil {
			t.Fatal(err)
		}
		if did {
			rotations++
		}
	}
	if rotations < 3 {
		t.Errorf("%d rotations of 10 × 11 kB with a bound of 20 kB", rotations)
	}
	if got := stream(t, f.Name()); got != wantLines(0, 1000) {
		t.Errorf("the stream has %d bytes, want %d", len(got), len(wantLines(0, 1000)))
	}
	st, err := os.Stat(f.Name())
	if err != nil || st.Size() > p.MaxBytes {
		t.Errorf("the log has %d bytes after a rotation, %v", st.Size(), err)
	}
}

func TestOldRotatedFilesGo(t *testing.T) {
	f := openLog(t)
	for i := range 8 {
		write(t, f, i*100, (i+1)*100)
		if _, err := Rotate(f.Name(), Policy{MaxBytes: 5_000, Keep: 2}); err != nil {
			t.Fatal(err)
		}
	}
	names, _ := filepath.Glob(f.Name() + "*")
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	if want := []string{"unit.log", "unit.log.1", "unit.log.2"}; !slices.Equal(names, want) {
		t.Errorf("files are %v, want %v", names, want)
	}
}

func TestASmallOrMissingLogIsLeftAlone(t *testing.T) {
	f := openLog(t)
	write(t, f, 0, 10)
	if did, err := Rotate(f.Name(), Policy{}); did || err != nil {
		t.Errorf("small: %v, %v", did, err)
	}
	if did, err := Rotate(f.Name()+"x", Policy{}); did || err != nil {
		t.Errorf("missing: %v, %v", did, err)
	}
}

// Only where the head can be cut off in one step nothing may be lost under a concurrent writer.
func TestNothingIsLostWhileSomebodyWrites(t *testing.T) {
	f := openLog(t)
	if cuttable(f, 1<<20) == 1<<20 {
		t.Skip("the file system of the test directory cannot cut off the head of a file")
	}
	const lines = 20_000
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		write(t, f, 0, lines)
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if _, err := Rotate(f.Name(), Policy{MaxBytes: 100_000, Keep: 1000}); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	var all strings.Builder
	for i := 1000; i >= 1; i-- {
		b, _ := os.ReadFile(rotated(f.Name(), i))
		all.Write(b)
	}
	b, _ := os.ReadFile(f.Name())
	all.Write(b)
	if all.String() != wantLines(0, lines) {
		t.Errorf("the stream has %d bytes, want %d", all.Len(), len(wantLines(0, lines)))
	}
}

func TestTailReachesIntoRotatedFiles(t *testing.T) {
	f := openLog(t)
	for i := range 4 {
		write(t, f, i*100, (i+1)*100)
		if _, err := Rotate(f.Name(), Policy{MaxBytes: 5_000, Keep: 9}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{0, 1, 7, 99, 250, 400, 1000} {
		got, err := Tail(f.Name(), n)
		if err != nil {
			t.Fatal(err)
		}
		want := splitLines([]byte(wantLines(max(0, 400-n), 400)))
		if n == 0 {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("Tail(%d) has %d lines, want %d", n, len(got), len(want))
		}
	}
}

func TestTailOfAnUnfinishedLineAndOfNothing(t *testing.T) {
	f := openLog(t)
	if got, err := Tail(f.Name(), 5); got != nil || err != nil {
		t.Errorf("empty: %q, %v", got, err)
	}
	fmt.Fprint(f, "one\ntwo\nthr")
	got, err := Tail(f.Name(), 2)
	if want := []string{"two", "thr"}; !slices.Equal(got, want) || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := Tail(f.Name()+"x", 5); got != nil || err != nil {
		t.Errorf("missing: %q, %v", got, err)
	}
}

func TestFollowGoesOnAcrossRotations(t *testing.T) {
	f := openLog(t)
	write(t, f, 0, 50)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { w.CloseWithError(Follow(ctx, f.Name(), 5, w)) })
	defer wg.Wait()
	defer cancel()
	defer r.Close()

	next := 45
	sc := bufio.NewScanner(r)
	read := func(until int) {
		t.Helper()
		for ; next < until; next++ {
			if !sc.Scan() {
				t.Fatalf("ended before line %d: %v", next, sc.Err())
			}
			if want := fmt.Sprintf("line %d ", next); !strings.HasPrefix(sc.Text(), want) {
				t.Fatalf("got %.20q, want %q", sc.Text(), want)
			}
		}
	}
	read(50)
	for i := range 6 { // several rotations between two looks of the follower, and some lines after the last
		from := 50 + i*100
		write(t, f, from, from+100)
		if _, err := Rotate(f.Name(), Policy{MaxBytes: 5_000, Keep: 9}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, f, 650, 660)
	read(660)
	if _, err := Rotate(f.Name(), Policy{MaxBytes: 1, Keep: 9}); err != nil {
		t.Fatal(err)
	}
	write(t, f, 660, 670)
	read(670)
}

func TestFollowWaitsForTheLogAndEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later.log")
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- Follow(ctx, path, 5, w) }()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintln(f, "hello")
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "hello\n" || err != nil {
		t.Errorf("got %q, %v", line, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Follow ended with %v", err)
	}
}

// A reader that was stopped with the lock in its hands, by Ctrl-Z for example.
func TestAFrozenReaderDoesNotHoldUpTheRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("a line\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	unlock, err := lock(reader, false)
	if err != nil {
		t.Fatal(err)
	}
	if done, err := Rotate(path, Policy{MaxBytes: 10}); done || err == nil || !strings.Contains(err.Error(), path+": somebody has been reading it") {
		t.Errorf("%v, %v", done, err)
	}
	unlock()
	if done, err := Rotate(path, Policy{MaxBytes: 10}); !done || err != nil {
		t.Errorf("afterwards: %v, %v", done, err)
	}
}
