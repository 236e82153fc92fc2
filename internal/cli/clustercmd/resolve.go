package clustercmd

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
)

// plan is what is to be made, from command line and cluster file.
type plan struct {
	cluster.CreateOptions
	noSwitch bool
	program  string // version of the nodes' program, if that is another than this one
	// inline are where the settings of each role are written, in a cluster file.
	inline     map[cluster.Role][]config.Inline
	deep       []deepSetting
	registries registrySource
}

// deepSetting is a --set below a field that is a map of Kubernetes' own, which no flag reaches.
type deepSetting struct {
	spec *yaml.Node
	on   cluster.Selector
}

// deepSettingOf reads PATH=VALUE where PATH is below such a field.
func deepSettingOf(text string) (*yaml.Node, bool) {
	name, value, ok := strings.Cut(text, "=")
	parts := strings.Split(strings.TrimPrefix(name, "spec."), ".")
	if !ok || len(parts) < 2 {
		return nil, false
	}
	if field, err := config.Lookup("spec." + parts[0]); err != nil || field.Section || field.Flag != "" {
		return nil, false
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(value), &doc); err != nil || len(doc.Content) != 1 {
		return nil, false
	}
	node := doc.Content[0]
	node.Line = 0 // it is in no file
	for _, key := range slices.Backward(parts) {
		node = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, node}}
	}
	return node, true
}

// resolve turns flags and the cluster file into what the cluster's packages understand.
func (o createOptions) resolve(ctx context.Context, e env) (plan, error) {
	p := plan{CreateOptions: cluster.CreateOptions{Keep: o.keep}, inline: map[cluster.Role][]config.Inline{}}
	here, err := os.Getwd()
	if err != nil {
		return p, fmt.Errorf("finding out where we are: %w", err)
	}
	f, nodeConfig := &written{name: "", dir: here}, ""
	f.Kubeconfig, f.SwitchContext = true, true
	if o.config != "" {
		got, text, err := readConfig(o.config, e.streams.In)
		if err != nil {
			return p, err
		}
		if nodeConfig = text; got != nil {
			f = got
			if f.dir, err = filepath.Abs(f.dir); err != nil {
				return p, err
			}
		}
	}
	if err := o.scalars(&p, f); err != nil {
		return p, err
	}
	if err := o.lists(&p, f, here); err != nil {
		return p, err
	}
	if err := o.nodes(&p, f, nodeConfig); err != nil {
		return p, err
	}
	if err := o.useRegistries(&p, f, here); err != nil {
		return p, err
	}
	o.proxies(&p, e)
	if p.Spec.Program, p.program, err = o.findProgram(ctx, e, f, here); err != nil {
		return p, err
	}
	return p, o.checkNodes(&p)
}

// scalars are what has one value: a flag wins.
func (o createOptions) scalars(p *plan, f *written) error {
	given := func(flag string) bool { return o.given != nil && o.given(flag) }
	p.Spec.Name = o.name
	if f.Name != "" && !o.named {
		if err := cluster.ValidateName(f.Name); err != nil {
			return f.problem("name", err)
		}
		p.Spec.Name = f.Name
	}
	if p.Spec.APIPort = o.apiPort; f.APIPort != 0 && !given("api-port") {
		if f.APIPort < 0 || f.APIPort > math.MaxUint16 {
			return f.problem("apiPort", fmt.Errorf("%d is no port (1 to 65535)", f.APIPort))
		}
		p.Spec.APIPort = uint16(f.APIPort)
	}
	p.Spec.Egress = o.egress || f.Egress && !given("egress")
	if text := cmp.Or(o.subnet, f.Subnet); text != "" {
		subnet, err := netip.ParsePrefix(text)
		if err == nil {
			err = cluster.ValidateSubnet(subnet)
		} else {
			err = errs.New(errs.Usage, "%q is no network, such as %s", text, cluster.DefaultSubnet)
		}
		if err != nil && o.subnet == "" {
			return f.problem("subnet", err)
		}
		if err != nil {
			return err
		}
		p.Spec.Subnet = subnet
	}
	p.NoKubeconfig = o.noKubeconfig || !f.Kubeconfig && !given("no-kubeconfig")
	p.noSwitch = o.noSwitch || !f.SwitchContext && !given("no-switch")
	if p.Wait = o.wait; f.Wait != "" && !given("wait") && !given("timeout") {
		d, err := time.ParseDuration(f.Wait)
		if err != nil || d < 0 {
			return f.problem("wait", fmt.Errorf("%q is no time, such as 2m or 90s", f.Wait))
		}
		p.Wait = d
	} else if p.Wait <= 0 && !o.noWait {
		return usage("--wait %s: give a time, or --no-wait", o.wait)
	}
	if o.noWait {
		p.Wait = 0
	}
	return nil
}

