package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"k1s.io/k1s/internal/image"
)

// Labels of images in containerd. The first two are CRI's and make it list the image and keep the
// kubelet from collecting it; they are not exported by containerd.
const (
	labelManaged = "io.cri-containerd.image"
	valueManaged = "managed"
	labelPinned  = "io.cri-containerd.pinned"
	valuePinned  = "pinned"
	// labelBundle names the file in the bundles directory an image came from.
	labelBundle = "k1s.io/bundle"
)

// importer puts archives into containerd.
type importer struct {
	client      *containerd.Client
	snapshotter string // "" until chosen
}

// unpackWith chooses as the containerd component's configuration does: overlayfs where it works.
func (im *importer) unpackWith(ctx context.Context) (string, error) {
	if im.snapshotter != "" {
		return im.snapshotter, nil
	}
	resp, err := im.client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
	if err != nil {
		return "", fmt.Errorf("asking containerd for its snapshotters: %w", err)
	}
	im.snapshotter = "native"
	for _, p := range resp.Plugins {
		if p.ID == "overlayfs" && p.InitErr == nil {
			im.snapshotter = p.ID
		}
	}
	return im.snapshotter, nil
}

// importFile imports an archive from disk, or from stdin when it is called "-".
func importFile(ctx context.Context, im *importer, name string, stdin io.Reader, labels map[string]string) ([]image.Imported, error) {
	if name == "-" {
		return im.archive(ctx, stdin, expandLimit(1<<30), labels)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a file but %s", st.Mode().Type())
	}
	return im.archive(ctx, f, expandLimit(st.Size()), labels)
}

// archive imports every image of an archive that this machine can run. An image is given its name only
// when all of it is there and unpacked, so a name never points to half an image, and a bad archive does
// not replace a good image. The images that are in are returned together with an error about the rest.
func (im *importer) archive(ctx context.Context, r io.Reader, limit int64, labels map[string]string) ([]image.Imported, error) {
	stream, err := expand(r, limit)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	// Without the lease containerd would collect the blobs before an image refers to them. On failure it
	// is the lease's end that frees them.
	ctx, release, err := im.client.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("taking a lease: %w", err)
	}
	defer release(context.WithoutCancel(ctx)) //nolint:errcheck // it expires by itself
	cs := im.client.ContentStore()
	index, err := archive.ImportIndex(ctx, cs, stream)
	if err != nil {
		return nil, fmt.Errorf("reading the archive: %w", explain(err))
	}
	// The checksum of a compressed stream is behind the tar's end.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return nil, fmt.Errorf("reading the archive's end: %w", explain(err))
	}
	manifests, err := readIndex(ctx, cs, index)
	if err != nil {
		return nil, err
	}
	var (
		done   []image.Imported
		failed []error
	)
	for _, m := range manifests {
		name, err := nameOf(m)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if err := im.image(ctx, name, m, labels); err != nil {
			failed = append(failed, fmt.Errorf("image %s: %w", name, err))
			continue
		}
		done = append(done, image.Imported{Name: name, Digest: m.Digest.String()})
	}
	if len(manifests) == 0 {
		failed = append(failed, errors.New("the archive holds no image"))
	}
	return done, errors.Join(failed...)
}

// explain puts the common reasons into words.
func explain(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("the file is truncated: %w", err)
	case strings.Contains(err.Error(), "archive/tar: invalid tar header"):
		return fmt.Errorf("the file is not a tar archive: %w", err)
	case strings.Contains(err.Error(), "unrecognized image format"):
		return fmt.Errorf("neither an OCI layout nor a docker archive: %w", err)
	}
	return err
}

func readIndex(ctx context.Context, cs content.Store, index ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	b, err := content.ReadBlob(ctx, cs, index)
	if err != nil {
		return nil, fmt.Errorf("reading the archive's index: %w", err)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, fmt.Errorf("reading the archive's index: %w", err)
	}
	return slices.DeleteFunc(idx.Manifests, func(d ocispec.Descriptor) bool {
		_, referrer := d.Annotations[ctrimages.AnnotationManifestSubject]
		return referrer // signatures and the like are not images
	}), nil
}

// nameOf is the full reference an archive gives to an image.
func nameOf(d ocispec.Descriptor) (string, error) {
	name := d.Annotations[ctrimages.AnnotationImageName]
	if name == "" {
		name = d.Annotations[ocispec.AnnotationRefName]
		if !strings.ContainsAny(name, "/:") { // a bare tag, as the OCI specification has it
			return "", fmt.Errorf("image %s has no name in the archive; save it by name and tag, not by id", d.Digest)
		}
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("image name %q in the archive: %w", name, err)
	}
	return ref.String(), nil
}

