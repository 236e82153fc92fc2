package payload

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFramesAreUnpackedAtOnceOnlyWhereThereIsMemoryForIt(t *testing.T) {
	const mb = 1 << 20
	ours := []int64{33 * mb, 130 * mb, 23 * mb, 61 * mb, 30 * mb}
	for _, c := range []struct {
		name   string
		cpus   int
		memory uint64
		sizes  []int64
		want   way
	}{
		{"unknown memory", 2, 0, ours, way{workers: 2}},
		{"a large machine", 8, 16 << 30, ours, way{workers: 5}},
		{"many processors and 1 GB", 16, 800 * mb, ours, way{workers: 1, onDisk: true}},
		{"two processors and 1 GB", 2, 800 * mb, ours, way{workers: 2}},
		{"one processor and 512 MB", 1, 400 * mb, ours, way{workers: 1}},
		{"two processors and 512 MB", 2, 450 * mb, ours, way{workers: 1, onDisk: true}},
		{"next to nothing", 2, 1, ours, way{workers: 1, onDisk: true}},
		{"small frames", 2, 64 * mb, []int64{mb, 2 * mb, 3 * mb}, way{workers: 2}},
		{"nothing to unpack", 4, 1, nil, way{workers: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := choose(c.cpus, c.memory, c.sizes); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestUnpackingWithLittleMemoryGivesTheSameFiles(t *testing.T) {
	root := filepath.Join(t.TempDir(), "payload")
	p := open(t, makePayload(t, nil))
	r, err := Unpack(t.Context(), p, root, 1)
	if err != nil {
		t.Fatal(err)
	}
	checkDir(t, root, r.Dir)
}

func TestTheRoomOnDiskLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	r := room{onDisk: true, dir: dir}
	defer r.leave()
	for _, size := range []int64{1 << 20, 3 << 20} {
		b, err := r.enter(size)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(b)) != size {
			t.Errorf("%d bytes, want %d", len(b), size)
		}
		b[0], b[size-1] = 1, 1
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("files: %v, %v", left, err)
		}
	}
}
