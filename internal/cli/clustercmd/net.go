package clustercmd

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
)

// newNetCmd cuts, delays and heals connections between nodes.
func newNetCmd(e env) *cobra.Command {
	name := cluster.DefaultName
	cmd := &cobra.Command{
		Use: "net", Short: "Cut nodes of a cluster off from each other, delay what they say, and heal that", Args: noArgs,
		Long: "Lets see what a cluster does when nodes do not reach each other, or are far away. Between nodes that are cut off\n" +
			"nothing gets through, in neither direction; a delay makes everything take longer, in both. Commands in a node, the\n" +
			"API's port and published ports are not concerned, since they come from this machine. Cuts and delays stay until they\n" +
			"are healed, also over a stop and a start.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVarP(&name, "cluster", "c", name, "the cluster")
	ends := func(least int) cobra.PositionalArgs {
		return func(_ *cobra.Command, args []string) error {
			if len(args) < least || len(args) > 2 {
				return usage("say which nodes: one, or two")
			}
			return cluster.ValidateName(name)
		}
	}
	two := func(args []string) (a, b string) {
		args = append(slices.Clone(args), "", "")
		return args[0], args[1]
	}
	cut := &cobra.Command{
		Use: "cut NODE [NODE]", Short: "Cut two nodes off from each other, or one from all", Args: ends(1),
		Example: "  k1s cluster net cut agent-0 agent-1\n  k1s cluster net cut --cluster dev server-0",
		RunE: func(cmd *cobra.Command, args []string) error {
			a, b := two(args)
			return e.tell(e.manager(false).CutLink(cmd.Context(), name, a, b), a+" is cut off from "+cmp.Or(b, "all nodes"))
		},
	}
	var jitter time.Duration
	delay := &cobra.Command{
		Use: "delay NODE [NODE] DURATION", Short: "Delay what two nodes say to each other, or one and all others",
		Long: "Delays what two nodes say to each other, or one node and all others, by so much in each direction: a round trip\n" +
			"takes twice as long. The order of packets stays, also with --jitter. A delay between the same nodes takes the place\n" +
			"of an earlier one; one between two nodes wins over one between a node and all others, and a cut over both.",
		Example: "  k1s cluster net delay agent-0 agent-1 50ms\n  k1s cluster net delay --cluster dev server-0 20ms --jitter 5ms",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return usage("say which nodes, one or two, and by how much: k1s cluster net delay agent-0 agent-1 50ms")
			}
			return cluster.ValidateName(name)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			by := args[len(args)-1]
			d, err := time.ParseDuration(by)
			if err != nil {
				return errs.Hint(errs.New(errs.Usage, "%q is no duration", by), "put it last, for example: 50ms")
			}
			a, b := two(args[:len(args)-1])
			link := cluster.Delay{Ends: cluster.Ends{A: a, B: b}, Delay: cluster.Duration(d), Jitter: cluster.Duration(jitter)}
			return e.tell(e.manager(false).DelayLink(cmd.Context(), name, link), a+" and "+cmp.Or(b, "all other nodes")+" hear each other "+describeDelay(link))
		},
	}
	delay.Flags().DurationVar(&jitter, "jitter", 0, "by how much the delay varies, up and down")
	heal := &cobra.Command{
		Use: "heal [NODE [NODE]]", Short: "Take cuts and delays back: between two nodes, of one, or all", Args: ends(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, b := two(args)
			return e.tell(e.manager(false).HealLink(cmd.Context(), name, a, b), "healed")
		},
	}
	format := printer.Table
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List cuts and delays", Args: noArgs,
		Long: "Lists cuts and delays. DROPPED counts the packets that were lost on a delayed link because more was on the way than\n" +
			"is held: 64 MiB of all links of a cluster. It begins anew when delays are changed, or nodes start.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			links, err := listLinks(cmd.Context(), e.manager(false).Provider, name)
			if err != nil {
				return err
			}
			return printer.Print(e.streams.Out, format, links, func(w io.Writer) error {
				var rows [][]string
				for _, l := range links {
					rows = append(rows, l.row())
				}
				return printer.Columns(w, []string{"NODE", "AND", "LINK", "DROPPED", "NOTE"}, rows)
			})
		},
	}
	ls.Flags().VarP(&format, "output", "o", "output format")
	cmd.AddCommand(cut, delay, heal, ls)
	return cmd
}

// link is a connection that is not as usual, as it is listed.
type link struct {
	cluster.Ends
	// Delay and Jitter are there for one that is delayed; otherwise it is cut.
	Delay   cluster.Duration `json:"delay,omitempty"`
	Jitter  cluster.Duration `json:"jitter,omitempty"`
	Dropped uint64           `json:"dropped,omitempty"`
	// Problem is why it is not delayed but carries nothing.
	Problem string `json:"problem,omitempty"`
}

func (l link) row() []string {
	what, dropped := "cut off", ""
	if l.Delay != 0 {
		what, dropped = describeDelay(cluster.Delay{Delay: l.Delay, Jitter: l.Jitter}), strconv.FormatUint(l.Dropped, 10)
	}
	return []string{l.A, cmp.Or(l.B, "all nodes"), what, dropped, l.Problem}
}

func describeDelay(d cluster.Delay) string {
	if d.Jitter == 0 {
		return d.Delay.String() + " later"
	}
	return d.Delay.String() + " ± " + d.Jitter.String() + " later"
}

// listLinks are the cuts of a cluster, and then its delays.
func listLinks(ctx context.Context, p cluster.Provider, name string) ([]link, error) {
	st, err := p.Describe(ctx, name)
	if err != nil {
		return nil, cluster.Missing(err)
	}
	var fare []cluster.Delayed
	if l, ok := p.(cluster.LinkSetter); ok {
		if fare, err = l.Delayed(ctx, name); err != nil {
			return nil, err
		}
	}
	out := []link{}
	for _, c := range st.Spec.Cuts {
		out = append(out, link{Ends: c.Ends})
	}
	for _, d := range st.Spec.Delays {
		l := link{Ends: d.Ends, Delay: d.Delay, Jitter: d.Jitter}
		if i := slices.IndexFunc(fare, func(f cluster.Delayed) bool { return f.Delay == d }); i >= 0 {
			l.Dropped, l.Problem = fare[i].Dropped, fare[i].Problem
		}
		out = append(out, l)
	}
	return out, nil
}
