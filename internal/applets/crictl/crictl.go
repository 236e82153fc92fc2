// Package crictl is a client of the Container Runtime Interface for people who look for a fault on a
// node: what runs, what it says, what it was told to be. It has the commands, flags and output of the
// cri-tools program of the same name that are used for that, on top of upstream's CRI client; it does
// not create pods or containers, which is the kubelet's work.
package crictl

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/paths"
)

// Run takes crictl's arguments and uses the process's standard streams.
func Run(ctx context.Context, args []string) error {
	// gRPC reports every failed connection in the log; the error that is returned says the same.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	cmd := NewCommand(iostreams.System(), os.Getenv)
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}

// NewCommand builds the command tree. getenv gives the defaults of the flags for the socket.
func NewCommand(streams iostreams.Streams, getenv func(string) string) *cobra.Command {
	c := &client{Streams: streams}
	root := &cobra.Command{
		Use:           "crictl",
		Short:         "Look at pods, containers and images as the container runtime sees them",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			// The client logs each failed call as well as returning it.
			cmd.SetContext(klog.NewContext(cmd.Context(), logr.Discard()))
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errs.As(errs.Usage, err) })
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)
	endpoint := getenv("CONTAINER_RUNTIME_ENDPOINT")
	if endpoint == "" {
		endpoint = "unix://" + paths.Default().ContainerdSocket()
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&c.runtimeEndpoint, "runtime-endpoint", "r", endpoint, "`socket` of the runtime; env CONTAINER_RUNTIME_ENDPOINT")
	flags.StringVarP(&c.imageEndpoint, "image-endpoint", "i", getenv("IMAGE_SERVICE_ENDPOINT"), "`socket` of the image service; empty: the runtime's")
	flags.DurationVarP(&c.timeout, "timeout", "t", 10*time.Second, "for connecting")
	root.AddCommand(
		c.psCmd(), c.podsCmd(), c.imagesCmd(), c.statsCmd(),
		c.inspectCmd(), c.inspectpCmd(), c.inspectiCmd(), c.infoCmd(), c.versionCmd(), c.imagefsinfoCmd(),
		c.logsCmd(), c.execCmd(),
		c.startCmd(), c.stopCmd(), c.rmCmd(), c.stoppCmd(), c.rmpCmd(), c.rmiCmd(), c.pullCmd(),
	)
	return root
}

// client is what all commands share.
type client struct {
	iostreams.Streams
	runtimeEndpoint, imageEndpoint string
	timeout                        time.Duration
}

// withRuntime calls f with a connection to the runtime.
func (c *client) withRuntime(ctx context.Context, f func(internalapi.RuntimeService) error) error {
	rt, err := cri.NewRemoteRuntimeService(ctx, c.runtimeEndpoint, c.timeout, nil, false)
	if err != nil {
		return unreachable(c.runtimeEndpoint, err)
	}
	defer rt.Close(ctx)
	return f(rt)
}

// withImages calls f with a connection to the image service.
func (c *client) withImages(ctx context.Context, f func(internalapi.ImageManagerService) error) error {
	endpoint := c.imageEndpoint
	if endpoint == "" {
		endpoint = c.runtimeEndpoint
	}
	img, err := cri.NewRemoteImageService(ctx, endpoint, c.timeout, nil, false)
	if err != nil {
		return unreachable(endpoint, err)
	}
	defer img.Close(ctx)
	return f(img)
}

func unreachable(endpoint string, err error) error {
	return errs.Hint(fmt.Errorf("connecting to the container runtime at %s: %w", endpoint, err),
		"is it running? name its socket with --runtime-endpoint")
}

// each calls f for every argument, goes on after a failure, and prints what was done.
func each(out io.Writer, args []string, done string, f func(string) error) error {
	var failed []error
	for _, a := range args {
		if err := f(a); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", a, err))
			continue
		}
		fmt.Fprintf(out, done+"\n", a)
	}
	return joined(failed)
}
