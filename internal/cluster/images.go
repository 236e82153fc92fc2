package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/internal/wait"
)

// LoadOptions are what LoadImages is asked for.
type LoadOptions struct {
	Cluster string
	// Archives are files of this machine; "-" is Stdin.
	Archives []string
	Stdin    io.Reader
	On       Selector
	// Wait is how long the import may take.
	Wait time.Duration
}

// Loaded is what one node has of one archive.
type Loaded struct {
	Node    string   `json:"node"`
	Archive string   `json:"archive"`
	Images  []string `json:"images"`
	// Later: the node does not run, and has them after its next start.
	Later bool `json:"later,omitempty"`
}

// LoadImages gives image archives to nodes of a cluster and waits until the running ones have imported them.
func (m Manager) LoadImages(ctx context.Context, o LoadOptions) ([]Loaded, error) {
	p := m.progress()
	defer p.Done()
	store, ok := m.Provider.(ImageStore)
	if !ok || m.Images == nil {
		return nil, errs.New(errs.Unsupported, "images cannot be loaded into these clusters")
	}
	st, err := m.Provider.Describe(ctx, o.Cluster)
	if err != nil {
		return nil, Missing(err)
	}
	nodes := slices.DeleteFunc(slices.Clone(st.Nodes), func(n Node) bool { return !o.On.Matches(n.Role, n.Index) })
	if len(nodes) == 0 {
		return nil, errs.Hint(errs.New(errs.NotFound, "cluster %q has no node %s", o.Cluster, o.On), "see: k1s cluster node ls %s", o.Cluster)
	}
	var out []Loaded
	for _, archive := range o.Archives {
		loaded, err := m.loadOne(ctx, store, o, archive, nodes)
		out = append(out, loaded...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

func (m Manager) loadOne(ctx context.Context, store ImageStore, o LoadOptions, archive string, nodes []Node) ([]Loaded, error) {
	m.progress().Step("storing " + shownArchive(archive))
	file, base := archive, filepath.Base(archive)
	if archive == "-" {
		dir, err := store.ImageDir(o.Cluster)
		if err != nil {
			return nil, err
		}
		if file, err = spool(dir, o.Stdin); err != nil {
			return nil, fmt.Errorf("reading an image archive from standard input: %w", err)
		}
		defer os.Remove(file)
		base = "stdin.tar"
	}
	sum, err := archiveSum(file)
	if err != nil {
		return nil, err
	}
	name := storedName(base, sum)
	if err := store.AddImages(ctx, o.Cluster, file, name, sameArchive(base), o.On); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Wait, fmt.Errorf("not imported within %s", o.Wait))
	defer cancel()
	var out []Loaded
	for _, n := range nodes {
		l := Loaded{Node: n.Name, Archive: archive, Images: []string{}, Later: n.State != Running}
		if !l.Later {
			m.progress().Step("importing " + shownArchive(archive) + " on node " + n.Name)
			if l.Images, err = m.imported(ctx, n, name); err != nil {
				return out, errs.Hint(fmt.Errorf("importing %s: %w", shownArchive(archive), err), "archives are those of `docker save` or OCI layouts, plain or packed with gzip or zstd")
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// imported waits until a node has imported a bundle.
func (m Manager) imported(ctx context.Context, n Node, file string) ([]string, error) {
	var names []string
	err := wait.Until(ctx, askPause, "node "+n.Name+" to import it", func(ctx context.Context) error {
		bundles, err := m.Images(ctx, n)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(bundles, func(b image.Bundle) bool { return b.File == file })
		if i < 0 {
			return errors.New("it has not seen it yet")
		}
		switch b := bundles[i]; b.State {
		case image.BundleImported:
			for _, img := range b.Images {
				names = append(names, img.Name)
			}
			return nil
		case image.BundleFailed:
			return wait.Permanent(errs.New(errs.Invalid, "%s", b.Error))
		}
		return errors.New("it is at it")
	})
	return names, err
}

func shownArchive(archive string) string {
	if archive == "-" {
		return "standard input"
	}
	return archive
}

// spool writes what is read to a file that goes with its directory, if not before.
func spool(dir string, in io.Reader) (string, error) {
	f, err := os.CreateTemp(dir, ".spool-*")
	if err != nil {
		return "", err
	}
	n, err := io.Copy(f, in)
	if err == nil && n == 0 {
		err = errs.New(errs.Invalid, "there is nothing")
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// archiveSum is what tells one content from another. A file that is no archive is told here, before nodes have it.
func archiveSum(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", errs.New(errs.Invalid, "image archive: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", errs.New(errs.Invalid, "image archive %s is no file", file)
	}
	begin := make([]byte, 512)
	n, err := io.ReadFull(f, begin)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", errs.New(errs.Invalid, "image archive: %w", err)
	}
	if begin = begin[:n]; !isArchive(begin) {
		return "", errs.Hint(errs.New(errs.Invalid, "%s is no image archive", file), "save one with: docker save -o app.tar IMAGE")
	}
	h := sha256.New()
	h.Write(begin)
	if _, err := io.Copy(h, f); err != nil {
		return "", errs.New(errs.Invalid, "image archive: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil))[:archiveSumLen], nil
}

const archiveSumLen = 12

// isArchive knows tar, gzip and zstd by how they begin.
func isArchive(begin []byte) bool {
	const magicAt = 257
	return len(begin) > magicAt+5 && string(begin[magicAt:magicAt+5]) == "ustar" ||
		bytes.HasPrefix(begin, []byte{0x1f, 0x8b}) || bytes.HasPrefix(begin, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// storedName is what nodes know an archive by: another content is another file, so that nobody takes what became of the
// one for what became of the other.
func storedName(base, sum string) string {
	stem, ext := splitArchive(base)
	return stem + "-" + sum + ext
}

// sameArchive tells which names are those of earlier contents of an archive.
func sameArchive(base string) func(string) bool {
	stem, ext := splitArchive(base)
	re := regexp.MustCompile("^" + regexp.QuoteMeta(stem) + "-[0-9a-f]{12}" + regexp.QuoteMeta(ext) + "$")
	return re.MatchString
}

func splitArchive(base string) (stem, ext string) {
	stem, ext, ok := strings.Cut(strings.TrimLeft(base, "."), ".")
	if ok {
		ext = "." + ext
	}
	return stem, ext
}
