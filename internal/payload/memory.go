package payload

import "slices"

// way is how frames are decompressed: so many at once, into memory or into a file that stands behind it.
type way struct {
	workers int
	onDisk  bool
}

// share is the part of the memory that may be used for unpacking, which is followed by the start of everything
// else; 0.67 of it is needed for a byte of the frames that are decompressed at once (measured, 2026-11).
const share = 2

// choose decides how to unpack frames of these sizes. The fast way, a frame for each processor, takes 290 MB for
// our own payload. Where that is not half of the memory that can be had, one after the other goes through a
// file: decompressing needs a window as large as the frame, so a frame in memory alone would be 130 MB.
func choose(cpus int, memory uint64, sizes []int64) way {
	sizes = slices.Sorted(slices.Values(sizes))
	workers := max(1, min(cpus, len(sizes)))
	var need uint64
	for _, size := range sizes[max(0, len(sizes)-workers):] {
		need += uint64(size) * 3 / 2 // with what is read, and what filters make of it
	}
	if memory == 0 || memory >= share*need {
		return way{workers: workers}
	}
	return way{workers: 1, onDisk: true}
}

// room is where one worker decompresses its frames, one after the other.
type room struct {
	onDisk bool
	dir    string // on the file system the file would be on
	buf    []byte
	unmap  func()
}

// enter makes room for a frame; what was there before is gone.
func (r *room) enter(size int64) ([]byte, error) {
	if !r.onDisk {
		if int64(cap(r.buf)) < size {
			r.buf = make([]byte, size)
		}
		return r.buf, nil
	}
	r.leave()
	b, unmap, err := scratch(r.dir, size)
	if err != nil {
		return nil, err
	}
	r.unmap = unmap
	return b, nil
}

// leave gives the room back.
func (r *room) leave() {
	if r.unmap != nil {
		r.unmap()
		r.unmap = nil
	}
}
