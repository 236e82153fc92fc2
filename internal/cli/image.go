package cli

import (
	"context"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/components"
)

func newImageCmd(deps Deps) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Import and list container images of this node",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "import FILE...",
			Short: "Import images from archives (docker or OCI; plain, gzip or zstd)",
			Args:  cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return runImages(cmd.Context(), deps, append([]string{"import", "--socket=" + deps.Paths().ContainerdSocket(), "--"}, args...))
			},
		},
		&cobra.Command{
			Use: "ls", Short: "List images", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return runTool(cmd.Context(), deps, crictl(), []string{"images"})
			},
		})
	return cmd
}

func runImages(ctx context.Context, deps Deps, args []string) error {
	program, err := payloadProgram(ctx, deps, components.Program)
	if err != nil {
		return err
	}
	return become(ctx, deps, program, "images", args, deps.Environ())
}
