package clustercmd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image"
)

// newImageCmd brings images to the nodes of a cluster.
func newImageCmd(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Load images into the nodes of a cluster", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageLoadCmd(e))
	return cmd
}

type loadOptions struct {
	nodes string
	wait  time.Duration
}

func newImageLoadCmd(e env) *cobra.Command {
	o := loadOptions{wait: defaultWait}
	cmd := &cobra.Command{
		Use: "load [CLUSTER] FILE…|-", Aliases: []string{"import"}, Short: "Load images from archives into nodes",
		Long: "Gives archives as `docker save` writes them, or OCI layouts, plain or packed with gzip or zstd, to the nodes of a\n" +
			"cluster, and waits until they are imported. The images are kept until the archive is loaded again with another\n" +
			"content; nodes that are stopped, or added later, get them at their start. An archive is on the disk once for all nodes.",
		Example: "  k1s cluster image load app.tar\n" +
			"  k1s cluster image load dev app.tar sidecar.tar.gz --nodes agents\n" +
			"  docker save app:1 | k1s cluster image load dev -",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("which archive? - reads standard input")
			}
			return nil
		},
		ValidArgsFunction: completeName(e),
		RunE:              func(cmd *cobra.Command, args []string) error { return runImageLoad(cmd.Context(), e, o, args) },
	}
	cmd.Flags().StringVar(&o.nodes, "nodes", "all", "which nodes: all, servers, agents, or names with commas between")
	cmd.Flags().DurationVar(&o.wait, "wait", o.wait, "how long to wait until they are imported")
	return cmd
}

func runImageLoad(ctx context.Context, e env, o loadOptions, args []string) error {
	name, archives, err := clusterAndArchives(ctx, e, args)
	if err != nil {
		return err
	}
	on, err := cluster.ParseSelector(o.nodes)
	if err != nil {
		return err
	}
	loaded, err := e.manager(false).LoadImages(ctx, cluster.LoadOptions{Cluster: name, Archives: archives, Stdin: e.streams.In, On: on, Wait: o.wait})
	for _, l := range loaded {
		what := "has " + strings.Join(l.Images, ", ")
		if l.Later {
			what = "does not run: it imports them when it is started"
		}
		fmt.Fprintf(e.streams.ErrOut, "node %s %s\n", l.Node, what)
	}
	return err
}

// clusterAndArchives reads [CLUSTER] FILE…: the first word is a cluster unless it is a file.
func clusterAndArchives(ctx context.Context, e env, args []string) (name string, archives []string, err error) {
	name, archives = cluster.DefaultName, args
	if first := args[0]; first != "-" && cluster.ValidateName(first) == nil {
		_, derr := e.deps.Provider.Describe(ctx, first)
		if derr == nil || !isFile(first) {
			name, archives = first, args[1:]
		}
	}
	if len(archives) == 0 {
		return name, nil, errs.Hint(errs.New(errs.Usage, "which archive is to be loaded into cluster %s?", name), "write: k1s cluster image load %s FILE", name)
	}
	return name, archives, nil
}

// imagesReport is what a node's image keeper writes, beside its control socket.
const imagesReport = "images.json"

// readImages reads which bundles a node has imported.
func readImages(_ context.Context, n cluster.Node) ([]image.Bundle, error) {
	var s image.Status
	b, err := os.ReadFile(filepath.Join(filepath.Dir(n.ControlSocket), imagesReport))
	if err != nil {
		return nil, fmt.Errorf("it tells nothing about images yet: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("reading what it tells about images: %w", err)
	}
	return s.Bundles, nil
}
