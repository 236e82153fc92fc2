package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
)

// Image archives of a cluster are on the disk once, however many nodes it has: a node's bundles directory has hard links
// to them. They are never written to again, only replaced by name, and containerd only reads them. What containerd makes
// of them stays each node's own: two containerds do not know of each other when they collect what is not used.

// loadedName is the file that says which archives were loaded, and for which nodes.
const loadedName = "loaded.json"

// ImageDir implements cluster.ImageStore.
func (p *Provider) ImageDir(name string) (string, error) {
	l := p.layout(name)
	if !fileExists(l.record()) {
		return "", errs.New(errs.NotFound, "there is no cluster %q", name)
	}
	if err := os.MkdirAll(l.images(), 0o755); err != nil {
		return "", diskFull(err)
	}
	return l.images(), nil
}

// AddImages implements cluster.ImageStore.
func (p *Provider) AddImages(ctx context.Context, clusterName, archive, name string, replaces func(string) bool, on cluster.Selector) error {
	unlock, err := p.lock(ctx, clusterName)
	if err != nil {
		return err
	}
	defer unlock()
	l := p.layout(clusterName)
	spec, err := readRecord(l)
	if err != nil {
		return err
	}
	if err := keepImages(l, archive, name); err != nil {
		return diskFull(err)
	}
	loaded, err := readLoaded(l)
	if err != nil {
		return err
	}
	loaded[name] = on
	var old []string
	for other := range loaded {
		if other != name && replaces(other) {
			old = append(old, other)
			delete(loaded, other)
		}
	}
	b, err := json.Marshal(loaded)
	if err == nil {
		err = durable.WriteFile(filepath.Join(l.images(), loadedName), b, 0o600)
	}
	if err != nil {
		return diskFull(err)
	}
	var all []error
	for _, n := range spec.Nodes {
		if on.Matches(n.Role, n.Index) {
			all = append(all, diskFull(giveImages(l, n.Name(), name)))
		}
		for _, o := range old {
			all = append(all, gone(os.Remove(filepath.Join(l.imagesOf(n.Name()), o))))
		}
	}
	for _, o := range old {
		all = append(all, gone(os.Remove(filepath.Join(l.images(), o))))
	}
	return errors.Join(all...)
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func readLoaded(l layout) (map[string]cluster.Selector, error) {
	out := map[string]cluster.Selector{}
	b, err := os.ReadFile(filepath.Join(l.images(), loadedName))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("reading which images were loaded: %w", err)
	}
	return out, nil
}

// giveLoaded gives a node what was loaded for it before it was there, or while it did not run.
func giveLoaded(l layout, node cluster.NodeSpec) error {
	loaded, err := readLoaded(l)
	if err != nil {
		return err
	}
	for name, on := range loaded {
		if on.Matches(node.Role, node.Index) {
			if err := giveImages(l, node.Name(), name); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepImages puts an archive into the cluster's store unless it is there.
func keepImages(l layout, from, name string) error {
	to := filepath.Join(l.images(), name)
	if fileExists(to) {
		return nil
	}
	if err := os.MkdirAll(l.images(), 0o755); err != nil {
		return err
	}
	if filepath.Dir(from) == l.images() { // it was made for this
		if err := os.Chmod(from, 0o444); err != nil {
			return err
		}
		return os.Rename(from, to)
	}
	return copyFile(from, to)
}

// giveImages links an archive of the store into a node's bundles directory, unless it is there. Where the file system has
// no links it is copied. It gets its name when it is complete, since the node watches the directory.
func giveImages(l layout, node, name string) error {
	from, to := filepath.Join(l.images(), name), filepath.Join(l.imagesOf(node), name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	err := os.Link(from, to)
	switch {
	case err == nil, errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), errors.Is(err, unix.EMLINK), errors.Is(err, unix.ENOTSUP):
		return copyFile(from, to)
	}
	return fmt.Errorf("giving images to node %s: %w", node, err)
}

// copyFile copies a file; the copy gets its name when it is complete, and cannot be written to.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("offering an image bundle: %w", err)
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".bundle-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(out.Name())
		}
	}()
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Chmod(0o444), out.Close()); err != nil {
		return fmt.Errorf("copying image bundle %s: %w", from, err)
	}
	return os.Rename(out.Name(), to)
}

// giveFiles puts the files for all nodes into a node's configuration directory. What is there is the node's.
func giveFiles(l layout, node string) error {
	return filepath.WalkDir(l.files(), func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(l.files(), file)
		if err != nil {
			return err
		}
		to := filepath.Join(l.nodeEtc(node), rel)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		if fileExists(to) {
			return nil
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return durable.WriteFile(to, content, 0o600)
	})
}
