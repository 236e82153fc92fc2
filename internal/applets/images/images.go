// Package images is the applet that brings container images to a node without a registry: it makes the
// base image from the payload, and imports, pins and watches the archives in the bundles directory. It
// also has the verbs behind `k1s image`. It pulls nothing: that is CRI's work, told where from by package
// image/registries. Run by the node's process and by the CLI.
package images

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/wait"
)

// namespace is where CRI keeps its images.
const namespace = "k8s.io"

const usage = `usage: images --socket SOCKET --payload DIR --bundles DIR --status-file FILE --ready-file FILE
       images import [--socket SOCKET] FILE...
       images ls [--socket SOCKET] [-o table|json]`

// Run is the applet. Without a verb it keeps the node's images as described above until ctx ends.
func Run(ctx context.Context, args []string) error { return run(ctx, args, iostreams.System()) }

func run(ctx context.Context, args []string, std iostreams.Streams) error {
	if len(args) > 0 {
		switch args[0] {
		case "import":
			return runImport(ctx, args[1:], std)
		case "ls":
			return runList(ctx, args[1:], std)
		}
	}
	var o options
	fs := newFlags("images", &o.socket)
	fs.StringVar(&o.payload, "payload", "", "directory of the payload; its program pause goes into the base image")
	fs.StringVar(&o.bundles, "bundles", "", "directory of image archives to import and watch")
	fs.StringVar(&o.statusFile, "status-file", "", "file to report in")
	fs.StringVar(&o.readyFile, "ready-file", "", "file to write after the first pass over the bundles")
	fs.StringVar(&o.cacheFile, "cache-file", "", "what was imported from which file; default .imported.json in the bundles directory")
	fs.StringVar(&o.snapshotter, "snapshotter", "", "snapshotter to unpack with; default overlayfs where it works, else native")
	if err := parse(fs, args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return errs.New(errs.Usage, "unexpected argument %q\n%s", fs.Arg(0), usage)
	}
	for _, name := range []string{"socket", "payload", "bundles", "status-file", "ready-file"} {
		if fs.Lookup(name).Value.String() == "" {
			return errs.New(errs.Usage, "--%s is missing\n%s", name, usage)
		}
	}
	if o.cacheFile == "" {
		o.cacheFile = filepath.Join(o.bundles, ".imported.json")
	}
	return newKeeper(o, slog.Default()).run(ctx)
}

func newFlags(name string, socket *string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(socket, "socket", "/run/k1s/containerd/containerd.sock", "containerd's socket")
	return fs
}

func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return errs.New(errs.Usage, "%w\n%s", err, usage)
	}
	return nil
}

// How long containerd may take to answer: a person is told of it, a component tries again.
const (
	patiencePerson    = 15 * time.Second
	patienceComponent = 10 * time.Second
)

// dial connects to containerd and waits for it to answer.
func dial(ctx context.Context, socket string, patience time.Duration) (*containerd.Client, error) {
	c, err := containerd.New(strings.TrimPrefix(socket, "unix://"), containerd.WithDefaultNamespace(namespace))
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd at %s: %w", socket, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	err = wait.Until(ctx, 200*time.Millisecond, "containerd at "+socket, func(ctx context.Context) error {
		_, err := c.Version(ctx)
		return err
	})
	if err != nil {
		return nil, errors.Join(unanswered(err, socket), c.Close())
	}
	return c, nil
}

// unanswered says what to do about a containerd that does not answer: one that listens has too much to do.
func unanswered(err error, socket string) error {
	l, dialErr := net.Dial("unix", strings.TrimPrefix(socket, "unix://"))
	if dialErr != nil {
		return errs.Hint(errs.As(errs.NotRunning, err), "see whether the node runs: k1s status")
	}
	_ = l.Close()
	return errs.Hint(err, "it listens, so the machine is busy: try again; see: k1s status")
}

func runImport(ctx context.Context, args []string, std iostreams.Streams) error {
	var (
		socket, snapshotter string
		pin                 bool
	)
	fs := newFlags("images import", &socket)
	fs.StringVar(&snapshotter, "snapshotter", "", "snapshotter to unpack with")
	fs.BoolVar(&pin, "pin", true, "keep the images when the kubelet frees disk space")
	if err := parse(fs, args); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return errs.New(errs.Usage, "which file?\n%s", usage)
	}
	c, err := dial(ctx, socket, patiencePerson)
	if err != nil {
		return err
	}
	defer c.Close()
	im := importer{client: c, snapshotter: snapshotter}
	labels := map[string]string{}
	if pin {
		labels[labelPinned] = valuePinned
	}
	var failed []error
	for _, name := range fs.Args() {
		got, err := importFile(ctx, &im, name, std.In, labels)
		for _, i := range got {
			fmt.Fprintln(std.Out, i.Name)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("importing %s: %w", name, err))
		}
	}
	return errors.Join(failed...)
}

func runList(ctx context.Context, args []string, std iostreams.Streams) error {
	var socket, format string
	fs := newFlags("images ls", &socket)
	fs.StringVar(&format, "o", "table", "table or json")
	if err := parse(fs, args); err != nil {
		return err
	}
	if format != "table" && format != "json" {
		return errs.New(errs.Usage, "-o %s is not table or json", format)
	}
	c, err := dial(ctx, socket, patiencePerson)
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := list(ctx, c)
	if err != nil {
		return err
	}
	if format == "json" {
		enc := json.NewEncoder(std.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	w := tabwriter.NewWriter(std.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tDIGEST\tSIZE\tPINNED\tBUNDLE")
	for _, i := range list {
		fmt.Fprintf(w, "%s\t%.19s\t%d\t%t\t%s\n", i.Name, i.Digest, i.Size, i.Pinned, i.Bundle)
	}
	return w.Flush()
}

// writeFile replaces a file at once, so that a reader never sees half of it.
func writeFile(name string, content []byte) error {
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