// image checks, unpacks and names one image whose blobs are in the content store.
func (im *importer) image(ctx context.Context, name string, target ocispec.Descriptor, labels map[string]string) error {
	cs, mine := im.client.ContentStore(), platforms.Default()
	has, err := ctrimages.Platforms(ctx, cs, target)
	if err != nil {
		return fmt.Errorf("reading its manifest: %w", err)
	}
	if len(has) > 0 && !slices.ContainsFunc(has, mine.Match) {
		var names []string
		for _, p := range has {
			names = append(names, platforms.Format(p))
		}
		return fmt.Errorf("it is for %s, this machine is %s", strings.Join(names, ", "), platforms.Format(platforms.DefaultSpec()))
	}
	available, _, _, missing, err := ctrimages.Check(ctx, cs, target, mine)
	if err != nil {
		return fmt.Errorf("checking its content: %w", err)
	}
	if !available || len(missing) > 0 {
		return fmt.Errorf("%d of its parts are missing from the archive", len(missing))
	}
	// The labels are how containerd's garbage collector finds the parts of an image.
	handler := ctrimages.FilterPlatforms(ctrimages.SetChildrenLabels(cs, ctrimages.ChildrenHandler(cs)), mine)
	if err := ctrimages.WalkNotEmpty(ctx, handler, target); err != nil {
		return fmt.Errorf("marking its content: %w", err)
	}
	snapshotter, err := im.unpackWith(ctx)
	if err != nil {
		return err
	}
	record := ctrimages.Image{Name: name, Target: target, Labels: map[string]string{labelManaged: valueManaged}}
	for k, v := range labels {
		record.Labels[k] = v
	}
	if err := containerd.NewImage(im.client, record).Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("unpacking it: %w", err)
	}
	return im.record(ctx, record)
}

// record creates the image or points it to its new content, and leaves labels of others alone.
func (im *importer) record(ctx context.Context, record ctrimages.Image) error {
	is := im.client.ImageService()
	if _, err := is.Create(ctx, record); err == nil || !errdefs.IsAlreadyExists(err) {
		return err
	}
	fields := []string{"target"}
	for k := range record.Labels {
		fields = append(fields, "labels."+k)
	}
	_, err := is.Update(ctx, record, fields...)
	return err
}

// setLabels changes labels of an image; "" removes one.
func (im *importer) setLabels(ctx context.Context, name string, labels map[string]string) error {
	var fields []string
	for k := range labels {
		fields = append(fields, "labels."+k)
	}
	_, err := im.client.ImageService().Update(ctx, ctrimages.Image{Name: name, Labels: labels}, fields...)
	return err
}

// complete tells whether an image is there with this content, all of it, unpacked.
func (im *importer) complete(ctx context.Context, name, digest string) (bool, error) {
	got, err := im.client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if got.Target.Digest.String() != digest || got.Labels[labelPinned] != valuePinned {
		return false, nil
	}
	available, _, _, missing, err := ctrimages.Check(ctx, im.client.ContentStore(), got.Target, platforms.Default())
	if err != nil {
		return false, err
	}
	if !available || len(missing) > 0 {
		return false, nil
	}
	snapshotter, err := im.unpackWith(ctx)
	if err != nil {
		return false, err
	}
	return containerd.NewImage(im.client, got).IsUnpacked(ctx, snapshotter)
}

// listed is one row of `images ls`.
type listed struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	// Size in bytes of what is stored compressed; 0 where parts are missing.
	Size   int64  `json:"size"`
	Pinned bool   `json:"pinned"`
	Bundle string `json:"bundle,omitempty"`
}

func list(ctx context.Context, c *containerd.Client) ([]listed, error) {
	all, err := c.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	out := []listed{}
	for _, i := range all {
		if strings.HasPrefix(i.Name, "sha256:") { // CRI's second name for every image
			continue
		}
		size, err := i.Size(ctx, c.ContentStore(), platforms.Default())
		if err != nil {
			size = 0
		}
		out = append(out, listed{
			Name: i.Name, Digest: i.Target.Digest.String(), Size: size,
			Pinned: i.Labels[labelPinned] == valuePinned, Bundle: i.Labels[labelBundle],
		})
	}
	slices.SortFunc(out, func(a, b listed) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
