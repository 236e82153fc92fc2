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
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
)

type createOptions struct {
	name         string
	servers      int
	agents       int
	publish      []string
	apiPort      uint16
	egress       bool
	wait         time.Duration
	noWait       bool
	config       string
	set          []string
	args         []string
	bundles      []string
	noKubeconfig bool
	keep         bool
	dryRun       bool
}

// defaultWait is how long a cluster may take; a slow machine needs most of it for unpacking.
const defaultWait = 2 * time.Minute

func newCreateCmd(e env) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:   "create [NAME] [flags] [-- NODE-FLAG…]",
		Short: "Create a cluster and wait until it is ready",
		Long: "Creates a cluster, waits until its nodes are Ready and DNS answers, and adds its context to the kubeconfig.\n" +
			"What follows -- is given to every node as flags of `k1s server` and `k1s agent`.",
		Example: "  k1s cluster create\n" +
			"  k1s cluster create dev --agents 2\n" +
			"  k1s cluster create ha --servers 3 --agents 2\n" +
			"  k1s cluster create dev --publish 8080:30080 --image-bundle app.tar\n" +
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
			o.name = nameOf(args)
			return runCreate(cmd.Context(), e, o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.servers, "servers", 1, "nodes with a control plane; three of them survive the loss of one")
	f.IntVar(&o.agents, "agents", 0, "nodes that run pods beside the servers")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "make a node's port appear on 127.0.0.1: HOSTPORT:NODEPORT[/tcp|/udp]; repeatable")
	f.Uint16Var(&o.apiPort, "api-port", 0, "port of the Kubernetes API on 127.0.0.1 (default: a free one)")
	f.BoolVar(&o.egress, "egress", false, "let nodes and pods open connections to the outside")
	f.DurationVar(&o.wait, "wait", defaultWait, "how long to wait until the cluster is ready")
	f.BoolVar(&o.noWait, "no-wait", false, "return as soon as the nodes run")
	f.StringVarP(&o.config, "config", "c", "", "configuration file for the node (- reads standard input)")
	f.StringArrayVar(&o.set, "set", nil, "a setting of the node, e.g. spec.isolation=component; repeatable")
	f.StringArrayVar(&o.bundles, "image-bundle", nil, "archive of images for the node; repeatable")
	f.BoolVar(&o.noKubeconfig, "no-kubeconfig", false, "leave the kubeconfig alone")
	f.BoolVar(&o.keep, "keep", false, "keep what was made when the creation fails")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what would be done")
	return cmd
}

func runCreate(ctx context.Context, e env, o createOptions) error {
	co, err := o.resolve(e.streams.In)
	if err != nil {
		return err
	}
	m := e.manager(true)
	if o.dryRun {
		if err := m.Check(ctx, co); err != nil {
			return err
		}
		context := cluster.Context(o.name)
		if o.noKubeconfig {
			context = ""
		}
		return printLines(e.streams.Out, cluster.CreatePlan(co.Spec, co.Nodes, context))
	}
	ctx, stop := untilInterrupted(ctx)
	defer stop()
	st, err := m.Create(ctx, co)
	if err != nil {
		return err
	}
	return printNext(e.streams.ErrOut, st, o)
}

