package clustercmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
)

// settingFlag turns spec.api.port=6444 into --api-port=6444.
func settingFlag(set string) (string, error) {
	path, value, ok := strings.Cut(set, "=")
	if !ok {
		return "", usage("--set %q: write path=value, e.g. spec.isolation=component", set)
	}
	field, err := config.Lookup(path)
	if err != nil {
		return "", errs.As(errs.Usage, err)
	}
	if field.Flag == "" || field.Section {
		return "", errs.Hint(errs.New(errs.Usage, "--set %s: this setting has no single value", path), "put it in a file for --config")
	}
	return "--" + strings.TrimPrefix(field.Flag, "--") + "=" + value, nil
}

func newLsCmd(e env) *cobra.Command {
	format := printer.Table
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the clusters of this machine", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLs(cmd.Context(), e, format) },
	}
	cmd.Flags().VarP(&format, "output", "o", "output format")
	return cmd
}

func runLs(ctx context.Context, e env, format printer.Format) error {
	all, err := e.manager(false).List(ctx)
	if err != nil {
		return err
	}
	if len(all) == 0 && format != printer.JSON && format != printer.YAML {
		_, err := fmt.Fprintln(e.streams.ErrOut, "there are no clusters; make one with: k1s cluster create")
		return err
	}
	public := make([]cluster.Status, len(all))
	for i, st := range all {
		public[i] = st.Public()
	}
	return printer.Print(e.streams.Out, format, public, func(w io.Writer) error {
		return printClusters(w, all, format == printer.Wide, time.Now())
	})
}

func printClusters(w io.Writer, all []cluster.Status, wide bool, now time.Time) error {
	header := []string{"CLUSTER", "STATE", "NODES", "API", "AGE", "NOTE"}
	if wide {
		header = []string{"CLUSTER", "STATE", "NODES", "API", "AGE", "PUBLISHED", "EGRESS", "PROGRAM", "NOTE"}
	}
	var rows [][]string
	for _, st := range all {
		running, notes := 0, []string{}
		if st.Note != "" {
			notes = append(notes, st.Note)
		}
		for _, n := range st.Nodes {
			if n.State == cluster.Running {
				running++
				if n.Note != "" {
					notes = append(notes, n.Name+": "+n.Note)
				}
			}
		}
		age, api := "", ""
		if !st.Spec.Created.IsZero() {
			age = printer.Age(now.Sub(st.Spec.Created))
		}
		if st.Spec.APIPort != 0 {
			api = "127.0.0.1:" + strconv.Itoa(int(st.Spec.APIPort))
		}
		nodes := fmt.Sprintf("%d/%d", running, len(st.Nodes))
		if wide {
			var states []string
			for _, n := range st.Nodes {
				if n.State == cluster.Running {
					states = append(states, n.Name)
				} else {
					states = append(states, fmt.Sprintf("%s (%s)", n.Name, n.State))
				}
			}
			nodes = strings.Join(states, ", ")
		}
		row := []string{st.Spec.Name, string(st.State), nodes, api, age}
		if wide {
			var pub []string
			for _, p := range st.Spec.Publish {
				pub = append(pub, p.String())
			}
			row = append(row, strings.Join(pub, ","), strconv.FormatBool(st.Spec.Egress), cmp.Or(st.Spec.Program, "this k1s"))
		}
		rows = append(rows, append(row, strings.Join(notes, "; ")))
	}
	return printer.Columns(w, header, rows)
}

