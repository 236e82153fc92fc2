package clustercmd

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/config"
)

// newConfigCmd is about cluster files.
func newConfigCmd(e env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Show what a cluster file and flags come to", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var o createOptions
	print := &cobra.Command{
		Use: "print [NAME] [flags] [-- NODE-FLAG…]", Short: "Print the cluster file that stands for these flags",
		Long: "Takes the flags of `k1s cluster create`, checks them, and prints a file that says the same: a start for one of your\n" +
			"own, and what a file and flags come to together. Passwords are left out. Nothing is made.",
		Example: "  k1s cluster config print dev --agents 2 --publish 8080:30080 > cluster.yaml\n" +
			"  k1s cluster config print --config cluster.yaml --agents 3",
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
			return runConfigPrint(cmd.Context(), e, o)
		},
	}
	o.flags(print.Flags())
	cmd.AddCommand(print)
	return cmd
}

func runConfigPrint(ctx context.Context, e env, o createOptions) error {
	p, err := o.resolve(ctx, e)
	if err != nil {
		return err
	}
	f, err := p.file()
	if err != nil {
		return err
	}
	enc := yaml.NewEncoder(e.streams.Out)
	enc.SetIndent(2)
	if err := enc.Encode(f); err != nil {
		return err
	}
	return enc.Close()
}

// file is the cluster file that stands for a plan.
func (p plan) file() (clusterFile, error) {
	public := cluster.Status{Spec: p.Spec}.Public().Spec
	f := clusterFile{
		APIVersion: config.APIVersion, Kind: kindCluster, Name: p.Spec.Name,
		Egress: p.Spec.Egress, APIPort: int(p.Spec.APIPort), Image: p.Spec.Program, Wait: p.Wait.String(),
		Kubeconfig: !p.NoKubeconfig, SwitchContext: !p.noSwitch,
	}
	if p.Spec.Subnet.IsValid() {
		f.Subnet = p.Spec.Subnet.String()
	}
	for _, v := range p.Spec.Publish {
		f.Publish = append(f.Publish, v.String())
	}
	for _, v := range p.Spec.Volumes {
		f.Volumes = append(f.Volumes, v.String())
	}
	for _, v := range public.Env {
		f.Env = append(f.Env, v.String())
	}
	for _, v := range p.Spec.Reach {
		f.Reach = append(f.Reach, v.String())
	}
	for _, s := range p.Spec.Settings {
		on := ""
		if s.On != "" {
			on = "@" + string(s.On)
		}
		switch flag := strings.TrimPrefix(s.Flag, "--"); {
		case strings.HasPrefix(flag, "node-labels="):
			f.Labels = append(f.Labels, strings.TrimPrefix(flag, "node-labels=")+on)
		case strings.HasPrefix(flag, "node-taints="):
			f.Taints = append(f.Taints, strings.TrimPrefix(flag, "node-taints=")+on)
		default:
			f.Set = append(f.Set, settingOf(flag)+on)
		}
	}
	for _, d := range p.deep {
		if d.on != "" && d.on != "servers" && d.on != "agents" { // the others are in what nodes are like
			f.Set = append(f.Set, pathOf(d.spec)+"@"+string(d.on))
		}
	}
	if len(p.registries.root) > 0 {
		raw, err := yaml.Marshal(p.registries.root)
		if err == nil {
			f.Registries, err = content(cluster.PublicConfig(string(raw)))
		}
		if err != nil {
			return f, err
		}
	}
	for _, n := range p.Nodes {
		if n.Role == cluster.Agent {
			f.Agents.Count++
		} else {
			f.Servers.Count++
		}
	}
	return f, p.nodesOf(&f, public)
}

// nodesOf puts in what nodes are like. What all roles have in common is said once.
func (p plan) nodesOf(f *clusterFile, public cluster.Spec) error {
	specs := map[cluster.Role]*yaml.Node{}
	for _, n := range public.Like {
		f.Args, f.ImageBundles = n.Args, slices.Clone(n.Bundles)
		doc, err := content(n.Config)
		if err != nil {
			return err
		}
		if doc != nil {
			specs[n.Role] = valueOf(doc, "spec")
		}
	}
	server, agent := specs[cluster.Server], specs[cluster.Agent]
	if a, err := config.File(server); err != nil {
		return err
	} else if b, err := config.File(agent); err != nil {
		return err
	} else if a == b {
		f.Spec = server
		return nil
	}
	f.Servers.Spec, f.Agents.Spec = server, agent
	return nil
}

// pathOf turns {kubelet: {maxPods: 50}} back into spec.kubelet.maxPods=50.
func pathOf(n *yaml.Node) string {
	path := "spec"
	for n.Kind == yaml.MappingNode && len(n.Content) == 2 {
		path, n = path+"."+n.Content[0].Value, n.Content[1]
	}
	flow := *n
	flow.Style |= yaml.FlowStyle
	raw, err := yaml.Marshal(&flow)
	if err != nil { // it was read from text
		return path + "=" + n.Value
	}
	return path + "=" + strings.TrimSpace(string(raw))
}

// content is the YAML in a text; nil for nothing.
func content(text string) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil || len(doc.Content) == 0 {
		return nil, err
	}
	return doc.Content[0], nil
}

// settingOf turns api-port=6444 back into spec.api.port=6444.
func settingOf(flag string) string {
	name, value, _ := strings.Cut(flag, "=")
	if field, err := config.Lookup("--" + name); err == nil {
		name = field.Path
	}
	return name + "=" + value
}
