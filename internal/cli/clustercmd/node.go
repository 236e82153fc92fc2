package clustercmd

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/printer"
)

// newNodeCmd manages the nodes of one cluster.
func newNodeCmd(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "node", Short: "Add, list, stop, start, kill and delete the nodes of a cluster", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNodeAddCmd(e), newNodeLsCmd(e), newNodeStopCmd(e), newNodeStartCmd(e), newNodeKillCmd(e), newNodeDeleteCmd(e))
	return cmd
}

// clusterAndNode reads [CLUSTER] NODE.
func clusterAndNode(args []string) (name, node string) {
	if len(args) == 1 {
		return cluster.DefaultName, args[0]
	}
	return args[0], args[1]
}

func oneNode(_ *cobra.Command, args []string) error {
	if len(args) == 0 || len(args) > 2 {
		return usage("say which node: [CLUSTER] NODE")
	}
	name, _ := clusterAndNode(args)
	return cluster.ValidateName(name)
}

func newNodeAddCmd(e env) *cobra.Command {
	count, limit, servers := 1, defaultWait, false
	var labels, taints, set []string
	cmd := &cobra.Command{
		Use: "add [CLUSTER]", Short: "Add nodes to a running cluster, and wait until they are ready", Args: atMostName,
		Long: "Adds agents, or servers, that are like those of the cluster: with the same configuration, images, registries, and\n" +
			"with the volumes, variables, labels and settings that all nodes or all of their role have.",
		Example:           "  k1s cluster node add\n  k1s cluster node add dev --count 3 --label disk=fast\n  k1s cluster node add dev --server",
		ValidArgsFunction: completeName(e),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 {
				return usage("--count %d: nothing to add", count)
			}
			role := cluster.Agent
			if servers {
				role = cluster.Server
			}
			var flags []string
			for _, l := range []struct {
				texts []string
				flag  func(string) (string, error)
			}{{set, settingFlag}, {labels, labelFlag}, {taints, taintFlag}} {
				for _, text := range l.texts {
					flag, err := l.flag(text)
					if err != nil {
						return err
					}
					flags = append(flags, flag)
				}
			}
			if err := checkAdded(cmd.Context(), e, nameOf(args), role, flags); err != nil {
				return err
			}
			added, err := e.manager(false).AddNodes(cmd.Context(), nameOf(args), role, count, limit, flags...)
			if err != nil {
				return err
			}
			for _, n := range added {
				fmt.Fprintf(e.streams.ErrOut, "node %s is there, at %s\n", n.Name, n.Addr)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&count, "count", count, "how many")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "label of the new nodes: KEY=VALUE; repeatable")
	cmd.Flags().StringArrayVar(&taints, "taint", nil, "taint of the new nodes: KEY=VALUE:EFFECT; repeatable")
	cmd.Flags().StringArrayVar(&set, "set", nil, "a setting of the new nodes, e.g. spec.kubelet.maxPods=50; repeatable")
	cmd.Flags().BoolVar(&servers, "server", false, "servers instead of agents")
	cmd.Flags().DurationVar(&limit, "wait", limit, "how long to wait until they are ready")
	return cmd
}

// checkAdded finds mistakes in the flags of nodes that are to be added, before one is.
func checkAdded(ctx context.Context, e env, name string, role cluster.Role, flags []string) error {
	if len(flags) == 0 {
		return nil
	}
	st, err := e.deps.Provider.Describe(ctx, name)
	if err != nil {
		return cluster.Missing(err)
	}
	n := st.Spec.Template(role)
	n.Args = slices.Concat(n.Args, flags)
	if n.Index = st.Spec.NextAgent; role == cluster.Server {
		n.Index = max(st.Spec.NextServer, 1)
	}
	return checkNode(&st.Spec, n, nil)
}

func newNodeLsCmd(e env) *cobra.Command {
	format := printer.Table
	cmd := &cobra.Command{
		Use: "ls [CLUSTER]", Aliases: []string{"list"}, Short: "List the nodes of a cluster", Args: atMostName,
		ValidArgsFunction: completeName(e),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := e.manager(false).Provider.Describe(cmd.Context(), nameOf(args))
			if err != nil {
				return cluster.Missing(err)
			}
			return printer.Print(e.streams.Out, format, st.Nodes, func(w io.Writer) error {
				var rows [][]string
				for _, n := range st.Nodes {
					rows = append(rows, []string{n.Name, string(n.Role), string(n.State), n.Addr.String(), n.Note})
				}
				return printer.Columns(w, []string{"NODE", "ROLE", "STATE", "ADDRESS", "NOTE"}, rows)
			})
		},
	}
	cmd.Flags().VarP(&format, "output", "o", "output format")
	return cmd
}

func newNodeStopCmd(e env) *cobra.Command {
	return &cobra.Command{
		Use: "stop [CLUSTER] NODE", Short: "Stop a node with its pods; its data stays", Args: oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, node := clusterAndNode(args)
			return e.tell(e.manager(false).StopNode(cmd.Context(), name, node), "node "+node+" is stopped")
		},
	}
}

func newNodeStartCmd(e env) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use: "start [CLUSTER] NODE", Short: "Start a node that was stopped, and wait until it is ready", Args: oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, node := clusterAndNode(args)
			return e.tell(e.manager(false).StartNode(cmd.Context(), name, node, limit), "node "+node+" runs")
		},
	}
	cmd.Flags().DurationVar(&limit, "wait", defaultWait, "how long to wait until it is ready")
	return cmd
}

func newNodeKillCmd(e env) *cobra.Command {
	return &cobra.Command{
		Use: "kill [CLUSTER] NODE", Short: "End a node at once, as a power cut does; its data stays", Args: oneNode,
		Long: "Kills everything that runs on a node, k1s, its components and all pods, without asking any of it to end.\n" +
			"What is on its disk stays as it is at that moment. It comes back with: k1s cluster node start",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, node := clusterAndNode(args)
			return e.tell(e.manager(false).KillNode(cmd.Context(), name, node), "node "+node+" is killed")
		},
	}
}

type nodeDeleteOptions struct {
	cluster, node string
	yes, dryRun   bool
}

func newNodeDeleteCmd(e env) *cobra.Command {
	var o nodeDeleteOptions
	cmd := &cobra.Command{
		Use: "delete [CLUSTER] NODE", Aliases: []string{"rm"}, Short: "Take a node out of the cluster, and delete it with all its data", Args: oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.cluster, o.node = clusterAndNode(args)
			return runNodeDelete(cmd.Context(), e, o)
		},
	}
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would be done")
	return cmd
}

func runNodeDelete(ctx context.Context, e env, o nodeDeleteOptions) error {
	if o.dryRun {
		plan, err := e.manager(false).DeleteNodePlan(ctx, o.cluster, o.node)
		if err != nil {
			return err
		}
		return printLines(e.streams.Out, plan)
	}
	if err := e.confirm(ctx, "deleting node "+o.node+" of cluster "+o.cluster+" with all data", o.yes); err != nil {
		return err
	}
	return e.tell(e.manager(false).DeleteNode(ctx, o.cluster, o.node), "node "+o.node+" is deleted")
}

// tell says what has been done, unless it has not.
func (e env) tell(err error, done string) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.streams.ErrOut, done)
	return err
}
