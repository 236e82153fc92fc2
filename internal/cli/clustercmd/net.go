package clustercmd

import (
	"cmp"
	"io"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/printer"
)

// newNetCmd cuts and heals connections between nodes.
func newNetCmd(e env) *cobra.Command {
	name := cluster.DefaultName
	cmd := &cobra.Command{
		Use: "net", Short: "Cut nodes of a cluster off from each other, and heal that", Args: noArgs,
		Long: "Lets see what a cluster does when nodes do not reach each other. Between nodes that are cut off nothing gets\n" +
			"through, in neither direction; commands in a node, the API's port and published ports go on working, since\n" +
			"they come from this machine. Cuts stay until they are healed, also over a stop and a start.",
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
		args = append(args, "", "")
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
	heal := &cobra.Command{
		Use: "heal [NODE [NODE]]", Short: "Take cuts back: between two nodes, of one, or all", Args: ends(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, b := two(args)
			return e.tell(e.manager(false).HealLink(cmd.Context(), name, a, b), "healed")
		},
	}
	format := printer.Table
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List cuts", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := e.manager(false).Provider.Describe(cmd.Context(), name)
			if err != nil {
				return cluster.Missing(err)
			}
			return printer.Print(e.streams.Out, format, st.Spec.Cuts, func(w io.Writer) error {
				var rows [][]string
				for _, c := range st.Spec.Cuts {
					rows = append(rows, []string{c.A, cmp.Or(c.B, "all nodes")})
				}
				return printer.Columns(w, []string{"NODE", "CUT OFF FROM"}, rows)
			})
		},
	}
	ls.Flags().VarP(&format, "output", "o", "output format")
	cmd.AddCommand(cut, heal, ls)
	return cmd
}
