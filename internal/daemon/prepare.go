package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"slices"

	"k1s.io/k1s/internal/audit"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/platform"
)

// DefaultCgroupRoot is the cgroup everything of a node lives in when it runs directly on a machine.
const DefaultCgroupRoot = "/k1s"

// facts of this machine; an address that could not be found is an error here, because nothing can be
// rendered without it.
func detectFacts(ctx context.Context, o Options) (component.Facts, error) {
	root := o.CgroupRoot
	if root == "" {
		root = DefaultCgroupRoot
	}
	f, err := platform.DetectFacts(ctx, platform.FactsInput{
		DataDir: o.Paths.Data, NodeName: o.Config.Spec.Node.Name, NodeIP: o.Config.Spec.Node.IP, CgroupRoot: root,
	})
	if err != nil {
		return f, fmt.Errorf("looking at this machine: %w", err)
	}
	f.Proxy, f.Sandbox = proxy(os.Getenv), o.Sandbox
	if o.CgroupRoot != "" {
		// Somebody gave us a place in the tree, below which systemd is not in charge.
		f.Systemd = false
	}
	if !f.NodeIP.IsValid() {
		return f, errs.Hint(errs.New(errs.Invalid, "this machine has no address other nodes could reach"),
			"set spec.node.ip (--node-ip) to an address of one of its interfaces")
	}
	return f, nil
}

// Plan renders what would run, without touching anything: the payload's directory is named but not made.
func Plan(ctx context.Context, o Options) ([]component.Unit, error) {
	if o.Config.Spec.ControlPlane() {
		if err := resolveDatastore(&o.Config); err != nil {
			return nil, err
		}
		if _, err := datastoreID(o.Config.Spec.Datastore); err != nil { // plans are passed on, so it is not in them
			return nil, err
		}
	}
	f, err := detectFacts(ctx, o)
	if err != nil {
		return nil, err
	}
	f.Proxy = withoutPasswords(f.Proxy) // plans are printed and passed on
	in := component.Input{Config: o.Config, Paths: o.Paths, Facts: f, Payload: o.Paths.CurrentPayload()}
	if o.Config.Spec.ControlPlane() {
		if in.AuditPolicy, err = readAuditPolicy(o.Config.Spec.Audit); err != nil {
			return nil, err
		}
		if err := asServer(&in); err != nil {
			return nil, err
		}
	} else if err := asMember(&in); err != nil {
		return nil, err
	}
	if p, err := payload.Open(o.Executable); err == nil {
		in.PayloadID = p.ID
		in.Payload = path.Join(o.Paths.Payloads(), p.ID)
	}
	return components.Plan(in)
}

// readAuditPolicy reads the policy file the configuration names, "" where it names none or auditing is off.
func readAuditPolicy(c config.Audit) (string, error) {
	if !c.Enabled || c.PolicyFile == "" {
		return "", nil
	}
	raw, err := os.ReadFile(c.PolicyFile)
	if err != nil {
		return "", errs.Hint(errs.New(errs.Invalid, "reading the audit policy (spec.audit.policyFile): %w", err),
			"put a policy there, or leave the field empty: then metadata of every request is written")
	}
	return string(raw), audit.Check(c.PolicyFile, raw)
}

// preflight runs the checks and returns the problems they found; those of severity error are in the
// error too.
func preflight(ctx context.Context, in component.Input, running []int) ([]health.Problem, error) {
	checks := slices.DeleteFunc(platform.Checks(), func(c platform.Check) bool {
		return c.Worker && !in.Config.Spec.Worker()
	})
	nft := ""
	if in.Payload != "" {
		nft = path.Join(in.Payload, "nft")
	}
	var users []platform.CheckUser
	if in.Config.Spec.Users.Separate {
		plan, err := components.Plan(in)
		if err != nil {
			return nil, err
		}
		users = checkedUsers(plan)
	}
	problems := platform.RunChecks(ctx, checks, platform.CheckInput{
		Facts: in.Facts, Config: in.Config, Paths: in.Paths, NFT: nft, Users: users,
		IgnorePIDs: running, Adopting: len(running) > 0,
	})
	return problems, health.BlockingError(problems)
}

