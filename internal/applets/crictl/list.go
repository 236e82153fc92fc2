package crictl

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k1s.io/k1s/internal/errs"
)

const (
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
)

func (c *client) psCmd() *cobra.Command {
	var o output
	var all, quiet bool
	var name, pod, state, namespace string
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"list"},
		Short:   "List containers",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter := &runtimeapi.ContainerFilter{PodSandboxId: pod}
			if state != "" {
				v, ok := runtimeapi.ContainerState_value["CONTAINER_"+strings.ToUpper(state)]
				if !ok {
					return errs.New(errs.Usage, "--state %q: use created, running, exited or unknown", state)
				}
				filter.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState(v)}
			} else if !all {
				filter.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
			}
			match, err := regexp.Compile(name)
			if err != nil {
				return errs.New(errs.Usage, "--name: %w", err)
			}
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				found, err := rt.ListContainers(cmd.Context(), filter)
				if err != nil {
					return fmt.Errorf("listing containers: %w", err)
				}
				found = slices.DeleteFunc(found, func(f *runtimeapi.Container) bool {
					return !match.MatchString(f.GetMetadata().GetName()) || namespace != "" && f.Labels[labelNamespace] != namespace
				})
				slices.SortFunc(found, func(a, b *runtimeapi.Container) int { return int(min(max(b.CreatedAt-a.CreatedAt, -1), 1)) })
				if quiet {
					for _, f := range found {
						fmt.Fprintln(c.Out, f.Id)
					}
					return nil
				}
				now := time.Now()
				return list(c.Out, o, "containers", found, "CONTAINER\tIMAGE\tCREATED\tSTATE\tNAME\tATTEMPT\tPOD ID\tPOD\tNAMESPACE", func(f *runtimeapi.Container) string {
					return row(shortID(f.Id), shortImage(f), age(f.CreatedAt, now), pretty(f.State.String()), f.GetMetadata().GetName(),
						f.GetMetadata().GetAttempt(), shortID(f.PodSandboxId), orUnknown(f.Labels[labelPod]), orUnknown(f.Labels[labelNamespace]))
				})
			})
		},
	}
	o.register(cmd, "table")
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "also those that do not run")
	f.BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	f.StringVar(&name, "name", "", "`pattern` the name has to match")
	f.StringVarP(&pod, "pod", "p", "", "only of the pod with this `ID`")
	f.StringVarP(&state, "state", "s", "", "created, running, exited or unknown")
	f.StringVar(&namespace, "namespace", "", "only of pods in this `namespace`")
	return cmd
}

func (c *client) podsCmd() *cobra.Command {
	var o output
	var quiet bool
	var name, namespace, state string
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List pods",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter := &runtimeapi.PodSandboxFilter{}
			if state != "" {
				v, ok := runtimeapi.PodSandboxState_value["SANDBOX_"+strings.ToUpper(state)]
				if !ok {
					return errs.New(errs.Usage, "--state %q: use ready or notready", state)
				}
				filter.State = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState(v)}
			}
			match, err := regexp.Compile(name)
			if err != nil {
				return errs.New(errs.Usage, "--name: %w", err)
			}
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				found, err := rt.ListPodSandbox(cmd.Context(), filter)
				if err != nil {
					return fmt.Errorf("listing pods: %w", err)
				}
				found = slices.DeleteFunc(found, func(f *runtimeapi.PodSandbox) bool {
					return !match.MatchString(f.GetMetadata().GetName()) || namespace != "" && f.GetMetadata().GetNamespace() != namespace
				})
				slices.SortFunc(found, func(a, b *runtimeapi.PodSandbox) int { return int(min(max(b.CreatedAt-a.CreatedAt, -1), 1)) })
				if quiet {
					for _, f := range found {
						fmt.Fprintln(c.Out, f.Id)
					}
					return nil
				}
				now := time.Now()
				return list(c.Out, o, "items", found, "POD ID\tCREATED\tSTATE\tNAME\tNAMESPACE\tATTEMPT\tRUNTIME", func(f *runtimeapi.PodSandbox) string {
					handler := f.RuntimeHandler
					if handler == "" {
						handler = "(default)"
					}
					return row(shortID(f.Id), age(f.CreatedAt, now), pretty(f.State.String()), f.GetMetadata().GetName(),
						f.GetMetadata().GetNamespace(), f.GetMetadata().GetAttempt(), handler)
				})
			})
		},
	}
	o.register(cmd, "table")
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	f.StringVar(&name, "name", "", "`pattern` the name has to match")
	f.StringVar(&namespace, "namespace", "", "only in this `namespace`")
	f.StringVarP(&state, "state", "s", "", "ready or notready")
	return cmd
}

