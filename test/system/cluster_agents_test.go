//go:build system

package system

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
)

// member is one node of a cluster of several.
type member struct {
	*Cluster
	node string
}

// disk is where a file of the node is on this machine.
func (m member) disk(path string) string {
	return filepath.Join(m.clusters(), "state", m.name, "nodes", m.node, path)
}

// in runs a command in the node.
func (m member) in(ctx context.Context, argv ...string) result {
	return m.k1s(ctx, append([]string{"cluster", "exec", m.name, m.node, "--"}, argv...)...)
}

// status asks the node's daemon.
func (m member) status(ctx context.Context) (control.Status, error) {
	socket := filepath.Join(filepath.Dir(filepath.Dir(m.where().ControlSocket)), "k1s", "k1s.sock")
	return control.NewClient(strings.Replace(socket, m.where().Name, m.node, 1)).Status(ctx)
}

// untilState waits until the node is in a state.
func (m member) untilState(t *testing.T, want control.State) control.Status {
	t.Helper()
	var s control.Status
	eventually(t, limit, m.node+" to be "+string(want), func(ctx context.Context) error {
		var err error
		if s, err = m.status(ctx); err != nil {
			return err
		}
		if s.State != want {
			return fmt.Errorf("it is %s %s: %s", s.State, s.Doing, notReady(s))
		}
		return nil
	})
	return s
}

// nodeCommand runs `k1s cluster node VERB CLUSTER NODE`.
func (m member) nodeCommand(t *testing.T, verb string, args ...string) result {
	t.Helper()
	return m.k1s(within(t, limit), append([]string{"cluster", "node", verb, m.name, m.node}, args...)...)
}

func (m member) must(t *testing.T, r result) {
	t.Helper()
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
}

// everywhere is an application with a pod on every node.
type everywhere struct{ space }

// everyPod is a pod of it.
type everyPod struct{ name, ip string }

// pods by node, once there is one on each of so many nodes, ready as far as the API knows, and no other.
func (e everywhere) pods(ctx context.Context, nodes int) (map[string]everyPod, error) {
	r := e.try(ctx, "get", "pods", "-l", "app=everywhere", "-o",
		`jsonpath={range .items[*]}{.spec.nodeName}|{.status.podIP}|{.metadata.name}|{.status.conditions[?(@.type=="Ready")].status}|{.metadata.deletionTimestamp}{"\n"}{end}`)
	if err := r.error(); err != nil {
		return nil, err
	}
	out := map[string]everyPod{}
	for line := range strings.Lines(r.out) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 5 || f[1] == "" || f[3] != "True" || f[4] != "" || out[f[0]].name != "" {
			return nil, fmt.Errorf("there are\n%s", r.out)
		}
		out[f[0]] = everyPod{f[2], f[1]}
	}
	if len(out) != nodes { // those of a node that is gone go after a while
		return nil, fmt.Errorf("there are\n%s", r.out)
	}
	return out, nil
}

// reach checks that every pod reaches every other one by its address, and all of them through the service by its name.
func (e everywhere) reach(t *testing.T, nodes int) {
	t.Helper()
	var pods map[string]everyPod
	// again has the pods as they are now: after a stop, a kill or another joining the API tells of those before for a while.
	again := func(ctx context.Context) (err error) {
		pods, err = e.pods(ctx, nodes)
		return err
	}
	eventually(t, limit, fmt.Sprintf("a pod on each of %d nodes", nodes), again)
	e.rolledOut(t, "daemonset/everywhere")
	for _, from := range slices.Sorted(maps.Keys(pods)) {
		for _, to := range slices.Sorted(maps.Keys(pods)) {
			eventually(t, limit, "the pod on "+from+" to reach that on "+to, func(ctx context.Context) error {
				if err := again(ctx); err != nil {
					return err
				}
				r := e.try(ctx, "exec", pods[from].name, "--", "wget", "-q", "-T", "5", "-O", "-", "http://"+pods[to].ip+":8080/")
				if err := r.error(); err != nil {
					return err
				}
				if strings.TrimSpace(r.out) != "on "+to {
					return fmt.Errorf("it answers %q", r.out)
				}
				return nil
			})
		}
		answered := map[string]bool{}
		eventually(t, limit, "answers of all pods through the service, on "+from, func(ctx context.Context) error {
			r := e.try(ctx, "exec", pods[from].name, "--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do /bin/wget -q -T 5 -O - http://everywhere/ || exit; done")
			for line := range strings.Lines(r.out) {
				answered[strings.TrimSpace(line)] = true
			}
			if len(answered) != nodes {
				return fmt.Errorf("answered have %v: %v", answered, r)
			}
			return nil
		})
	}
}

