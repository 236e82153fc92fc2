package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/printer"
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
			Args: func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return usage(cmd, fmt.Errorf("%s takes the names of archives, got none", cmd.CommandPath()))
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := runtimeAnswers(cmd.Context(), deps); err != nil {
					return err
				}
				return runImages(cmd.Context(), deps, append([]string{"import", "--socket=" + deps.Paths().ContainerdSocket(), "--"}, args...))
			},
		},
		newImageLsCmd(deps))
	return cmd
}

func newImageLsCmd(deps Deps) *cobra.Command {
	format := printer.Table
	cmd := &cobra.Command{
		Use: "ls", Short: "List images", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			args := []string{"images"}
			switch format {
			case printer.Table:
			case printer.Wide:
				args = append(args, "--digests")
			default:
				args = append(args, "--output", string(format))
			}
			return runTool(cmd.Context(), deps, crictl(), args)
		},
	}
	cmd.Flags().VarP(&format, "output", "o", "output format")
	return cmd
}

func runImages(ctx context.Context, deps Deps, args []string) error {
	program, err := payloadProgram(ctx, deps, components.Program)
	if err != nil {
		return err
	}
	return become(ctx, deps, program, "images", args, deps.Environ())
}
