package crictl

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k1s.io/k1s/internal/errs"
)

// inspect prints what look finds for each argument: one object, or a list of them.
func (c *client) inspect(o output, args []string, look func(string) (any, error)) error {
	var found []any
	var failed []error
	for _, a := range args {
		v, err := look(a)
		if err != nil {
			failed = append(failed, fmt.Errorf("inspecting %s: %w", a, err))
			continue
		}
		found = append(found, v)
	}
	var v any = found
	if len(found) == 1 {
		v = found[0]
	}
	if len(found) > 0 {
		if err := o.object(c.Out, v); err != nil {
			return err
		}
	}
	return joined(failed)
}

func status(m proto.Message, info map[string]string) (any, error) {
	text, err := raw(m)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"status": text}
	if len(info) > 0 {
		out["info"] = verbose(info)
	}
	return out, nil
}

func (c *client) inspectCmd() *cobra.Command {
	var o output
	var quiet bool
	cmd := &cobra.Command{
		Use:   "inspect CONTAINER...",
		Short: "Show everything about containers",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				return c.inspect(o, args, func(id string) (any, error) {
					r, err := rt.ContainerStatus(cmd.Context(), id, !quiet)
					if err != nil {
						return nil, err
					}
					return status(r.Status, r.Info)
				})
			})
		},
	}
	o.register(cmd, "json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "without the runtime's own data")
	return cmd
}

func (c *client) inspectpCmd() *cobra.Command {
	var o output
	var quiet bool
	cmd := &cobra.Command{
		Use:   "inspectp POD...",
		Short: "Show everything about pods",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				return c.inspect(o, args, func(id string) (any, error) {
					r, err := rt.PodSandboxStatus(cmd.Context(), id, !quiet)
					if err != nil {
						return nil, err
					}
					return status(r.Status, r.Info)
				})
			})
		},
	}
	o.register(cmd, "json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "without the runtime's own data")
	return cmd
}

func (c *client) inspectiCmd() *cobra.Command {
	var o output
	var quiet bool
	cmd := &cobra.Command{
		Use:   "inspecti IMAGE...",
		Short: "Show everything about images",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withImages(cmd.Context(), func(img internalapi.ImageManagerService) error {
				return c.inspect(o, args, func(name string) (any, error) {
					r, err := img.ImageStatus(cmd.Context(), &runtimeapi.ImageSpec{Image: name}, !quiet)
					if err != nil {
						return nil, err
					}
					if r.Image == nil {
						return nil, errs.New(errs.NotFound, "no such image")
					}
					return status(r.Image, r.Info)
				})
			})
		},
	}
	o.register(cmd, "json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "without the runtime's own data")
	return cmd
}

func (c *client) infoCmd() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Show the runtime's state and configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				r, err := rt.Status(cmd.Context(), true)
				if err != nil {
					return fmt.Errorf("asking for the runtime's state: %w", err)
				}
				text, err := raw(r.Status)
				if err != nil {
					return err
				}
				out := verbose(r.Info)
				out["status"] = text
				return o.object(c.Out, out)
			})
		},
	}
	o.register(cmd, "json")
	return cmd
}

func (c *client) imagefsinfoCmd() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "imagefsinfo",
		Short: "Show the file systems images and containers are on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withImages(cmd.Context(), func(img internalapi.ImageManagerService) error {
				r, err := img.ImageFsInfo(cmd.Context())
				if err != nil {
					return fmt.Errorf("asking for the image file systems: %w", err)
				}
				text, err := raw(r)
				if err != nil {
					return err
				}
				return o.object(c.Out, map[string]json.RawMessage{"status": text})
			})
		},
	}
	o.register(cmd, "json")
	return cmd
}

func (c *client) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the runtime's version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				v, err := rt.Version(cmd.Context(), "v1")
				if err != nil {
					return fmt.Errorf("asking for the runtime's version: %w", err)
				}
				fmt.Fprintf(c.Out, "Version:  %s\nRuntimeName:  %s\nRuntimeVersion:  %s\nRuntimeApiVersion:  %s\n",
					v.Version, v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion)
				return nil
			})
		},
	}
}