func newStartCmd(e env) *cobra.Command {
	limit, noWait, noKubeconfig, noSwitch, subnet := defaultWait, false, false, false, ""
	cmd := &cobra.Command{
		Use: "start [NAME]", Short: "Start a stopped cluster, or mend a broken one", Args: atMostName,
		ValidArgsFunction: completeName(e),
		RunE: func(cmd *cobra.Command, args []string) error {
			if noWait {
				limit = 0
			}
			m := e.manager(true)
			m.KeepContext = noSwitch
			var at netip.Prefix
			if subnet != "" {
				var err error
				if at, err = netip.ParsePrefix(subnet); err != nil {
					return usage("--subnet %q is no network, such as %s", subnet, cluster.DefaultSubnet)
				}
			}
			st, err := m.StartAt(cmd.Context(), nameOf(args), at, limit, noKubeconfig)
			if err == nil {
				_, err = fmt.Fprintf(e.streams.ErrOut, "cluster %s runs: https://127.0.0.1:%d\n", st.Spec.Name, st.Spec.APIPort)
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&limit, "wait", limit, "how long to wait until the cluster is ready")
	cmd.Flags().DurationVar(&limit, "timeout", limit, "the same as --wait")
	cmd.Flags().StringVar(&subnet, "subnet", "", "other addresses for the nodes of a stopped cluster, a private `/24`")
	cmd.Flags().BoolVar(&noSwitch, "no-switch", false, "leave the current context of the kubeconfig")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return as soon as the nodes run")
	cmd.Flags().BoolVar(&noKubeconfig, "no-kubeconfig", false, "leave the kubeconfig alone")
	return cmd
}

func newStopCmd(e env) *cobra.Command {
	return &cobra.Command{
		Use: "stop [NAME]", Short: "Stop a cluster with its pods; its data stays", Args: atMostName,
		ValidArgsFunction: completeName(e),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := e.manager(true).Stop(cmd.Context(), nameOf(args)); err != nil {
				return err
			}
			_, err := fmt.Fprintf(e.streams.ErrOut, "cluster %s is stopped\n", nameOf(args))
			return err
		},
	}
}

type deleteOptions struct {
	names            []string
	all, yes, dryRun bool
}

func newDeleteCmd(e env) *cobra.Command {
	var o deleteOptions
	cmd := &cobra.Command{
		Use: "delete NAME…|--all", Aliases: []string{"rm"}, Short: "Delete clusters with all their data",
		ValidArgsFunction: completeName(e),
		Args: func(_ *cobra.Command, args []string) error {
			for _, a := range args {
				if err := cluster.ValidateName(a); err != nil {
					return err
				}
			}
			if o.all == (len(args) > 0) {
				return usage("name the clusters to delete, or give --all")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runDelete(cmd.Context(), e, o)
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "delete all clusters")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would be done")
	return cmd
}

func runDelete(ctx context.Context, e env, o deleteOptions) error {
	m := e.manager(true)
	if _, err := m.Provider.Features(ctx); err != nil {
		return err
	}
	names := o.names
	if o.all {
		var err error
		if names, err = m.Provider.Clusters(ctx); err != nil {
			return err
		}
		if len(names) == 0 {
			_, err := fmt.Fprintln(e.streams.ErrOut, "there are no clusters")
			return err
		}
	}
	if o.dryRun {
		for _, n := range names {
			st, err := m.Provider.Describe(ctx, n)
			if errs.Is(err, errs.NotFound) { // as deleting it would say
				fmt.Fprintf(e.streams.ErrOut, "there is no cluster %s\n", n)
				continue
			}
			if err != nil {
				return err
			}
			if err := printLines(e.streams.Out, cluster.DeletePlan(st, cluster.Context(n))); err != nil {
				return err
			}
		}
		return nil
	}
	if err := e.confirm(ctx, "deleting "+strings.Join(names, ", ")+" with all data", o.yes); err != nil {
		return err
	}
	var failed []error
	for _, n := range names {
		_, derr := m.Provider.Describe(ctx, n)
		// Also when there is none: its context may still be in the kubeconfig.
		err := m.Delete(ctx, n)
		switch {
		case err != nil:
			failed = append(failed, err)
		case errs.Is(derr, errs.NotFound):
			fmt.Fprintf(e.streams.ErrOut, "there is no cluster %s\n", n)
		default:
			fmt.Fprintf(e.streams.ErrOut, "cluster %s is deleted\n", n)
		}
	}
	return errors.Join(failed...)
}