func (c *client) imagesCmd() *cobra.Command {
	var o output
	var quiet, digests bool
	cmd := &cobra.Command{
		Use:     "images [REPOSITORY]",
		Aliases: []string{"image", "img"},
		Short:   "List images",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			filter := &runtimeapi.ImageFilter{}
			if len(args) == 1 {
				filter.Image = &runtimeapi.ImageSpec{Image: args[0]}
			}
			return c.withImages(cmd.Context(), func(img internalapi.ImageManagerService) error {
				found, err := img.ListImages(cmd.Context(), filter)
				if err != nil {
					return fmt.Errorf("listing images: %w", err)
				}
				if quiet {
					for _, f := range found {
						fmt.Fprintln(c.Out, f.Id)
					}
					return nil
				}
				// One line a name: an image may have several.
				var lines []*runtimeapi.Image
				names := map[*runtimeapi.Image]string{}
				for _, f := range found {
					tags := f.RepoTags
					if len(tags) == 0 {
						tags = []string{"<none>"}
					}
					if o != "" && o != "table" {
						tags = tags[:1]
					}
					for i, tag := range tags {
						line := f
						if i > 0 {
							line = &runtimeapi.Image{Id: f.Id, RepoTags: f.RepoTags, RepoDigests: f.RepoDigests, Size: f.Size}
						}
						names[line] = tag
						lines = append(lines, line)
					}
				}
				if o == "" || o == "table" {
					slices.SortStableFunc(lines, func(a, b *runtimeapi.Image) int { return strings.Compare(names[a], names[b]) })
				}
				head := "IMAGE\tTAG\tIMAGE ID\tSIZE"
				if digests {
					head = "IMAGE\tTAG\tDIGEST\tIMAGE ID\tSIZE"
				}
				return list(c.Out, o, "images", lines, head, func(f *runtimeapi.Image) string {
					repo, tag := splitTag(names[f])
					if !digests {
						return row(repo, tag, shortID(f.Id), size(f.Size))
					}
					digest := "<none>"
					if len(f.RepoDigests) > 0 {
						_, digest, _ = strings.Cut(f.RepoDigests[0], "@")
					}
					return row(repo, tag, shortID(digest), shortID(f.Id), size(f.Size))
				})
			})
		},
	}
	o.register(cmd, "table")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	cmd.Flags().BoolVar(&digests, "digests", false, "with digests")
	return cmd
}

func (c *client) statsCmd() *cobra.Command {
	var o output
	var all bool
	cmd := &cobra.Command{
		Use:   "stats [CONTAINER]",
		Short: "Show what containers use",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			filter := &runtimeapi.ContainerStatsFilter{}
			if len(args) == 1 {
				filter.Id = args[0]
			}
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				ctx := cmd.Context()
				first, err := rt.ListContainerStats(ctx, filter)
				if err != nil {
					return fmt.Errorf("asking for statistics: %w", err)
				}
				before := map[string]*runtimeapi.CpuUsage{}
				for _, s := range first {
					before[s.GetAttributes().GetId()] = s.Cpu
				}
				// CPU time is a counter; its rate needs a second look.
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Second):
				}
				now, err := rt.ListContainerStats(ctx, filter)
				if err != nil {
					return fmt.Errorf("asking for statistics: %w", err)
				}
				if !all {
					now = slices.DeleteFunc(now, func(s *runtimeapi.ContainerStats) bool { return s.GetMemory().GetWorkingSetBytes().GetValue() == 0 })
				}
				return list(c.Out, o, "stats", now, "CONTAINER\tNAME\tCPU %\tMEM\tDISK\tINODES", func(s *runtimeapi.ContainerStats) string {
					return row(shortID(s.GetAttributes().GetId()), s.GetAttributes().GetMetadata().GetName(),
						fmt.Sprintf("%.2f", cpuPercent(before[s.GetAttributes().GetId()], s.Cpu)),
						memory(s.GetMemory().GetWorkingSetBytes().GetValue()),
						size(s.GetWritableLayer().GetUsedBytes().GetValue()), s.GetWritableLayer().GetInodesUsed().GetValue())
				})
			})
		},
	}
	o.register(cmd, "table")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	return cmd
}

// cpuPercent is the share of one CPU used between two looks.
func cpuPercent(before, now *runtimeapi.CpuUsage) float64 {
	span := now.GetTimestamp() - before.GetTimestamp()
	used := now.GetUsageCoreNanoSeconds().GetValue()
	if span <= 0 || used < before.GetUsageCoreNanoSeconds().GetValue() {
		return 0
	}
	return 100 * float64(used-before.GetUsageCoreNanoSeconds().GetValue()) / float64(span)
}

// pretty turns CONTAINER_RUNNING into Running and SANDBOX_NOTREADY into NotReady.
func pretty(state string) string {
	if state == "SANDBOX_NOTREADY" {
		return "NotReady"
	}
	_, word, ok := strings.Cut(state, "_")
	if !ok || word == "" {
		return state
	}
	return word[:1] + strings.ToLower(word[1:])
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func shortImage(f *runtimeapi.Container) string {
	if name := f.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	name := f.GetImage().GetImage()
	if strings.HasPrefix(name, "sha256:") {
		return shortID(name)
	}
	return name
}

// splitTag splits host:5000/name:tag at the tag.
func splitTag(name string) (repo, tag string) {
	i := strings.LastIndex(name, ":")
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, "<none>"
	}
	return name[:i], name[i+1:]
}