// resolve turns flags into what the cluster's packages understand.
func (o createOptions) resolve(in io.Reader) (cluster.CreateOptions, error) {
	out := cluster.CreateOptions{
		Spec:         cluster.Spec{Name: o.name, APIPort: o.apiPort, Egress: o.egress},
		Wait:         o.wait,
		NoKubeconfig: o.noKubeconfig,
		Keep:         o.keep,
	}
	if o.noWait {
		out.Wait = 0
	} else if o.wait <= 0 {
		return out, usage("--wait %s: give a time, or --no-wait", o.wait)
	}
	for _, p := range o.publish {
		pub, err := cluster.ParsePublish(p)
		if err != nil {
			return out, err
		}
		out.Spec.Publish = append(out.Spec.Publish, pub)
	}
	node := cluster.NodeSpec{Cluster: o.name, Role: cluster.Server, Args: o.args}
	for _, s := range o.set {
		flag, err := settingFlag(s)
		if err != nil {
			return out, err
		}
		node.Args = append(node.Args, flag)
	}
	for _, b := range o.bundles {
		abs, err := filepath.Abs(b)
		if err != nil {
			return out, err
		}
		node.Bundles = append(node.Bundles, abs)
	}
	if o.config != "" {
		raw, err := readConfig(o.config, in)
		if err != nil {
			return out, err
		}
		node.Config = string(raw)
	}
	if err := checkNode(&out.Spec, node); err != nil {
		return out, err
	}
	if o.agents < 0 || o.agents > cluster.MaxAgents {
		return out, usage("--agents %d: a cluster has room for %d", o.agents, cluster.MaxAgents)
	}
	if o.servers < 1 || o.servers > cluster.MaxServers {
		return out, usage("--servers %d: a cluster has at least one, and room for %d", o.servers, cluster.MaxServers)
	}
	for i := range o.servers {
		server := node
		server.Index = i
		out.Nodes = append(out.Nodes, server)
	}
	for i := range o.agents {
		agent := node
		agent.Role, agent.Index = cluster.Agent, i
		out.Nodes = append(out.Nodes, agent)
	}
	return out, nil
}

// checkNode reads the node's configuration as the node will, so that a mistake is told here and now, and finds
// out which networks it will use.
func checkNode(spec *cluster.Spec, node cluster.NodeSpec) error {
	fs := pflag.NewFlagSet("k1s server", pflag.ContinueOnError)
	flags := config.RegisterFlags(fs, "")
	if err := fs.Parse(node.Args); err != nil {
		return errs.New(errs.Usage, "the node's flags: %w", err)
	}
	if fs.NArg() > 0 {
		return usage("%q is no flag of a node", fs.Arg(0))
	}
	src := flags.Sources(cluster.NodeEnviron(cluster.Spec{Name: spec.Name}, node))
	src.File, src.FileMustExist, src.DropIns = "", false, ""
	if node.Config != "" {
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
		spec.Private = append(spec.Private, p.Masked())
	}
	return nil
}

func readConfig(path string, in io.Reader) ([]byte, error) {
	var (
		raw []byte
		err error
	)
	if path == "-" {
		raw, err = io.ReadAll(in)
	} else {
		raw, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "reading the node's configuration: %w", err)
	}
	if len(strings.TrimSpace(string(raw))) == 0 {
		return nil, errs.New(errs.Invalid, "the node's configuration %s is empty", path)
	}
	return raw, nil
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
func printNext(w io.Writer, st cluster.Status, o createOptions) error {
	name := st.Spec.Name
	lines := []string{
		"",
		fmt.Sprintf("cluster %s is %s: https://127.0.0.1:%d", name, map[bool]string{true: "starting", false: "ready"}[o.noWait], st.Spec.APIPort),
	}
	for _, p := range st.Spec.Publish {
		lines = append(lines, fmt.Sprintf("127.0.0.1:%d leads to port %d of its nodes (%s)", p.HostPort, p.NodePort, p.Proto))
	}
	arg := ""
	if name != cluster.DefaultName {
		arg = " " + name
	}
	try := fmt.Sprintf("  k1s cluster kubectl %s -- get pods -A", name)
	if !o.noKubeconfig {
		lines = append(lines, fmt.Sprintf("kubeconfig context %s is the current one", cluster.Context(name)))
		try = "  kubectl get pods -A            (or: k1s cluster kubectl " + name + " -- get pods -A)"
	}
	lines = append(lines, "", "next:", try,
		fmt.Sprintf("  k1s cluster exec %s -- k1s status", name),
		"  k1s cluster stop"+arg+", start"+arg+", delete"+arg)
	return printLines(w, lines)
}