// lists are what can be given several times: those of the file, then those of the command line.
func (o createOptions) lists(p *plan, f *written, here string) error {
	spec := &p.Spec
	publish := func(s string) error {
		v, err := cluster.ParsePublish(s)
		spec.Publish = append(spec.Publish, v)
		return err
	}
	volume := func(dir string) func(string) error {
		return func(s string) error {
			v, err := cluster.ParseVolume(s, dir)
			spec.Volumes = append(spec.Volumes, v)
			return err
		}
	}
	variable := func(s string) error {
		v, err := cluster.ParseEnv(s)
		// A flag wins over the file for the same nodes.
		spec.Env = slices.DeleteFunc(spec.Env, func(o cluster.Env) bool { return o.Name == v.Name && o.On == v.On })
		spec.Env = append(spec.Env, v)
		return err
	}
	reach := func(s string) error {
		v, err := cluster.ParseReach(s)
		addReach(spec, v)
		return err
	}
	setting := func(flag func(string) (string, error), loose bool) func(string) error {
		return func(s string) error {
			rest, on, err := cluster.CutSelector(s, loose)
			if err != nil {
				return err
			}
			text, err := flag(rest)
			spec.Settings = append(spec.Settings, cluster.Setting{Flag: text, On: on})
			return err
		}
	}
	for _, l := range []struct {
		path        string
		file, flags []string
		parse       func(string) error
		parseFlag   func(string) error // nil is parse
	}{
		{"publish", f.Publish, o.publish, publish, nil},
		{"volumes", f.Volumes, o.volumes, volume(f.dir), volume(here)},
		{"env", f.Env, o.env, variable, nil},
		{"reach", f.Reach, o.reach, reach, nil},
		{"set", f.Set, o.set, func(s string) error {
			rest, on, err := cluster.CutSelector(s, true)
			if err != nil {
				return err
			}
			if node, ok := deepSettingOf(rest); ok {
				p.deep = append(p.deep, deepSetting{node, on})
				return nil
			}
			return setting(settingFlag, true)(s)
		}, nil},
		{"labels", f.Labels, o.labels, setting(labelFlag, false), nil},
		{"taints", f.Taints, o.taints, setting(taintFlag, false), nil},
	} {
		if err := f.each(l.path, l.file, l.parse); err != nil {
			return err
		}
		parse := l.parse
		if l.parseFlag != nil {
			parse = l.parseFlag
		}
		for _, s := range l.flags {
			if err := parse(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func addReach(spec *cluster.Spec, r cluster.Reach) {
	if !slices.Contains(spec.Reach, r) {
		spec.Reach = append(spec.Reach, r)
	}
}

// labelFlag turns KEY=VALUE into the node's flag; what is wrong with it the node's configuration says.
func labelFlag(s string) (string, error) {
	if key, value, ok := strings.Cut(s, "="); !ok || key == "" || strings.Contains(value, ",") {
		return "", errs.Hint(errs.New(errs.Usage, "%q is no label", s), "write KEY=VALUE[@NODES], e.g. disk=fast@agents")
	}
	return "--node-labels=" + s, nil
}

func taintFlag(s string) (string, error) {
	if !strings.Contains(s, ":") || strings.Contains(s, ",") {
		return "", errs.Hint(errs.New(errs.Usage, "%q is no taint", s), "write KEY=VALUE:EFFECT[@NODES], e.g. gpu=true:NoSchedule@agent-0")
	}
	return "--node-taints=" + s, nil
}

// nodes are those to start with.
func (o createOptions) nodes(p *plan, f *written, nodeConfig string) error {
	counts := map[cluster.Role]int{cluster.Server: o.servers, cluster.Agent: o.agents}
	if given := o.given != nil && o.given("servers"); !given && f.Servers.Count != 0 {
		if counts[cluster.Server] = f.Servers.Count; f.Servers.Count < 0 || f.Servers.Count > cluster.MaxServers {
			return f.problem("servers.count", fmt.Errorf("%d servers: a cluster has at least one, and room for %d", f.Servers.Count, cluster.MaxServers))
		}
	}
	if o.servers < 1 || o.servers > cluster.MaxServers {
		return usage("--servers %d: a cluster has at least one, and room for %d", o.servers, cluster.MaxServers)
	}
	if given := o.given != nil && o.given("agents"); !given && f.Agents.Count != 0 {
		if counts[cluster.Agent] = f.Agents.Count; f.Agents.Count < 0 || f.Agents.Count > cluster.MaxAgents {
			return f.problem("agents.count", fmt.Errorf("%d agents: a cluster has room for %d", f.Agents.Count, cluster.MaxAgents))
		}
	}
	if o.agents < 0 || o.agents > cluster.MaxAgents {
		return usage("--agents %d: a cluster has room for %d", o.agents, cluster.MaxAgents)
	}
	node := cluster.NodeSpec{Cluster: p.Spec.Name, Config: nodeConfig, Args: slices.Concat(f.Args, o.args)}
	for _, list := range []struct {
		files []string
		dir   string
	}{{f.ImageBundles, f.dir}, {o.bundles, ""}} {
		for _, b := range list.files {
			if list.dir != "" && !filepath.IsAbs(b) {
				b = filepath.Join(list.dir, b)
			}
			abs, err := filepath.Abs(b)
			if err != nil {
				return err
			}
			node.Bundles = append(node.Bundles, abs)
		}
	}
	for _, r := range []struct {
		role  cluster.Role
		group group
	}{{cluster.Server, f.Servers}, {cluster.Agent, f.Agents}} {
		n := node
		n.Role = r.role
		spec := config.MergeSpec(f.Spec, r.group.Spec)
		if f.Spec != nil {
			p.inline[r.role] = append(p.inline[r.role], config.Inline{File: f.name, Spec: f.Spec})
		}
		if r.group.Spec != nil {
			p.inline[r.role] = append(p.inline[r.role], config.Inline{File: f.name, Spec: r.group.Spec})
		}
		// What nodes of the role have that are added: one that no name chooses.
		later := n
		later.Index = cluster.MaxAgents - 1
		for _, to := range append([]*cluster.NodeSpec{&later}, numbered(n, counts[r.role])...) {
			var err error
			if to.Config, err = p.configOf(*to, spec, nodeConfig); err != nil {
				return err
			}
			if to != &later {
				p.Nodes = append(p.Nodes, *to)
			}
		}
		later.Index = 0
		p.Spec.Like = append(p.Spec.Like, later)
	}
	return nil
}

// numbered are count nodes like one.
func numbered(like cluster.NodeSpec, count int) []*cluster.NodeSpec {
	out := make([]*cluster.NodeSpec, count)
	for i := range out {
		n := like
		n.Index = i
		out[i] = &n
	}
	return out
}

// configOf is a node's configuration: that of its role, and the settings for it that are no flags.
func (p *plan) configOf(n cluster.NodeSpec, spec *yaml.Node, nodeConfig string) (string, error) {
	set := false
	for _, d := range p.deep {
		if !d.on.Matches(n.Role, n.Index) {
			continue
		}
		if !set && nodeConfig != "" {
			doc, err := content(nodeConfig)
			if err != nil || doc.Kind != yaml.MappingNode {
				return nodeConfig, nil // checkNode says what is wrong with it
			}
			spec = valueOf(doc, "spec")
		}
		spec, set = config.MergeSpec(spec, d.spec), true
	}
	if nodeConfig != "" && !set {
		return nodeConfig, nil
	}
	return config.File(spec)
}

func valueOf(doc *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(doc.Content); i += 2 {
		if doc.Content[i].Value == key {
			return doc.Content[i+1]
		}
	}
	return nil
}

// checkNodes checks every node, also those that may be added.
func (o createOptions) checkNodes(p *plan) error {
	p.Spec.Private = nil
	for _, n := range slices.Concat(p.Nodes, p.Spec.Like) {
		inline := p.inline[n.Role]
		for _, d := range p.deep {
			if len(inline) > 0 && d.on.Matches(n.Role, n.Index) {
				inline = append(slices.Clone(inline), config.Inline{File: "--set", Spec: d.spec})
			}
		}
		if err := checkNode(&p.Spec, n, inline); err != nil {
			return err
		}
	}
	return nil
}

// proxyNames are the variables that say how to reach the outside. Programs know both spellings; nodes get the upper one.
var proxyNames = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

// proxies gives nodes that may reach the outside the proxy of whoever creates them, and sees to it that one on this machine
// can be reached from there.
func (o createOptions) proxies(p *plan, e env) {
	has := func(name string) bool {
		return slices.ContainsFunc(p.Spec.Env, func(v cluster.Env) bool { return strings.EqualFold(v.Name, name) })
	}
	if p.Spec.Egress && !slices.ContainsFunc(proxyNames, has) {
		for _, name := range proxyNames {
			if value := cmp.Or(e.deps.getenv(name), e.deps.getenv(strings.ToLower(name))); value != "" {
				p.Spec.Env = append(p.Spec.Env, cluster.Env{Name: name, Value: value})
			}
		}
	}
	used := false
	for i, v := range p.Spec.Env {
		if !strings.EqualFold(v.Name, proxyNames[0]) && !strings.EqualFold(v.Name, proxyNames[1]) {
			continue
		}
		used = true
		u, err := url.Parse(v.Value)
		if err != nil || u.Host == "" {
			continue
		}
		port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
		if r := (cluster.Reach{Host: u.Hostname(), Port: uint16(port)}); err == nil && r.Local() {
			addReach(&p.Spec, r)
			u.Host = net.JoinHostPort(cluster.HostName, strconv.Itoa(int(r.Port)))
			p.Spec.Env[i].Value = u.String()
		}
	}
	if !used || len(p.Spec.Reach) == 0 {
		return
	}
	direct := strings.Join(append(p.Spec.HostNames(), cluster.BridgeAddr(p.Spec.Subnet).String()), ",")
	for i, v := range p.Spec.Env {
		if strings.EqualFold(v.Name, "NO_PROXY") {
			p.Spec.Env[i].Value = v.Value + "," + direct
			return
		}
	}
	p.Spec.Env = append(p.Spec.Env, cluster.Env{Name: "NO_PROXY", Value: direct})
}

// useRegistries makes the files with which nodes pull.
func (o createOptions) useRegistries(p *plan, f *written, here string) error {
	src, err := o.registrySource(f, here)
	if err != nil {
		return err
	}
	add := func(text string) error { return src.add(&p.Spec, text) }
	if err := f.each("registry", f.Registry, add); err != nil {
		return err
	}
	for _, text := range o.registry {
		if err := add(text); err != nil {
			return err
		}
	}
	files, err := src.files(p.Spec.Volumes)
	if err != nil {
		return err
	}
	p.registries = src
	if len(files) > 0 {
		p.Spec.Files = maps.Clone(files)
	}
	return nil
}
