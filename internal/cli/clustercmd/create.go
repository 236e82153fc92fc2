package clustercmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
)

// createOptions is what a command line asks for. What it does not say a cluster file may, see clusterFile.
type createOptions struct {
	name         string
	named        bool // the name was given, and is not the default
	servers      int
	agents       int
	publish      []string
	volumes      []string
	env          []string
	labels       []string
	taints       []string
	reach        []string
	registry     []string
	registries   string
	image        string
	version      string
	apiPort      uint16
	subnet       string
	egress       bool
	wait         time.Duration
	noWait       bool
	config       string
	set          []string
	args         []string
	bundles      []string
	noKubeconfig bool
	noSwitch     bool
	keep         bool
	dryRun       bool
	// given tells which flags were.
	given func(flag string) bool
}

// defaultWait is how long a cluster may take; a slow machine needs most of it for unpacking.
const defaultWait = 2 * time.Minute

func newCreateCmd(e env) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:   "create [NAME] [flags] [-- NODE-FLAG…]",
		Short: "Create a cluster and wait until it is ready",
		Long: "Creates a cluster, waits until its nodes are Ready and DNS answers, and adds its context to the kubeconfig.\n" +
			"What follows -- is given to every node as flags of `k1s server` and `k1s agent`.\n\n" +
			"NODES are all, servers, agents, or names such as server-0 or agent-0,agent-2. Flags that say what nodes get can be\n" +
			"given several times; nodes that are added later get what is for all or for agents.",
		Example: "  k1s cluster create\n" +
			"  k1s cluster create dev --agents 2\n" +
			"  k1s cluster create ha --servers 3 --agents 2\n" +
			"  k1s cluster create dev --publish 8080:30080 --volume ./src:/src --image-bundle app.tar\n" +
			"  k1s cluster create dev --agents 2 --label disk=fast@agent-0 --set spec.kubelet.maxPods=50@agents\n" +
			"  k1s cluster create dev --registry localhost:5000\n" +
			"  k1s cluster create --config cluster.yaml --agents 3\n" +
			"  k1s cluster create dev -- --network-pod-cidr 10.50.0.0/16",
		Args: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				args = args[:n]
			}
			return atMostName(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				o.args, args = args[n:], args[:n]
			}
			o.name, o.named, o.given = nameOf(args), len(args) > 0, cmd.Flags().Changed
			return runCreate(cmd.Context(), e, o)
		},
	}
	o.flags(cmd.Flags())
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would be done; see also: k1s cluster config print")
	return cmd
}

// flags are those that say what is to be made.
func (o *createOptions) flags(f *pflag.FlagSet) {
	f.StringVarP(&o.config, "config", "c", "", "`FILE` that describes the cluster (kind: Cluster), or a configuration for every node (kind: Config); - is standard input. Flags win, lists are added to")
	f.IntVar(&o.servers, "servers", 1, "`number` of nodes with a control plane; three of them survive the loss of one")
	f.IntVar(&o.agents, "agents", 0, "`number` of nodes that run pods beside the servers")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "make a port of nodes appear on this machine: `[ADDRESS:]HOSTPORT:NODEPORT[/udp][@NODES]`, on 127.0.0.1 unless an address is given")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "show a directory or file of this machine to nodes: `HOST:NODE[:ro][@NODES]`")
	f.StringArrayVarP(&o.env, "env", "e", nil, "variable for nodes, e.g. a proxy: `NAME=VALUE[@NODES]`")
	f.StringArrayVar(&o.labels, "label", nil, "label of nodes: `KEY=VALUE[@NODES]`")
	f.StringArrayVar(&o.taints, "taint", nil, "taint of nodes: `KEY=VALUE:EFFECT[@NODES]`")
	f.StringArrayVar(&o.set, "set", nil, "a setting of nodes, e.g. spec.isolation=component: `PATH=VALUE[@NODES]`")
	f.StringArrayVar(&o.bundles, "image-bundle", nil, "archive of images for the nodes: `FILE`")
	f.StringVar(&o.registries, "registries", "", "`FILE` with mirrors, credentials and certificates of registries, for every node; the certificates it names are taken along")
	f.StringArrayVar(&o.registry, "registry", nil, "registry that this machine reaches, for nodes to pull from under the same name: `[http://|https://]HOST[:PORT]`")
	f.StringArrayVar(&o.reach, "reach", nil, "let nodes and pods reach an address that this machine reaches, at the same port of "+cluster.HostName+": `[HOST:]PORT`")
	f.BoolVar(&o.egress, "egress", false, "let nodes and pods open connections to the outside; they get the proxy variables set here")
	f.Uint16Var(&o.apiPort, "api-port", 0, "`port` of the Kubernetes API on 127.0.0.1 (default: a free one)")
	f.StringVar(&o.subnet, "subnet", "", "addresses of the nodes, a private `/24` (default: "+cluster.DefaultSubnet.String()+"); they exist inside of the cluster only")
	f.StringVar(&o.image, "image", "", "k1s `FILE` that the nodes run, instead of this one")
	f.StringVar(&o.version, "version", "", "`version` of k1s that the nodes run: that of --image, or of a file k1s-VERSION in PATH or beside this one")
	f.DurationVar(&o.wait, "wait", defaultWait, "how long to wait until the cluster is ready")
	f.DurationVar(&o.wait, "timeout", defaultWait, "the same as --wait")
	f.BoolVar(&o.noWait, "no-wait", false, "return as soon as the nodes run")
	f.BoolVar(&o.noKubeconfig, "no-kubeconfig", false, "leave the kubeconfig alone")
	f.BoolVar(&o.noSwitch, "no-switch", false, "add the context to the kubeconfig without making it the current one")
	f.BoolVar(&o.keep, "keep", false, "keep what was made when the creation fails")
}

