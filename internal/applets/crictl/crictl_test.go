package crictl

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
)

// runtime is a container runtime with one pod that runs one container, and remembers what it was told.
type runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	told []string
}

func (r *runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (r *runtime) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	web := &runtimeapi.Container{
		Id: "0123456789abcdef0123", PodSandboxId: "fedcba9876543210",
		Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 2},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:aaaabbbbccccddddeeee", UserSpecifiedImage: "example/web:1"},
		ImageRef: "sha256:aaaabbbbccccddddeeee", ImageId: "sha256:aaaabbbbccccddddeeee",
		State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: time.Now().Add(-3 * time.Hour).UnixNano(),
		Labels: map[string]string{labelPod: "web-0", labelNamespace: "shop"},
	}
	if s := req.GetFilter().GetState(); s != nil && s.State != web.State {
		return &runtimeapi.ListContainersResponse{}, nil
	}
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{web}}, nil
}

func (r *runtime) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return &runtimeapi.ContainerStatusResponse{
		Status: &runtimeapi.ContainerStatus{
			Id: req.ContainerId, State: runtimeapi.ContainerState_CONTAINER_RUNNING,
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Image: &runtimeapi.ImageSpec{Image: "i"}, ImageRef: "i", CreatedAt: 1,
		},
		Info: map[string]string{"info": `{"pid": 7}`},
	}, nil
}

func (r *runtime) StopContainer(_ context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r.told = append(r.told, "stop "+req.ContainerId)
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *runtime) RemoveContainer(_ context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	r.told = append(r.told, "remove "+req.ContainerId)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (r *runtime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{
		{Id: "sha256:aaaabbbbccccddddeeee", RepoTags: []string{"reg:5000/example/web:1", "reg:5000/example/web:latest"}, Size: 12345678},
		{Id: "sha256:11112222333344445555", Size: 10},
		{Id: "sha256:99998888777766665555", RepoTags: []string{"k1s.io/base:1"}, Size: 10, Pinned: true},
	}}, nil
}

// ImageFsInfo is asked for by every new connection to see whether the service is there.
func (r *runtime) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

func (r *runtime) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if req.GetImage().GetImage() == "nosuch" {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: req.GetImage().GetImage(), Size: 1}}, nil
}

func (r *runtime) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	r.told = append(r.told, "remove "+req.GetImage().GetImage())
	return &runtimeapi.RemoveImageResponse{}, nil
}

func start(t *testing.T) (*runtime, func(args ...string) (string, error)) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	r := &runtime{}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, r)
	runtimeapi.RegisterImageServiceServer(s, r)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-served
	})
	return r, func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := NewCommand(iostreams.Streams{In: strings.NewReader(""), Out: &out, ErrOut: &out}, func(name string) string {
			return map[string]string{"CONTAINER_RUNTIME_ENDPOINT": "unix://" + socket}[name]
		})
		cmd.SetArgs(args)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
}

func TestShowsWhatTheRuntimeHas(t *testing.T) {
	_, crictl := start(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"version"}, "Version:  0.1.0\nRuntimeName:  fake\nRuntimeVersion:  1\nRuntimeApiVersion:  v1\n"},
		{[]string{"ps"}, "" +
			"CONTAINER        IMAGE            CREATED    STATE      NAME    ATTEMPT    POD ID           POD      NAMESPACE\n" +
			"0123456789abc    example/web:1    3h ago     Running    web     2          fedcba9876543    web-0    shop\n"},
		{[]string{"ps", "-q", "--namespace=shop"}, "0123456789abcdef0123\n"},
		{[]string{"ps", "-q", "--namespace=other"}, ""},
		{[]string{"ps", "-q", "--state=exited"}, ""},
		{[]string{"images"}, "" +
			"IMAGE                   TAG       IMAGE ID         SIZE\n" +
			"<none>                  <none>    1111222233334    10B\n" +
			"k1s.io/base             1         9999888877776    10B\n" +
			"reg:5000/example/web    1         aaaabbbbccccd    12.3MB\n" +
			"reg:5000/example/web    latest    aaaabbbbccccd    12.3MB\n"},
	} {
		got, err := crictl(c.args...)
		if err != nil || got != c.want {
			t.Errorf("%q: %v\ngot\n%s\nwant\n%s", c.args, err, got, c.want)
		}
	}
	got, err := crictl("inspect", "0123")
	if err != nil || !strings.Contains(got, `"pid": 7`) || !strings.Contains(got, `"state": "CONTAINER_RUNNING"`) {
		t.Errorf("inspect: %v\n%s", err, got)
	}
}

func TestRemovesARunningContainerOnlyByForce(t *testing.T) {
	r, crictl := start(t)
	if _, err := crictl("rm", "a"); err == nil || len(r.told) > 0 {
		t.Errorf("it was removed without --force: %v, %q", err, r.told)
	}
	if out, err := crictl("rm", "-f", "a"); err != nil || out != "a\n" || strings.Join(r.told, ",") != "stop a,remove a" {
		t.Errorf("rm -f: %q, %v, %q", out, err, r.told)
	}
}

func TestPruningKeepsImagesInUseAndPinnedOnes(t *testing.T) {
	r, crictl := start(t)
	if _, err := crictl("rmi", "--prune"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.told, ","); got != "remove sha256:11112222333344445555" {
		t.Errorf("got %q", got)
	}
}

func TestGoesOnAfterAFailureAndReportsIt(t *testing.T) {
	r, crictl := start(t)
	out, err := crictl("rmi", "nosuch", "there")
	if err == nil || err.Error() != "nosuch: no such image" || out != "Deleted: there\n" || strings.Join(r.told, ",") != "remove there" {
		t.Errorf("%q, %v, %q", out, err, r.told)
	}
}

func TestWrongArgumentsAreUsageErrors(t *testing.T) {
	_, crictl := start(t)
	for _, args := range [][]string{{"ps", "--state=x"}, {"ps", "--nosuch"}, {"rm"}, {"images", "-o", "xml"}, {"logs", "a", "--since=x"}} {
		if _, err := crictl(args...); !errs.Is(err, errs.Usage) {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
}
