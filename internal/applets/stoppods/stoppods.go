// Package stoppods ends every pod of a node through its container runtime: what `k1s stop --pods` and
// `k1s reset` do after the kubelet has stopped, which would start them again.
package stoppods

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"

	"k1s.io/k1s/internal/wait"
)

// parallel bounds how many sandboxes are ended at a time: each is a shim, a runc and CNI plugins.
const parallel = 8

// Run stops all containers, each with a grace period, and removes all sandboxes, with their network. It
// is idempotent. Flags: --endpoint, the CRI socket as a URL; --grace, how long containers may take.
func Run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("stop-pods", flag.ContinueOnError)
	endpoint := fs.String("endpoint", "", "CRI socket, unix:///…")
	grace := fs.Duration("grace", 30*time.Second, "how long containers may take to end")
	if err := fs.Parse(args); err != nil {
		return err
	}
	klog.SetOutput(errOnly{})
	if err := answers(ctx, *endpoint); err != nil {
		return fmt.Errorf("connecting to the container runtime at %s: %w", *endpoint, err)
	}
	rt, err := remote.NewRemoteRuntimeService(ctx, *endpoint, *grace+30*time.Second, nil, false)
	if err != nil {
		return fmt.Errorf("connecting to the container runtime at %s: %w", *endpoint, err)
	}
	defer func() { _ = rt.Close(ctx) }()
	sandboxes, err := rt.ListPodSandbox(ctx, nil)
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	containers, err := rt.ListContainers(ctx, &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	// All containers first: a pod may need another one to end well.
	errC := each(containers, func(c *runtimeapi.Container) error {
		return wrap("stopping container", c.Id, rt.StopContainer(ctx, c.Id, int64(graceOf(c.Annotations, *grace).Seconds())))
	})
	errS := each(sandboxes, func(s *runtimeapi.PodSandbox) error {
		if err := rt.StopPodSandbox(ctx, s.Id); err != nil {
			return wrap("stopping pod", s.Metadata.GetNamespace()+"/"+s.Metadata.GetName(), err)
		}
		return wrap("removing pod", s.Metadata.GetNamespace()+"/"+s.Metadata.GetName(), rt.RemovePodSandbox(ctx, s.Id))
	})
	return errors.Join(errC, errS)
}

// notReady is how long the runtime may take from when its socket answers until it knows its pods.
const notReady = time.Minute

// answers waits until the runtime answers. One that was started for this listens before it has found what the last one left,
// and refuses everything until then, the first question of its client too, which that asks once only.
func answers(ctx context.Context, endpoint string) error {
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, notReady, fmt.Errorf("not within %s", notReady))
	defer cancel()
	asked := runtimeapi.NewRuntimeServiceClient(conn)
	return wait.Until(ctx, 200*time.Millisecond, "the container runtime to know its pods", func(ctx context.Context) error {
		_, err := asked.Version(ctx, &runtimeapi.VersionRequest{})
		if err != nil && status.Code(err) != codes.Unavailable {
			return wait.Permanent(err)
		}
		return err
	})
}

// graceAnnotation is where the kubelet notes what a pod's manifest grants, see
// k8s.io/kubernetes/pkg/kubelet/kuberuntime/labels.go.
const graceAnnotation = "io.kubernetes.pod.terminationGracePeriod"

// graceOf is how long a container may take: what its pod grants, and never more than most.
func graceOf(annotations map[string]string, most time.Duration) time.Duration {
	seconds, err := strconv.ParseInt(annotations[graceAnnotation], 10, 64)
	if err != nil || seconds < 0 {
		return most
	}
	return min(time.Duration(seconds)*time.Second, most)
}

func wrap(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}

func each[T any](items []T, do func(T) error) error {
	var mu sync.Mutex
	var failed []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, it := range items {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(it); err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// errOnly swallows the client's own log: what went wrong is in the errors.
type errOnly struct{}

func (errOnly) Write(p []byte) (int, error) { return len(p), nil }
