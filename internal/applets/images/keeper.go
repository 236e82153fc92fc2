package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/fsnotify/fsnotify"

	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/image"
)

// Times of the keeper.
const (
	settle   = 300 * time.Millisecond // after the last event in the directory until it is looked at
	quiet    = 2 * time.Second        // see beingWritten
	recheck  = 500 * time.Millisecond // while a bundle is being written
	unseen   = 10 * time.Second       // between passes when the directory cannot be watched
	backoff0 = 250 * time.Millisecond
	backoffN = 15 * time.Second
)

// pauseProgram is the payload's file that becomes /pause of the base image.
const pauseProgram = "pause"

// status is the content of the status file.
type status struct {
	image.Status
	Problems []health.Problem `json:"problems"`
}

func problem(code health.Code, format string, args ...any) health.Problem {
	p := health.New(code, format, args...)
	p.Component = "images"
	return p
}

type options struct {
	socket, payload, bundles, statusFile, readyFile, cacheFile, snapshotter string
}

// keeper keeps the node's images. One goroutine runs it, so nothing in it is locked.
type keeper struct {
	options
	log       *slog.Logger
	cache     map[string]cached // what became of each bundle, by file name
	base      bool
	unbased   error  // why there is no base image
	unwatched error  // why the bundles directory is not watched
	reported  string // content of the status file
	announced bool   // the ready file is written
}

// stamp tells one content of a file from the next without reading it.
type stamp struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
}

func (s stamp) equal(o stamp) bool { return s.Size == o.Size && s.ModTime.Equal(o.ModTime) }

// cached is a bundle as it was last looked at. One with an Error is not worth another try until it
// changes or k1s starts again.
type cached struct {
	stamp
	Images []image.Imported `json:"images,omitempty"`
	Error  string           `json:"error,omitempty"`
}

func newKeeper(o options, log *slog.Logger) *keeper {
	return &keeper{options: o, log: log, cache: map[string]cached{}}
}

func (k *keeper) run(ctx context.Context) error {
	if err := os.MkdirAll(k.bundles, 0o755); err != nil {
		return fmt.Errorf("making the bundles directory: %w", err)
	}
	if err := os.Remove(k.readyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the ready file of the run before: %w", err)
	}
	defer func() {
		if err := os.Remove(k.readyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.log.Warn("ready file stays behind", "err", err)
		}
	}()
	k.loadCache()
	changed, stop := k.watch()
	defer stop()
	pause := backoff0
	for {
		began := time.Now()
		err := k.session(ctx, changed)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > backoffN {
			pause = backoff0
		}
		k.log.Warn("images cannot be kept for now", "err", err, "after", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, backoffN)
	}
}

// session works until containerd goes away.
func (k *keeper) session(ctx context.Context, changed <-chan struct{}) error {
	c, err := dial(ctx, k.socket, patienceComponent)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The stream ends when containerd does, and a new containerd may have lost what the old one had.
	deleted, lost := c.Subscribe(ctx, `topic=="/images/delete"`)
	im := &importer{client: c, snapshotter: k.snapshotter}
	again, err := k.pass(ctx, im)
	if err != nil {
		return err
	}
	if err := k.announce(); err != nil {
		return err
	}
	timer := time.NewTimer(again)
	defer timer.Stop()
	if again == 0 {
		timer.Stop()
	}
	// A copy in progress makes events all the time; only the first one after a pass sets the timer.
	var due bool
	soon := func() {
		if !due {
			due = true
			timer.Reset(settle)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-lost:
			return fmt.Errorf("containerd went away: %w", cmp.Or(err, io.EOF))
		case e := <-deleted:
			if concerns(e) {
				soon()
			}
			continue
		case <-changed:
			soon()
			continue
		case <-timer.C:
			due = false
		}
		if again, err = k.pass(ctx, im); err != nil {
			return err
		}
		if again > 0 {
			timer.Reset(again)
		}
	}
}

// concerns leaves out other namespaces: their images are not ours to keep.
func concerns(e *events.Envelope) bool { return e != nil && e.Namespace == namespace }

// announce writes the ready file once.
func (k *keeper) announce() error {
	if k.announced {
		return nil
	}
	if err := writeFile(k.readyFile, []byte("ready\n")); err != nil {
		return fmt.Errorf("writing the ready file: %w", err)
	}
	k.announced = true
	return nil
}

// pass makes what should be there be there, once. It returns after how long to come back by itself, 0 if
// only after a change. The error is about containerd, or the base image; a bad bundle is none.
func (k *keeper) pass(ctx context.Context, im *importer) (time.Duration, error) {
	var again time.Duration
	if err := k.ensureBase(ctx, im); err != nil {
		if ctx.Err() == nil && !errdefs.IsUnavailable(err) {
			k.unbased = err
			k.report(nil)
		}
		return 0, err
	}
	k.unbased = nil
	if k.unwatched != nil {
		again = unseen
	}
	files, err := bundleFiles(k.bundles)
	if err != nil {
		return 0, err
	}
	present, err := k.present(ctx, im)
	if err != nil {
		return 0, err
	}
	states := make([]image.Bundle, 0, len(files))
	for _, name := range files {
		b, err := k.bundle(ctx, im, name, present)
		if err != nil {
			return 0, err
		}
		if b.State == image.BundleWaiting {
			again = recheck
		}
		states = append(states, b)
	}
	if err := k.forget(ctx, im, files); err != nil {
		return 0, err
	}
	k.saveCache()
	k.report(states)
	return again, nil
}