// certificates issues what is missing or due, or every leaf, and writes every kubeconfig.
func certificates(ctx context.Context, log *slog.Logger, in component.Input, all bool) (pki.Report, error) {
	services, err := netip.ParsePrefix(in.Config.Spec.Network.ServiceCIDR)
	if err != nil {
		return pki.Report{}, err
	}
	report, err := pki.Ensure(ctx, pki.Request{
		Paths: in.Paths, NodeName: in.Facts.NodeName, NodeIP: in.Facts.NodeIP, Domain: in.Config.Spec.Cluster.Domain,
		ServiceCIDR: services, SANs: append(slices.Clone(in.Config.Spec.API.SANs), components.APIHosts(in)...), NoWorker: !in.Config.Spec.Worker(), Etcd: components.UsesEtcd(in),
		All: all,
	})
	if err != nil {
		return report, err
	}
	for _, c := range report.Issued {
		log.Debug("certificate issued", "name", c.Name, "reason", c.Reason)
	}
	return report, kubeconfigs(ctx, log, in)
}

// clients are the components that talk to the API server, and the certificate each does it with.
func clients(in component.Input) map[string]string {
	m := map[string]string{}
	if in.Config.Spec.ControlPlane() {
		m["kube-controller-manager"] = pki.ControllerManagerClient
		m["kube-scheduler"] = pki.SchedulerClient
		m["addon-manager"] = pki.AddonManagerClient
	}
	if in.Config.Spec.Worker() {
		m["kubelet"] = pki.KubeletClient
		m["kube-proxy"] = pki.KubeProxyClient
		m["flannel"] = pki.KubeletClient // it writes to its own node only
		m["network-policy"] = pki.NetworkPolicyClient
	}
	return m
}

func kubeconfigs(ctx context.Context, log *slog.Logger, in component.Input) error {
	ca, serverName := pki.CertFile(in.Paths, pki.CA), ""
	if !in.Config.Spec.ControlPlane() {
		serverName = join.ServerName // who answers is a server at another address
	}
	if err := os.MkdirAll(path.Dir(in.Paths.Kubeconfig("x")), 0o700); err != nil {
		return fmt.Errorf("making the directory of the kubeconfigs: %w", err)
	}
	for name, cert := range clients(in) {
		err := kubeconfig.WriteFile(in.Paths.Kubeconfig(name), kubeconfig.Config{
			Name: in.Config.Spec.Cluster.Name, Server: components.URL(in), CAFile: ca,
			CertFile: pki.CertFile(in.Paths, cert), KeyFile: pki.KeyFile(in.Paths, cert), TLSServerName: serverName,
		})
		if err != nil {
			return err
		}
	}
	if !in.Config.Spec.ControlPlane() {
		return nil // nobody is administrator of the cluster because of an agent
	}
	admin, err := adminKubeconfig(in)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(in.Paths.Config, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", in.Paths.Config, err)
	}
	if err := kubeconfig.WriteFile(in.Paths.AdminKubeconfig(), admin); err != nil {
		return err
	}
	if out := in.Config.Spec.Kubeconfig.Output; out != "" {
		if _, err := kubeconfig.Merge(ctx, []string{out}, admin, kubeconfig.MergeOptions{}); err != nil {
			// The node works without it; somebody else's entry of the same name is no reason not to start.
			log.Warn("kubeconfig not written", "file", out, "err", err)
		}
	}
	return nil
}

func adminKubeconfig(in component.Input) (kubeconfig.Config, error) {
	c := kubeconfig.Config{Name: in.Config.Spec.Cluster.Name, Server: components.URL(in)}
	var err error
	read := func(file string) []byte {
		b, e := os.ReadFile(file)
		err = errors.Join(err, e)
		return b
	}
	c.CA = read(pki.CertFile(in.Paths, pki.CA))
	c.Cert = read(pki.CertFile(in.Paths, pki.AdminClient))
	c.Key = read(pki.KeyFile(in.Paths, pki.AdminClient))
	if err != nil {
		return c, fmt.Errorf("reading the administrator's certificate: %w", err)
	}
	return c, nil
}

// writeIfChanged keeps the modification time of files that stay the same, because others watch them.
func writeIfChanged(file string, content []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(file); err == nil && string(old) == string(content) {
		return nil
	}
	if err := os.MkdirAll(path.Dir(file), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(file, content, mode)
}

// cluster is what config and paths say about whom this node belongs to, for messages.
func cluster(c config.Config, p paths.Paths) slog.Attr {
	return slog.Group("cluster", "name", c.Spec.Cluster.Name, "data", p.Data)
}
