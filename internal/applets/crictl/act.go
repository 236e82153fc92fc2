package crictl

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k1s.io/k1s/internal/errs"
)

func (c *client) startCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "start CONTAINER...",
		Short: "Start containers that were created",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				return each(c.Out, args, "%s", func(id string) error { return rt.StartContainer(cmd.Context(), id) })
			})
		},
	}
}

func (c *client) stopCmd() *cobra.Command {
	var grace int64
	cmd := &cobra.Command{
		Use:   "stop CONTAINER...",
		Short: "Stop containers; the kubelet starts those of its pods again",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				return each(c.Out, args, "%s", func(id string) error { return rt.StopContainer(cmd.Context(), id, grace) })
			})
		},
	}
	cmd.Flags().Int64Var(&grace, "grace", 0, "`seconds` until it is killed")
	return cmd
}

func (c *client) rmCmd() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "rm CONTAINER...",
		Short: "Remove containers",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return c.withRuntime(ctx, func(rt internalapi.RuntimeService) error {
				if all {
					found, err := rt.ListContainers(ctx, nil)
					if err != nil {
						return fmt.Errorf("listing containers: %w", err)
					}
					for _, f := range found {
						if force || f.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
							args = append(args, f.Id)
						}
					}
				} else if len(args) == 0 {
					return errs.New(errs.Usage, "name containers, or use --all")
				}
				return each(c.Out, args, "%s", func(id string) error {
					if !force {
						r, err := rt.ContainerStatus(ctx, id, false)
						if err != nil {
							return err
						}
						if r.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
							return errs.Hint(fmt.Errorf("it is running"), "stop it first, or use --force")
						}
					} else if err := rt.StopContainer(ctx, id, 0); err != nil {
						return err
					}
					return rt.RemoveContainer(ctx, id)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all that do not run; with --force all")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when it runs")
	return cmd
}

func (c *client) stoppCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "stopp POD...",
		Short: "Stop pods",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				return each(c.Out, args, "Stopped sandbox %s", func(id string) error { return rt.StopPodSandbox(cmd.Context(), id) })
			})
		},
	}
}

func (c *client) rmpCmd() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "rmp POD...",
		Short: "Remove pods",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return c.withRuntime(ctx, func(rt internalapi.RuntimeService) error {
				ready := map[string]bool{}
				found, err := rt.ListPodSandbox(ctx, nil)
				if err != nil {
					return fmt.Errorf("listing pods: %w", err)
				}
				for _, f := range found {
					ready[f.Id] = f.State == runtimeapi.PodSandboxState_SANDBOX_READY
					if all && (force || !ready[f.Id]) {
						args = append(args, f.Id)
					}
				}
				if !all && len(args) == 0 {
					return errs.New(errs.Usage, "name pods, or use --all")
				}
				return each(c.Out, args, "Removed sandbox %s", func(id string) error {
					if force {
						if err := rt.StopPodSandbox(ctx, id); err != nil {
							return err
						}
					} else {
						for full, isReady := range ready {
							if isReady && strings.HasPrefix(full, id) {
								return errs.Hint(fmt.Errorf("it is running"), "stop it first, or use --force")
							}
						}
					}
					return rt.RemovePodSandbox(ctx, id)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all that do not run; with --force all")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when it runs")
	return cmd
}

func (c *client) rmiCmd() *cobra.Command {
	var prune bool
	cmd := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return c.withImages(ctx, func(img internalapi.ImageManagerService) error {
				if prune {
					unused, err := c.unusedImages(cmd, img)
					if err != nil {
						return err
					}
					args = append(args, unused...)
				} else if len(args) == 0 {
					return errs.New(errs.Usage, "name images, or use --prune")
				}
				return each(c.Out, args, "Deleted: %s", func(name string) error {
					spec := &runtimeapi.ImageSpec{Image: name}
					r, err := img.ImageStatus(ctx, spec, false)
					if err != nil {
						return err
					}
					if r.Image == nil {
						return errs.New(errs.NotFound, "no such image")
					}
					return img.RemoveImage(ctx, spec)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&prune, "prune", "q", false, "all that no container uses and that are not pinned")
	return cmd
}

func (c *client) unusedImages(cmd *cobra.Command, img internalapi.ImageManagerService) ([]string, error) {
	ctx := cmd.Context()
	used := map[string]bool{}
	err := c.withRuntime(ctx, func(rt internalapi.RuntimeService) error {
		found, err := rt.ListContainers(ctx, nil)
		if err != nil {
			return fmt.Errorf("listing containers: %w", err)
		}
		for _, f := range found {
			for _, ref := range []string{f.ImageRef, f.ImageId, f.GetImage().GetImage()} {
				r, err := img.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: ref}, false)
				if err != nil {
					return fmt.Errorf("looking up image %s of container %s: %w", ref, f.Id, err)
				}
				used[r.GetImage().GetId()] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	all, err := img.ListImages(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var unused []string
	for _, i := range all {
		if !used[i.Id] && !i.Pinned {
			unused = append(unused, i.Id)
		}
	}
	return unused, nil
}

func (c *client) pullCmd() *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var auth *runtimeapi.AuthConfig
			if creds != "" {
				user, password, _ := strings.Cut(creds, ":")
				auth = &runtimeapi.AuthConfig{Username: user, Password: password}
			}
			return c.withImages(cmd.Context(), func(img internalapi.ImageManagerService) error {
				ref, err := img.PullImage(cmd.Context(), &runtimeapi.ImageSpec{Image: args[0], UserSpecifiedImage: args[0]}, auth, nil)
				if err != nil {
					return fmt.Errorf("pulling %s: %w", args[0], err)
				}
				fmt.Fprintf(c.Out, "Image is up to date for %s\n", ref)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "", "`user:password` for the registry")
	return cmd
}