// served checks that an agent finds the API at its own address, whoever is behind it, and that the API finds the agent's pod.
func (e everywhere) served(t *testing.T, agent member) {
	t.Helper()
	const kubeconfig = "/var/lib/k1s/kubeconfig/kubelet.kubeconfig"
	if raw, err := os.ReadFile(agent.disk(kubeconfig)); err != nil || !strings.Contains(string(raw), "https://127.0.0.1:6443") {
		t.Errorf("%s does not find the API at its own address: %v\n%s", agent.node, err, raw)
	}
	eventually(t, limit, "the API to answer "+agent.node+" at its own address", func(ctx context.Context) error {
		r := agent.in(ctx, "k1s", "kubectl", "--kubeconfig", kubeconfig, "get", "node", agent.node, "-o", "name")
		if r.code != 0 || strings.TrimSpace(r.out) != "node/"+agent.node {
			return fmt.Errorf("it says %v", r)
		}
		return nil
	})
	pod := strings.TrimSpace(e.kubectl(t, "get", "pods", "-l", "app=everywhere", "--field-selector", "spec.nodeName="+agent.node, "-o", "jsonpath={.items[*].metadata.name}"))
	e.untilOutput(t, limit, "the log of the pod on "+agent.node, is("started on "+agent.node), "logs", pod)
	e.untilOutput(t, limit, "a command in the pod on "+agent.node, is("here on "+agent.node), "exec", pod, "--", "sh", "-c", "echo here on $NODE")
}

