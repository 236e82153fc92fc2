package stoppods

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cri is a runtime with one pod and one container, that refuses everything at first.
type cri struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	mu      sync.Mutex
	refuses []error // one by one
	did     []string
}

// refuse uses up one of refuses.
func (c *cri) refuse() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.refuses) == 0 {
		return nil
	}
	err := c.refuses[0]
	c.refuses = c.refuses[1:]
	return err
}

func (c *cri) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	if err := c.refuse(); err != nil {
		return nil, err
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "test", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (c *cri) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	if err := c.refuse(); err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "p", Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "ns"}}}}, nil
}

func (c *cri) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: "c"}}}, nil
}

func (c *cri) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.did = append(c.did, what)
}

func (c *cri) StopContainer(_ context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c.note("stop container " + r.ContainerId)
	return &runtimeapi.StopContainerResponse{}, nil
}

func (c *cri) StopPodSandbox(_ context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	c.note("stop pod " + r.PodSandboxId)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (c *cri) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	c.note("remove pod " + r.PodSandboxId)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// serve returns the endpoint.
func (c *cri) serve(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, c)
	go func() { _ = s.Serve(l) }() // until Stop
	t.Cleanup(s.Stop)
	return "unix://" + socket
}

// containerd answers as soon as it listens, and finds its pods later.
func TestPodsAreEndedByARuntimeThatHasJustStarted(t *testing.T) {
	early := status.Error(codes.Unavailable, "server is not initialized yet")
	c := &cri{refuses: []error{early, early, early}}
	if err := Run(t.Context(), []string{"--endpoint=" + c.serve(t)}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"stop container c", "stop pod p", "remove pod p"}; !slices.Equal(c.did, want) {
		t.Errorf("it did %q, want %q", c.did, want)
	}
}

func TestWhatTheRuntimeRefusesForGoodIsToldAtOnce(t *testing.T) {
	c := &cri{refuses: []error{status.Error(codes.PermissionDenied, "no")}}
	err := Run(t.Context(), []string{"--endpoint=" + c.serve(t)})
	if err == nil || !strings.Contains(err.Error(), "connecting to the container runtime") || !strings.Contains(err.Error(), "no") || len(c.did) > 0 {
		t.Errorf("%v, it did %q", err, c.did)
	}
}

func TestAContainerGetsWhatItsPodGrantsAndNoMore(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"":     30 * time.Second,
		"odd":  30 * time.Second,
		"-1":   30 * time.Second,
		"0":    0,
		"2":    2 * time.Second,
		"3600": 30 * time.Second,
	} {
		if got := graceOf(map[string]string{graceAnnotation: text}, 30*time.Second); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