// ensureBase makes the base image unless it is there as this payload would make it.
func (k *keeper) ensureBase(ctx context.Context, im *importer) error {
	tmp, err := os.CreateTemp("", "k1s-base-*.tar")
	if err != nil {
		return fmt.Errorf("making the base image: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	// It is written even when it is there: that is how its digest is known, and it takes milliseconds.
	made, err := image.Write(tmp, image.OCI, image.Base(os.DirFS(k.payload), pauseProgram, runtime.GOARCH))
	if err != nil {
		return fmt.Errorf("making the base image from %s: %w", k.payload, err)
	}
	if k.base, err = im.complete(ctx, image.BaseName, made[0].Digest); err != nil {
		return fmt.Errorf("looking for the base image: %w", err)
	}
	if k.base {
		return nil
	}
	if _, err := importFile(ctx, im, tmp.Name(), nil, map[string]string{labelPinned: valuePinned}); err != nil {
		return fmt.Errorf("importing the base image: %w", err)
	}
	k.base = true
	k.log.Info("base image made", "image", image.BaseName, "digest", made[0].Digest)
	return nil
}

// bundleFiles are the names of the files to import, sorted. Hidden files are not: copying programs hide
// what they have not completed.
func bundleFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the bundles directory: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		// A link to a file counts as the file; a dangling one is shown as unreadable.
		if st, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && st.IsDir() {
			continue
		}
		out = append(out, e.Name())
	}
	return out, nil
}

// present are the pinned images that containerd has: name → digest.
func (k *keeper) present(ctx context.Context, im *importer) (map[string]string, error) {
	all, err := im.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	out := make(map[string]string, len(all))
	for _, i := range all {
		if i.Labels[labelPinned] == valuePinned {
			out[i.Name] = i.Target.Digest.String()
		}
	}
	return out, nil
}

// bundle makes sure that the images of one file are there. The error is about containerd only.
func (k *keeper) bundle(ctx context.Context, im *importer, name string, present map[string]string) (image.Bundle, error) {
	file := filepath.Join(k.bundles, name)
	st, err := os.Stat(file)
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("it is not a file but %s", st.Mode().Type())
	}
	if err != nil {
		return image.Bundle{File: name, State: image.BundleFailed, Error: err.Error()}, nil
	}
	now := stamp{st.Size(), st.ModTime()}
	old := k.cache[name]
	if old.equal(now) && k.allPresent(old.Images, present) {
		return old.bundle(name), nil
	}
	writing, err := openForWriting(file, st.ModTime())
	if err != nil {
		return image.Bundle{File: name, State: image.BundleFailed, Error: err.Error()}, nil
	}
	if writing {
		return image.Bundle{File: name, State: image.BundleWaiting}, nil
	}
	began := time.Now()
	images, err := importFile(ctx, im, file, nil, map[string]string{labelPinned: valuePinned, labelBundle: name})
	if err != nil && (ctx.Err() != nil || errdefs.IsUnavailable(err)) {
		return image.Bundle{}, fmt.Errorf("importing %s: %w", name, err)
	}
	for _, i := range images {
		present[i.Name] = i.Digest
	}
	if after, statErr := os.Stat(file); statErr != nil || !now.equal(stamp{after.Size(), after.ModTime()}) {
		return image.Bundle{File: name, State: image.BundleWaiting, Images: images}, nil
	}
	entry := cached{stamp: now, Images: images}
	if err != nil {
		entry.Error = err.Error()
		k.log.Warn("bundle cannot be imported", "file", name, "err", err, "code", health.BundleUnreadable)
		// A bad copy over a good one does not take the good one's images away.
		entry.Images = append(entry.Images, missingIn(images, old.Images)...)
	} else {
		k.log.Info("bundle imported", "file", name, "images", len(images), "took", time.Since(began).Round(time.Millisecond))
	}
	k.cache[name] = entry
	return entry.bundle(name), k.release(ctx, im, missingIn(entry.Images, old.Images))
}

func (c cached) bundle(name string) image.Bundle {
	b := image.Bundle{File: name, State: image.BundleImported, Images: c.Images, Error: c.Error}
	if c.Error != "" {
		b.State = image.BundleFailed
	}
	return b
}

// missingIn are the images of want whose names are not in have.
func missingIn(have, want []image.Imported) []image.Imported {
	var out []image.Imported
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h image.Imported) bool { return h.Name == w.Name }) {
			out = append(out, w)
		}
	}
	return out
}