// uids are the pods and how often their containers were started.
func (e everywhere) uids(t *testing.T) string {
	t.Helper()
	return e.kubectl(t, "get", "pods", "-l", "app=everywhere", "--sort-by=.spec.nodeName", "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.metadata.uid} {.status.containerStatuses[0].containerID}{"\n"}{end}`)
}

// beside is a shell's line that starts a second node program in a node, with directories of its own and a token from standard input.
func beside(start string) string {
	return "rm -rf /run/other && mkdir -p /run/other/data && ln -s /var/lib/k1s/payload /run/other/data/payload && cat > /run/other/token && chmod 600 /run/other/token && " +
		"K1S_DATA_DIR=/run/other/data K1S_RUN_DIR=/run/other/run K1S_CONFIG_DIR=/run/other/etc K1S_TOKEN_FILE=/run/other/token " + start +
		"; code=$?; rm -rf /run/other; exit $code"
}

// joinsTwice runs the command with which an agent has joined again, while it runs and when its daemon was killed, with its own token and with
// another one.
func joinsTwice(t *testing.T, c *Cluster, a member) {
	// known is what the cluster knows of it: its Node, its key, and the token with which it joined.
	known := func() string {
		t.Helper()
		return c.kubectl(t, "get", "node", a.node, "-o", "jsonpath={.metadata.uid} ") +
			c.kubectl(t, "-n", "kube-system", "get", "secret", "k1s-node-"+a.node, "-o", "jsonpath={.data.identity} {.data.token}")
	}
	was, before := a.untilState(t, control.Running), known()
	if len(strings.Fields(before)) != 3 {
		t.Fatalf("the cluster knows %q of %s", before, a.node)
	}
	another := c.in(within(t, limit), "k1s", "token", "create")
	a.must(t, another)
	if err := os.WriteFile(a.disk("etc/another"), []byte(another.out), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"token", "another"} {
		a.in(within(t, limit), "k1s", "agent", "--token-file", "/etc/k1s/"+file).wants(t, 1, "k1s is already running on /var/lib/k1s", "hint:  ")
	}
	for _, token := range []string{"its own", "another"} {
		if token == "another" {
			if err := os.Rename(a.disk("etc/another"), a.disk("etc/token")); err != nil {
				t.Fatal(err)
			}
		}
		kill(t, was.PID)
		eventually(t, limit, "another daemon, with "+token+" token", func(ctx context.Context) error {
			now, err := a.status(ctx)
			if err == nil && now.PID == was.PID {
				err = errors.New("it is still the old one")
			}
			return err
		})
		if was = a.untilState(t, control.Running); known() != before {
			t.Errorf("with %s token it is another one: %s, was %s", token, known(), before)
		}
	}
}

func TestAgentsJoinAndStay(t *testing.T) {
	t.Parallel()
	c := created(t, "agents", withImages(t, "--agents", "2")...)
	agents := []member{{c, "agent-0"}, {c, "agent-1"}}
	app := everywhere{c.namespace(t, "everywhere")}
	app.apply(t, "everywhere.yaml")

	inTurn(t, "pods of all nodes reach each other", func(t *testing.T) {
		app.reach(t, 3)
		out := c.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.addresses[?(@.type=="InternalIP")].address} {end}`)
		if strings.TrimSpace(out) != "agent-0=10.88.0.30 agent-1=10.88.0.31 server-0=10.88.0.10" {
			t.Errorf("nodes: %s", out)
		}
		// host-gw: a route for each other node, and no tunnel.
		r := agents[0].in(within(t, limit), "ip", "route")
		if strings.Count(r.out, " via 10.88.0.") < 2 || strings.Contains(r.out, "flannel") {
			t.Errorf("routes of agent-0:\n%s", r.out)
		}
	})
	inTurn(t, "an agent has its own rights only", func(t *testing.T) {
		a := agents[0]
		for _, secret := range []string{"ca.key", "sa.key", "front-proxy-ca.key", "admin-client.key", "daemon-client.key"} {
			if _, err := os.Stat(a.disk("var/lib/k1s/pki/" + secret)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s on an agent: %v", secret, err)
			}
		}
		a.in(within(t, limit), "k1s", "kubectl", "get", "nodes").wants(t, 4, "is an agent")
		a.in(within(t, limit), "k1s", "token", "create").wants(t, 4, "is an agent", "on a server")
		// With the kubelet's credentials: its own node, and no secrets.
		as := []string{"k1s", "kubectl", "--kubeconfig", "/var/lib/k1s/kubeconfig/kubelet.kubeconfig"}
		if err := a.in(within(t, limit), append(as, "get", "node", "agent-0")...).error(); err != nil {
			t.Error(err)
		}
		for _, denied := range [][]string{{"get", "secrets", "-n", "kube-system"}, {"label", "node", "agent-1", "a=b"}, {"patch", "node", "agent-1", "--subresource=status", "-p", `{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"10.88.0.30"}}}`}, {"delete", "node", "server-0"}} {
			if r := a.in(within(t, limit), append(as, denied...)...); r.code == 0 || !strings.Contains(r.err, "orbidden") {
				t.Errorf("kubectl %v as an agent: %v", denied, r)
			}
		}
	})
	inTurn(t, "certificates are renewed while pods are talked to", func(t *testing.T) {
		a := agents[0]
		before := readCertificate(t, a.disk("var/lib/k1s/pki/kubelet-serving.crt"))
		identity := decoded(t, a.disk("var/lib/k1s/pki/node.key"))
		a.in(within(t, limit), "k1s", "certs", "renew", "--all").wants(t, 0, "4 certificates are renewed")
		after := readCertificate(t, a.disk("var/lib/k1s/pki/kubelet-serving.crt"))
		if before.Equal(after) {
			t.Error("the kubelet's certificate is the old one")
		}
		if string(decoded(t, a.disk("var/lib/k1s/pki/node.key"))) != string(identity) {
			t.Error("the node's identity changed")
		}
		app.reach(t, 3)
	})
	inTurn(t, "servers need no route to agents", func(t *testing.T) { serversNeedNoRoute(t, c, agents[0]) })
	inTurn(t, "a wrong token lets nobody in", func(t *testing.T) {
		token := strings.TrimSpace(c.in(within(t, limit), "k1s", "token", "create", "--ttl", "10m", "--description", "of a test").out)
		other := strings.TrimSpace(c.in(within(t, limit), "k1s", "token", "create").out)
		parts, others := strings.Split(token, "."), strings.Split(other, ".")
		if len(parts) != 5 || len(others) != 5 {
			t.Fatalf("tokens %q, %q", token, other)
		}
		if out := c.in(within(t, limit), "k1s", "token", "ls").out; !strings.Contains(out, "of a test") || strings.Contains(out, parts[3]) {
			t.Errorf("token ls:\n%s", out)
		}
		// Its record is in the database's files, and its secret is not.
		if !c.inFiles(t, parts[2]) || !c.inFiles(t, "of a test") {
			t.Error("the record of the token is not where its secret is looked for")
		}
		for _, secret := range []string{parts[3], base64.StdEncoding.EncodeToString([]byte(parts[3]))} {
			if c.inFiles(t, secret) {
				t.Error("the token's secret is in the files of the database")
			}
		}
		c.in(within(t, limit), "k1s", "token", "revoke", others[2]).wants(t, 0, "revoked")
		expired := strings.TrimSpace(c.in(within(t, limit), "k1s", "token", "create", "--ttl", "1s").out)
		eventually(t, limit, "a token to expire", func(ctx context.Context) error {
			r := c.in(ctx, "k1s", "token", "ls")
			for line := range strings.Lines(r.out) {
				if f := strings.Fields(line); len(f) > 0 && strings.Contains(expired, "."+f[0]+".") && strings.Contains(line, "expired") {
					return nil
				}
			}
			return fmt.Errorf("token ls: %v", r)
		})
		wrong := strings.Join([]string{parts[0], parts[1], parts[2], others[3], parts[4]}, ".")
		foreign := strings.Join([]string{parts[0], parts[1], parts[2], parts[3], strings.Repeat("A", 43)}, ".")
		for name, tc := range map[string]struct {
			token, says string
			code        int
		}{
			"cut off":            {token[:len(token)-4], "was it cut off", 2},
			"wrong secret":       {wrong, "its secret is not the one", 1},
			"revoked":            {other, "is not known", 1},
			"expired":            {expired, "expired on 2", 1},
			"of another cluster": {foreign, "is not a server of the cluster that the token is for", 1},
		} {
			t.Run(name, func(t *testing.T) {
				// It gets no further than joining.
				r := c.k1sWith(within(t, limit), tc.token, "cluster", "exec", c.name, "agent-1", "--", "sh", "-c",
					beside("K1S_NODE_NAME=agent-9 K1S_NODE_IP=10.88.0.31 K1S_SERVER=https://10.88.0.10:6443 k1s agent"))
				r.wants(t, tc.code, tc.says)
				if strings.Contains(r.out+r.err, parts[3]) {
					t.Error("the token's secret is in its output")
				}
			})
		}
		if out := c.kubectl(t, "get", "secrets", "-n", "kube-system", "-o", "name"); strings.Contains(out, "agent-9") {
			t.Errorf("the cluster knows agent-9:\n%s", out)
		}
	})
	inTurn(t, "who joins twice stays who it is", func(t *testing.T) { joinsTwice(t, c, agents[1]) })
	inTurn(t, "files are closed as the CIS benchmark has it", func(t *testing.T) {
		filesAreClosed(t, member{c, "server-0"}, true)
		filesAreClosed(t, agents[0], false)
	})
	inTurn(t, "the cluster's CA is replaced", func(t *testing.T) { theCAIsReplaced(t, c, app, agents[0], agents[1]) })
	inTurn(t, "a name belongs to one machine", func(t *testing.T) {
		a := agents[1]
		a.must(t, a.nodeCommand(t, "stop"))
		// Another machine that says it is agent-1, with a good token.
		for _, f := range []string{"var/lib/k1s/pki", "var/lib/k1s/agent.json", "var/lib/k1s/servers.json"} {
			if err := os.RemoveAll(a.disk(f)); err != nil {
				t.Fatal(err)
			}
		}
		token := c.in(within(t, limit), "k1s", "token", "create").out
		if err := os.WriteFile(a.disk("etc/token"), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		a.nodeCommand(t, "start", "--wait", "20s").wants(t, 5, "agent-1")
		eventually(t, limit, "the log of agent-1 to say whose name it is", func(context.Context) error {
			log, err := os.ReadFile(filepath.Join(c.clusters(), "state", c.name, "log", "agent-1.log"))
			if err == nil && !strings.Contains(string(log), "the name agent-1 belongs to another machine") {
				err = errors.New(lastLines(string(log), 10))
			}
			return err
		})
		plan := c.in(within(t, limit), "k1s", "node", "remove", "agent-1", "--dry-run")
		if plan.wants(t, 0); !strings.Contains(plan.out, "would forget the machine behind agent-1") || !strings.Contains(plan.out, "would delete node agent-1") {
			t.Errorf("the plan is %q", plan.out)
		}
		c.in(within(t, limit), "k1s", "node", "remove", "agent-1", "--yes").wants(t, 0, "agent-1 is removed")
		a.must(t, a.nodeCommand(t, "start", patience))
		app.reach(t, 3)
	})
	inTurn(t, "agents are far away from each other", func(t *testing.T) {
		const far = 500 * time.Millisecond
		a := agents[0]
		var pods map[string]everyPod
		eventually(t, limit, "a pod on each node", func(ctx context.Context) (err error) {
			pods, err = app.pods(ctx, 3)
			return err
		})
		c.net(t, "delay", "agent-0", "agent-1", far.String())
		eventually(t, limit, "the pod on agent-1 to answer agent-0", func(ctx context.Context) error {
			began := time.Now()
			r := a.in(ctx, "wget", "-q", "-T", "20", "-O", "-", "http://"+pods["agent-1"].ip+":8080/")
			took := time.Since(began)
			if err := r.error(); err != nil {
				return err
			}
			// There and back to connect, and there and back to ask; how much longer it takes says nothing.
			if took < 4*far || strings.TrimSpace(r.out) != "on agent-1" {
				t.Errorf("it answers %q after %s", r.out, took)
			}
			return nil
		})
		list := func() string {
			t.Helper()
			r := c.k1s(within(t, limit), "cluster", "net", "ls", "-c", c.name)
			r.wants(t, 0)
			return strings.Join(strings.Fields(r.out), " ")
		}
		if got := list(); !strings.HasPrefix(got, "NODE AND LINK DROPPED NOTE agent-0 agent-1 500ms later") {
			t.Errorf("net ls: %s", got)
		}
		c.net(t, "heal", "agent-0", "agent-1")
		if got := list(); got != "NODE AND LINK DROPPED NOTE" {
			t.Errorf("net ls after that: %s", got)
		}
		app.reach(t, 3)
	})
	inTurn(t, "pods of agents go on without a server", func(t *testing.T) {
		a := agents[0]
		var pods map[string]everyPod
		eventually(t, limit, "a pod on each node", func(ctx context.Context) (err error) {
			pods, err = app.pods(ctx, 3)
			return err
		})
		before := app.uids(t)
		c.net(t, "cut", "server-0") // nothing arrives and nothing is refused: open connections hang
		ask := func() {
			t.Helper()
			eventually(t, limit, "the pod on agent-1 to answer agent-0", func(ctx context.Context) error {
				r := a.in(ctx, "wget", "-q", "-T", "5", "-O", "-", "http://"+pods["agent-1"].ip+":8080/")
				if err := r.error(); err != nil {
					return err
				}
				if strings.TrimSpace(r.out) != "on agent-1" {
					return fmt.Errorf("it answers %q", r.out)
				}
				return nil
			})
		}
		ask()
		s := a.untilState(t, control.Degraded)
		eventually(t, limit, "the agent to see that no server answers", func(ctx context.Context) error {
			now, err := a.status(ctx)
			if err != nil {
				return err
			}
			balancer, err := componentOf(now, "balancer")
			if err == nil && balancer.State == "ready" {
				err = errors.New("the balancer counts as ready")
			}
			return err
		})
		// All of k1s on the agent dies, and starts again, with no server to ask.
		kill(t, s.PID)
		for _, comp := range []string{"kubelet", "containerd"} {
			cs, err := componentOf(s, comp)
			if err != nil {
				t.Fatal(err)
			}
			kill(t, cs.PID)
		}
		eventually(t, limit, "the agent's kubelet without a server", func(ctx context.Context) error {
			now, err := a.status(ctx)
			if err != nil {
				return err
			}
			k, err := componentOf(now, "kubelet")
			if err == nil && (now.PID == s.PID || k.State != "ready") {
				err = fmt.Errorf("daemon %d, kubelet %s %s", now.PID, k.State, k.Note)
			}
			return err
		})
		ask()
		c.net(t, "heal")
		a.untilState(t, control.Running)
		app.reach(t, 3)
		after := app.uids(t)
		for _, line := range strings.Split(before, "\n") {
			if strings.HasPrefix(line, "agent-") && !strings.Contains(after, line) {
				t.Errorf("a pod of an agent was started anew: before\n%s\nafter\n%s", before, after)
			}
		}
	})
	inTurn(t, "an agent boots without a server, and its pods are back when there is one", func(t *testing.T) {
		a := agents[0]
		pod := func() string {
			t.Helper()
			return strings.TrimSpace(app.kubectl(t, "get", "pods", "-l", "app=everywhere", "--field-selector", "spec.nodeName="+a.node, "-o", "jsonpath={.items[*].metadata.uid}"))
		}
		before, was := pod(), a.untilState(t, control.Running)
		c.net(t, "cut", "server-0")
		a.must(t, a.nodeCommand(t, "stop"))
		a.must(t, a.nodeCommand(t, "start", "--wait", "0s"))
		eventually(t, limit, "the agent's kubelet to run, while no server answers", func(ctx context.Context) error {
			now, err := a.status(ctx)
			if err != nil {
				return err
			}
			k, err := componentOf(now, "kubelet")
			b, berr := componentOf(now, "balancer")
			if err = errors.Join(err, berr); err == nil && (now.PID == was.PID || k.State != "ready" || b.State == "ready") {
				err = fmt.Errorf("daemon %d, was %d; it is %s %s: kubelet %s %s, balancer %s %s", now.PID, was.PID, now.State, now.Doing, k.State, k.Note, b.State, b.Note)
			}
			return err
		})
		c.net(t, "heal")
		a.untilState(t, control.Running)
		app.reach(t, 3)
		if after := pod(); after != before || before == "" {
			t.Errorf("the pod of %s was %q and is %q", a.node, before, after)
		}
	})
	inTurn(t, "the cluster stops and starts, and grows and shrinks", func(t *testing.T) {
		if err := c.k1s(within(t, limit), "cluster", "stop", c.name).error(); err != nil {
			t.Fatal(err)
		}
		if left := c.processes(t); len(left) > 0 {
			t.Errorf("processes after the stop: %v", left)
		}
		c.starts(t)
		app.reach(t, 3)
		c.k1s(within(t, limit), "cluster", "node", "add", c.name, patience).wants(t, 0, "node agent-2 is there, at 10.88.0.32")
		app.reach(t, 4)
		last := member{c, "agent-2"}
		last.nodeCommand(t, "delete", "--yes").wants(t, 0, "agent-2 is deleted")
		if out := c.kubectl(t, "get", "nodes", "-o", "name"); strings.Contains(out, "agent-2") {
			t.Errorf("nodes after the deletion:\n%s", out)
		}
		if r := c.k1s(within(t, limit), "cluster", "node", "ls", c.name); strings.Count(r.out, "running") != 3 {
			t.Errorf("node ls:\n%s", r.out)
		}
	})
}
