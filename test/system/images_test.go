//go:build system

package system

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/image"
)

// says runs a pod to its end and checks that it could.
func (s space) says(t *testing.T, pod, image string) {
	t.Helper()
	s.kubectl(t, "run", pod, "--image="+image, "--image-pull-policy=Never", "--restart=Never", "--", "echo", "it works")
	s.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+pod, "--timeout=4m")
	if out := s.kubectl(t, "logs", pod); out != "it works\n" {
		t.Errorf("it says %q", out)
	}
}

func TestAnImageIsImportedFromAnArchive(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "import")
	for format, f := range map[string]image.Format{"docker": image.Docker, "oci": image.OCI} {
		name := "k1s.io/test/import-" + format + ":1"
		file := "/tmp/" + format + ".tar"
		s.put(t, archive(t, name, f), file)
		if err := s.in(within(t, limit), "k1s", "image", "import", file).error(); err != nil {
			t.Fatal(err)
		}
		if r := s.in(within(t, limit), "k1s", "image", "ls"); !strings.Contains(r.out, "k1s.io/test/import-"+format) {
			t.Errorf("k1s image ls: %v", r)
		}
		// containerd's own client finds the kubelet's images without being told where to look.
		if r := s.in(within(t, limit), "k1s", "ctr", "images", "ls"); r.code != 0 || !strings.Contains(r.out, name) {
			t.Errorf("k1s ctr images ls: %v", r)
		}
		s.says(t, format, name)
	}
	s.put(t, []byte("this is no archive"), "/tmp/broken.tar")
	s.in(within(t, limit), "k1s", "image", "import", "/tmp/broken.tar").wants(t, 1, "error: ", "/tmp/broken.tar")
	s.in(within(t, limit), "k1s", "image", "import", "/tmp/missing.tar").wants(t, 1, "error: ", "/tmp/missing.tar")
}

func TestABundleDroppedIntoTheDirectoryIsImportedAndABrokenOneIsAProblem(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "bundles")
	const dir = "/var/lib/k1s/images/"
	whole := archive(t, "k1s.io/test/bundle:1", image.OCI)
	s.put(t, whole[:len(whole)/2], dir+"half.tar")
	problem := func(ctx context.Context) (health.Problem, error) {
		st, err := s.status(ctx)
		for _, p := range st.Problems {
			if p.Code == health.BundleUnreadable {
				return p, err
			}
		}
		return health.Problem{}, err
	}
	eventually(t, limit, "the broken bundle to be reported", func(ctx context.Context) error {
		p, err := problem(ctx)
		if err == nil && (!strings.Contains(p.Text, "half.tar") || p.Remedy == "") {
			err = fmt.Errorf("reported is %+v", p)
		}
		return err
	})
	s.running(t) // all the same

	s.put(t, whole, dir+"whole.tar")
	s.untilOutput(t, limit, "the image to be there", contains("k1s.io/test/bundle:1"), "get", "node", "server-0", "-o", "jsonpath={.status.images[*].names}")
	s.says(t, "bundle", "k1s.io/test/bundle:1")

	if err := s.in(within(t, limit), "rm", dir+"half.tar").error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, limit, "the problem to be gone with the file", func(ctx context.Context) error {
		p, err := problem(ctx)
		if err == nil && p.Code != "" {
			err = fmt.Errorf("reported is %+v", p)
		}
		return err
	})
}