// allPresent tells whether containerd has these images. When two bundles bring one name, either content
// will do: importing one after the other for ever helps nobody.
func (k *keeper) allPresent(want []image.Imported, present map[string]string) bool {
	return !slices.ContainsFunc(want, func(i image.Imported) bool {
		got, ok := present[i.Name]
		if !ok || got == i.Digest {
			return !ok
		}
		for _, c := range k.cache {
			if slices.Contains(c.Images, image.Imported{Name: i.Name, Digest: got}) {
				return false
			}
		}
		return true
	})
}

// openForWriting tells whether somebody is still writing the file.
func openForWriting(file string, modified time.Time) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return beingWritten(f, modified), nil
}

// forget lets go of what came from files that are gone.
func (k *keeper) forget(ctx context.Context, im *importer, files []string) error {
	for name, c := range k.cache {
		if slices.Contains(files, name) {
			continue
		}
		delete(k.cache, name)
		if err := k.release(ctx, im, c.Images); err != nil {
			return err
		}
		k.log.Info("bundle is gone, its images are no longer pinned", "file", name)
	}
	return nil
}

// release unpins images that no bundle brings any more; the kubelet may then collect them. An image that
// another bundle brings is from now on said to come from that one.
func (k *keeper) release(ctx context.Context, im *importer, images []image.Imported) error {
	for _, i := range images {
		labels := map[string]string{labelPinned: "", labelBundle: ""}
		if other := k.bringer(i.Name); other != "" {
			labels = map[string]string{labelBundle: other}
		} else if i.Name == image.BaseName {
			labels = map[string]string{labelBundle: ""}
		}
		if err := im.setLabels(ctx, i.Name, labels); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("unpinning %s: %w", i.Name, err)
		}
	}
	return nil
}

func (k *keeper) bringer(name string) string {
	for _, file := range slices.Sorted(maps.Keys(k.cache)) {
		if slices.ContainsFunc(k.cache[file].Images, func(i image.Imported) bool { return i.Name == name }) {
			return file
		}
	}
	return ""
}

// watch tells about changes in the bundles directory. Where that is impossible it is a problem to show,
// and passes are made from time to time.
func (k *keeper) watch() (changed <-chan struct{}, stop func()) {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(k.bundles); err != nil {
			err = errors.Join(err, w.Close())
		}
	}
	if err != nil {
		k.log.Warn("bundles directory cannot be watched", "dir", k.bundles, "err", err, "code", health.BundlesUnwatched)
		k.unwatched = fmt.Errorf("watching %s: %w", k.bundles, err)
		return nil, func() {}
	}
	ch, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case e, ok := <-w.Events:
				if !ok {
					return
				}
				if strings.HasPrefix(filepath.Base(e.Name), ".") {
					continue
				}
			case _, ok := <-w.Errors: // events were lost: the pass looks at everything anyway
				if !ok {
					return
				}
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch, func() {
		if err := w.Close(); err != nil {
			k.log.Debug("watcher did not close", "err", err)
		}
		<-done
	}
}

// report writes the status file when there is something new to say.
func (k *keeper) report(bundles []image.Bundle) {
	s := status{
		Status:   image.Status{Base: k.base, Bundles: append([]image.Bundle{}, bundles...)}, // never null in JSON
		Problems: []health.Problem{},
	}
	if k.unbased != nil {
		s.Problems = append(s.Problems, problem(health.BaseImage, "no pod can start: %v", k.unbased))
	}
	if k.unwatched != nil {
		s.Problems = append(s.Problems, problem(health.BundlesUnwatched, "changes are noticed late: %v", k.unwatched))
	}
	for _, b := range bundles {
		if b.Error != "" {
			s.Problems = append(s.Problems, problem(health.BundleUnreadable, "%s: %s", filepath.Join(k.bundles, b.File), b.Error))
		}
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil { // only strings in it
		panic(err)
	}
	if string(text) == k.reported {
		return
	}
	if err := writeFile(k.statusFile, append(text, '\n')); err != nil {
		k.log.Warn("status file cannot be written", "file", k.statusFile, "err", err)
		return
	}
	k.reported = string(text)
}

// loadCache reads what earlier runs imported; without it everything is imported again, which is slow and
// harmless.
func (k *keeper) loadCache() {
	b, err := os.ReadFile(k.cacheFile)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(b, &k.cache)
	}
	if err != nil {
		k.log.Warn("import cache is unreadable, bundles are imported again", "file", k.cacheFile, "err", err)
	}
	if err != nil || k.cache == nil { // "null" is JSON too
		k.cache = map[string]cached{}
	}
	for name, c := range k.cache {
		if c.Error != "" { // what was in the way may be gone
			c.stamp = stamp{}
			k.cache[name] = c
		}
	}
}

func (k *keeper) saveCache() {
	b, err := json.MarshalIndent(k.cache, "", "  ")
	if err != nil { // only strings, numbers and times in it
		panic(err)
	}
	if old, err := os.ReadFile(k.cacheFile); err == nil && string(old) == string(b) {
		return
	}
	if err := writeFile(k.cacheFile, b); err != nil {
		k.log.Warn("import cache cannot be written", "file", k.cacheFile, "err", err)
	}
}