func runCreate(ctx context.Context, e env, o createOptions) error {
	p, err := o.resolve(ctx, e)
	if err != nil {
		return err
	}
	m := e.manager(true)
	m.KeepContext = p.noSwitch
	if o.dryRun {
		if err := m.Check(ctx, p.CreateOptions); err != nil {
			return err
		}
		context := cluster.Context(p.Spec.Name)
		if p.NoKubeconfig {
			context = ""
		}
		return printLines(e.streams.Out, cluster.CreatePlan(p.Spec, p.Nodes, context))
	}
	ctx, stop := untilInterrupted(ctx)
	defer stop()
	st, err := m.Create(ctx, p.CreateOptions)
	if err != nil {
		return err
	}
	return printNext(e.streams.ErrOut, st, p)
}

// checkNode reads the node's configuration as the node will, so that a mistake is told here and now, and finds
// out which networks it will use. inline is where the configuration was written, if in a cluster file.
func checkNode(spec *cluster.Spec, node cluster.NodeSpec, inline []config.Inline) error {
	fs := pflag.NewFlagSet("k1s server", pflag.ContinueOnError)
	flags := config.RegisterFlags(fs, "")
	if err := fs.Parse(cluster.NodeArgs(*spec, node)); err != nil {
		return errs.New(errs.Usage, "the node's flags: %w", err)
	}
	if fs.NArg() > 0 {
		return usage("%q is no flag of a node", fs.Arg(0))
	}
	src := flags.Sources(cluster.NodeEnviron(cluster.Spec{Name: spec.Name, Subnet: spec.Subnet}, node))
	src.File, src.FileMustExist, src.DropIns = "", false, ""
	switch {
	case len(inline) > 0:
		src.Inline = inline
	case node.Config != "":
		src.File, src.Stdin = "-", strings.NewReader(node.Config)
	}
	got, err := config.Effective(src, config.Known{})
	if err != nil {
		return err
	}
	for _, cidr := range []string{got.Config.Spec.Network.PodCIDR, got.Config.Spec.Network.ServiceCIDR} {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return errs.As(errs.Invalid, err)
		}
		if subnet := cmp.Or(spec.Subnet, cluster.DefaultSubnet); p.Overlaps(subnet) {
			return errs.New(errs.Invalid, "network %s overlaps with %s, which joins the nodes", p, subnet)
		}
		if p = p.Masked(); !slices.Contains(spec.Private, p) {
			spec.Private = append(spec.Private, p)
		}
	}
	return nil
}

// untilInterrupted ends the context at the first Ctrl-C or SIGTERM, so that what was begun can be taken back.
func untilInterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

func printLines(w io.Writer, lines []string) error {
	var all []error
	for _, l := range lines {
		_, err := fmt.Fprintln(w, l)
		all = append(all, err)
	}
	return errors.Join(all...)
}

// printNext tells what there is now and what to do with it.
func printNext(w io.Writer, st cluster.Status, p plan) error {
	name := st.Spec.Name
	lines := []string{
		"",
		fmt.Sprintf("cluster %s is %s: https://127.0.0.1:%d", name, map[bool]string{true: "starting", false: "ready"}[p.Wait == 0], st.Spec.APIPort),
	}
	if p.program != "" {
		lines = append(lines, fmt.Sprintf("its nodes run %s (%s)", p.program, st.Spec.Program))
	}
	for _, p := range st.Spec.Publish {
		nodes := "its nodes"
		if p.On != "" {
			nodes = string(p.On)
		}
		lines = append(lines, fmt.Sprintf("%s leads to port %d of %s (%s)", p.Listen(), p.NodePort, nodes, p.Proto))
	}
	for _, r := range st.Spec.Reach {
		lines = append(lines, fmt.Sprintf("nodes and pods reach %s at %s:%d", r, cluster.BridgeAddr(st.Spec.Subnet), r.Port))
	}
	arg := ""
	if name != cluster.DefaultName {
		arg = " " + name
	}
	try := fmt.Sprintf("  k1s cluster kubectl %s -- get pods -A", name)
	if !p.NoKubeconfig {
		current := " is the current one"
		try = "  kubectl get pods -A            (or: k1s cluster kubectl " + name + " -- get pods -A)"
		if p.noSwitch {
			current = " is in the kubeconfig"
			try = "  kubectl --context " + cluster.Context(name) + " get pods -A   (or: k1s cluster kubectl " + name + " -- get pods -A)"
		}
		lines = append(lines, "kubeconfig context "+cluster.Context(name)+current)
	}
	lines = append(lines, "", "next:", try,
		fmt.Sprintf("  k1s cluster exec %s -- k1s status", name),
		"  k1s cluster stop"+arg+", start"+arg+", delete"+arg)
	return printLines(w, lines)
}
