package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/control"
)

func (g *guest) firstBoot() []check {
	return []check{
		{name: "cgroup " + g.cgroup, show: g.layout, needed: true},
		{name: "systemd is the first process", show: func(ctx context.Context) (string, error) {
			return says(ctx, `cat /proc/1/comm; systemctl --version | head -n 1`, "systemd\n")
		}, needed: true},
		{name: "a stock kernel, with modules and all capabilities", show: g.kernel, needed: true},
		{name: "k1s check finds nothing that is in the way", show: func(ctx context.Context) (string, error) {
			return sh(ctx, "install -m 755 "+disk+"/k1s "+program+"; k1s version; k1s check")
		}, needed: true},
		{name: "the service starts, and is active when the node is Ready", show: g.service, needed: true},
		{name: "node Ready, DNS answers the node", show: g.running},
		{name: "pods run, DNS and services answer them", show: g.pods, needed: true},
		{name: "cgroup driver of kubelet and containerd", show: g.driver},
		{name: "a pod is in its cgroup, with its limits", show: g.limits},
		{name: "more memory than the limit: killed by the kernel", show: g.oom},
		{name: "components have cgroups of their own", show: g.components},
		{name: "kubectl top", show: g.top, long: true},
		{name: "the control plane killed: back, pods do not notice", show: g.killed("kube-apiserver"), long: true},
		{name: "the kubelet killed: back, pods do not notice", show: g.killed("kubelet"), long: true},
		{name: "containerd killed: back, pods do not notice", show: g.killed("containerd"), long: true},
		{name: "the daemon killed: systemd starts it, it adopts", show: g.daemonKilled},
		{name: "systemctl daemon-reload and daemon-reexec: limits and controllers stay", show: g.reloaded, long: true},
		{name: "systemctl restart k1s: pods run on", show: g.restarted, long: true},
		{name: "the clock is set a day forward, and back: pods run on, and their tokens are good", show: g.clockSet, long: true},
	}
}

func (g *guest) secondBoot() []check {
	return append([]check{
		{name: "after a reboot the node comes back by itself", show: g.running, needed: true},
		{name: "after a reboot pods, DNS, services and volumes are back", show: g.backAgain},
		{name: "after a reboot a pod is in its cgroup, with its limits", show: g.limits},
	}, g.end()...)
}

func (g *guest) end() []check {
	return []check{
		// Without it, a node that runs is reset, with its pods.
		{name: "k1s stop --pods ends pods and service", show: g.stopped, long: true},
		{name: "in a cgroup it was given: pods below it, without systemd", show: g.placed, long: true},
		{name: "k1s reset leaves nothing", show: g.reset},
	}
}

// layout is that of /sys/fs/cgroup.
func (g *guest) layout(ctx context.Context) (string, error) {
	out, err := sh(ctx, `grep cgroup /proc/mounts | cut -d' ' -f 2-4; cat /proc/self/cgroup`)
	if err != nil {
		return out, err
	}
	v1 := strings.Contains(out, " cgroup ")
	unified := strings.Contains(out, "/sys/fs/cgroup cgroup2 ")
	if g.cgroup == "v2" && (v1 || !unified) || g.cgroup == "v1" && !v1 {
		return out, fmt.Errorf("this is not cgroup %s", g.cgroup)
	}
	return out, nil
}

func (g *guest) kernel(ctx context.Context) (string, error) {
	out, err := sh(ctx, `uname -rm; grep CapEff /proc/self/status; cat /proc/sys/kernel/modules_disabled; ls /lib/modules/$(uname -r)/kernel/net/netfilter | grep -c .
echo "clock: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "nft: $(command -v nft || echo none), iptables: $(command -v iptables || echo none), containerd: $(command -v containerd || echo none)"
ip -brief address; ip route`)
	if err != nil {
		return out, err
	}
	const sysResource = 24
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil || mask&(1<<sysResource) == 0 {
				return out, fmt.Errorf("CAP_SYS_RESOURCE is missing: %w", err)
			}
		}
	}
	return out, nil
}

// service installs and starts k1s as docs/how-to/systemd.md says.
func (g *guest) service(ctx context.Context) (string, error) {
	out, err := sh(ctx, "install -m 644 "+disk+"/k1s.service /etc/systemd/system/k1s.service; systemctl daemon-reload; systemctl enable k1s")
	if err != nil {
		return out, err
	}
	if g.Before, err = look(ctx); err != nil {
		return out, err
	}
	if err := g.save(); err != nil {
		return out, err
	}
	start := time.Now()
	out, err = sh(ctx, "mkdir -p /var/lib/k1s/images; cp "+disk+"/images/*.tar /var/lib/k1s/images/; systemctl start k1s")
	if err != nil {
		return out, err
	}
	took := time.Since(start).Round(time.Second)
	out, err = says(ctx, "systemctl show k1s -p Type,ActiveState,SubState,Delegate,KillMode,ControlGroup,OOMScoreAdjust; k1s kubectl get nodes -o wide",
		"Type=notify", "ActiveState=active", " Ready ")
	return fmt.Sprintf("systemctl start took %s\n%s", took, out), err
}

// status asks the daemon, without starting a program for it.
func status(ctx context.Context) (control.Status, error) {
	return control.NewClient("/run/k1s/k1s.sock").Status(ctx)
}

func (g *guest) running(ctx context.Context) (string, error) {
	out, err := eventually(ctx, "the node to be running", func(ctx context.Context) (string, error) {
		s, err := status(ctx)
		switch {
		case err != nil:
			return "", err
		case s.State != control.Running:
			return "", fmt.Errorf("it is %s %s", s.State, s.Doing)
		case s.Node == nil || !s.Node.Ready:
			return "", errors.New("the node is not Ready")
		case s.DNS == nil || !s.DNS.Answers:
			return "", errors.New("DNS does not answer")
		}
		return "", nil
	})
	if err != nil {
		return out, err
	}
	return sh(ctx, "systemctl is-active k1s; k1s status; systemd-analyze time | head -n 1")
}

// pods starts the workloads and stores something.
func (g *guest) pods(ctx context.Context) (string, error) {
	if out, err := sh(ctx, "k1s kubectl apply --validate=false -f "+disk+"/manifests.yaml"); err != nil {
		return out, err
	}
	if out, err := g.ready(ctx); err != nil {
		return out, err
	}
	out, err := sh(ctx, "k1s kubectl exec client -- /bin/wget -q -T 20 -O - --post-data kept 'http://store:8080/file?path=/data/word'")
	if err != nil {
		return out, err
	}
	return g.answering(ctx)
}

func (g *guest) ready(ctx context.Context) (string, error) {
	return sh(ctx, "k1s kubectl rollout status deployment/web statefulset/store --timeout=5m; k1s kubectl wait --for=condition=Ready pod/client --timeout=5m")
}

// answering asks from within a pod: names, a service, and a volume.
func (g *guest) answering(ctx context.Context) (string, error) {
	return eventually(ctx, "names, services and volumes to answer in a pod", func(ctx context.Context) (string, error) {
		return says(ctx, `k1s kubectl exec client -- /bin/nslookup kubernetes.default.svc.cluster.local
echo "service: $(k1s kubectl exec client -- /bin/wget -q -T 20 -O - http://web.default/)"
echo "volume: $(k1s kubectl exec client -- /bin/wget -q -T 20 -O - 'http://store:8080/file?path=/data/word')"
k1s kubectl get pods -A -o wide`, "10.43.0.1", "service: web-", "volume: kept")
	})
}

func (g *guest) driver(ctx context.Context) (string, error) {
	return driverIs(ctx, map[string]string{"v2": "systemd", "v1": "cgroupfs"}[g.cgroup])
}

func driverIs(ctx context.Context, want string) (string, error) {
	out, err := says(ctx, `k1s kubectl get --raw /api/v1/nodes/$(hostname)/proxy/configz | tr , '\n' | grep -i cgroup
grep SystemdCgroup /var/lib/k1s/rendered/containerd.toml`, `"cgroupDriver":"`+want+`"`, fmt.Sprintf("SystemdCgroup = %t", want == "systemd"))
	return out, err
}

// process is the one of the pod store-0, with the id of its container.
func process(ctx context.Context) (pid, id string, err error) {
	out, err := sh(ctx, `id=$(k1s kubectl get pod store-0 -o 'jsonpath={.status.containerStatuses[0].containerID}'); id=${id#*://}; echo $id
k1s ctr task ls 2>/dev/null | grep "^$id" | { read -r name pid state; echo $pid; }`)
	if err != nil {
		return "", "", fmt.Errorf("%w: %s", err, out)
	}
	f := strings.Fields(out)
	if len(f) != 2 {
		return "", "", fmt.Errorf("the process of store-0 is said to be %q", out)
	}
	return f[1], f[0], nil
}

const limit = 64 << 20 // of store-0, in manifests.yaml

func (g *guest) limits(ctx context.Context) (string, error) {
	pid, id, err := process(ctx)
	if err != nil {
		return "", err
	}
	if g.cgroup == "v1" {
		return says(ctx, "for c in memory cpu,cpuacct; do d=$(grep :$c: /proc/"+pid+"/cgroup | cut -d: -f3); echo /sys/fs/cgroup/$c$d; cd /sys/fs/cgroup/$c$d; grep -H . memory.limit_in_bytes cpu.cfs_quota_us 2>/dev/null || true; done",
			"/k1s/kubepods/", fmt.Sprintf("memory.limit_in_bytes:%d", limit), "cpu.cfs_quota_us:50000")
	}
	return says(ctx, "d=/sys/fs/cgroup$(cut -d: -f3 /proc/"+pid+"/cgroup); echo $d; cd $d; grep -H . memory.max cpu.max; systemctl show cri-containerd-"+id+".scope -p Slice,MemoryMax,CPUQuotaPerSecUSec,Delegate",
		"/kubepods.slice/", fmt.Sprintf("memory.max:%d", limit), "cpu.max:50000 100000", fmt.Sprintf("MemoryMax=%d", limit))
}

// oom looks at exit code and kernel. On cgroup v2 the reason is upstream's to find, and it may be "Error": systemd
// removes the container's scope with its last process, and with it, when systemd is faster than containerd, the
// counter that tells of the kill (containerd's internal/cri/server/events.go).
func (g *guest) oom(ctx context.Context) (string, error) {
	words := []string{"Failed ", " 137", "out of memory"}
	if g.cgroup == "v1" {
		words = append(words, " OOMKilled ")
	}
	return eventually(ctx, "the greedy pod to be killed", func(ctx context.Context) (string, error) {
		return says(ctx, `k1s kubectl get pod greedy -o 'jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}'
echo; dmesg | grep -i 'memory cgroup out of memory' | tail -n 1`, words...)
	})
}

// components are the processes of k1s itself, with where they are and their OOM scores.
func (g *guest) components(ctx context.Context) (string, error) {
	s, err := status(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	line := func(name string, pid int) (string, error) {
		return sh(ctx, fmt.Sprintf("echo '%s' $(cat /proc/%d/oom_score_adj) $(grep -E '^0:|:memory:' /proc/%d/cgroup)", name, pid, pid))
	}
	out, err := line("daemon", s.PID)
	fmt.Fprintln(&b, out)
	failed := []error{err}
	seen := map[string]bool{}
	for _, c := range s.Components {
		if seen[c.Unit] {
			continue
		}
		seen[c.Unit] = true
		out, err := line(c.Unit, c.PID)
		if err == nil && !strings.Contains(out, ":/k1s/"+c.Unit) {
			err = fmt.Errorf("%s is not in the cgroup /k1s/%s", c.Unit, c.Unit)
		}
		fmt.Fprintln(&b, out)
		failed = append(failed, err)
	}
	pid, _, err := process(ctx)
	if err == nil {
		out, err = sh(ctx, fmt.Sprintf("echo store-0 $(cat /proc/%s/oom_score_adj)", pid))
		fmt.Fprintln(&b, out)
	}
	return b.String(), errors.Join(append(failed, err)...)
}

func (g *guest) top(ctx context.Context) (string, error) {
	return eventually(ctx, "metrics of nodes and pods", func(ctx context.Context) (string, error) {
		return says(ctx, "k1s kubectl top nodes; k1s kubectl top pods -A --containers", "store-0", "Mi")
	})
}

// containers tells of every container who it is, since when it runs and how often it was started again.
func containers(ctx context.Context) (string, error) {
	return eventually(ctx, "a list of containers", func(ctx context.Context) (string, error) {
		return sh(ctx, `k1s kubectl get pods -A --sort-by=.metadata.uid -o 'jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{range .status.containerStatuses[*]} {.containerID} {.state.running.startedAt} {.restartCount}{end}{"\n"}{end}'`)
	})
}

// unharmed does something to the node, waits until it is running again, and compares containers.
func (g *guest) unharmed(ctx context.Context, do func(control.Status) error, back func(before, now control.Status) error) (string, error) {
	before, err := containers(ctx)
	if err != nil {
		return before, err
	}
	old, err := status(ctx)
	if err != nil {
		return "", err
	}
	if err := do(old); err != nil {
		return "", err
	}
	start := time.Now()
	out, err := eventually(ctx, "the node to be as it was", func(ctx context.Context) (string, error) {
		s, err := status(ctx)
		switch {
		case err != nil:
			return "", err
		case s.State != control.Running:
			return "", fmt.Errorf("it is %s %s", s.State, s.Doing)
		}
		return describe(s), back(old, s)
	})
	out = fmt.Sprintf("running again after %s\n%s", time.Since(start).Round(time.Second), out)
	if err != nil {
		return out, err
	}
	after, err := containers(ctx)
	if err == nil && after != before {
		return out, fmt.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
	if err != nil {
		return out, err
	}
	said, err := g.answering(ctx)
	if err != nil {
		return said, err
	}
	return fmt.Sprintf("%sthe same %d pods as before", out, strings.Count(strings.TrimSpace(before), "\n")+1), nil
}

func describe(s control.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "daemon: process %d\n", s.PID)
	seen := map[string]bool{}
	for _, c := range s.Components {
		if !seen[c.Unit] {
			seen[c.Unit] = true
			fmt.Fprintf(&b, "%s: process %d, restarts %d %s\n", c.Unit, c.PID, c.Restarts, c.LastExit)
		}
	}
	return b.String()
}

func component(s control.Status, name string) control.Component {
	i := slices.IndexFunc(s.Components, func(c control.Component) bool { return c.Name == name })
	if i < 0 {
		return control.Component{}
	}
	return s.Components[i]
}

func kill(pid int) error {
	if pid <= 1 {
		return fmt.Errorf("there is no process %d to kill", pid)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

func (g *guest) killed(name string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		return g.unharmed(ctx,
			func(s control.Status) error { return kill(component(s, name).PID) },
			func(before, now control.Status) error {
				was, is := component(before, name), component(now, name)
				if is.State != "ready" || is.PID == was.PID || is.Restarts <= was.Restarts {
					return fmt.Errorf("%s is %s in process %d, after %d restarts", name, is.State, is.PID, is.Restarts)
				}
				return nil
			})
	}
}

// adopted tells that components are the same processes under another daemon.
func adopted(before, now control.Status) error {
	if now.PID == before.PID {
		return fmt.Errorf("the daemon is still process %d", now.PID)
	}
	for _, c := range before.Components {
		if is := component(now, c.Name); is.PID != c.PID {
			return fmt.Errorf("%s was process %d, and is %d", c.Name, c.PID, is.PID)
		}
	}
	return nil
}

func (g *guest) daemonKilled(ctx context.Context) (string, error) {
	out, err := g.unharmed(ctx, func(s control.Status) error { return kill(s.PID) }, adopted)
	if err != nil {
		return out, err
	}
	said, err := eventually(ctx, "systemd to see it active", func(ctx context.Context) (string, error) {
		return says(ctx, "systemctl show k1s -p ActiveState,NRestarts", "ActiveState=active", "NRestarts=1")
	})
	return out + "\n" + said, err
}

func (g *guest) reloaded(ctx context.Context) (string, error) {
	controllers := "true"
	if g.cgroup == "v2" {
		controllers = "cd /sys/fs/cgroup; grep -H . cgroup.subtree_control k1s/cgroup.subtree_control kubepods.slice/cgroup.subtree_control"
	}
	before, err := sh(ctx, controllers)
	if err != nil {
		return before, err
	}
	out, err := g.unharmed(ctx, func(control.Status) error {
		out, err := sh(ctx, "systemctl daemon-reload; systemctl daemon-reexec; sleep 5; systemctl daemon-reload")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}, func(control.Status, control.Status) error { return nil })
	if err != nil {
		return out, err
	}
	after, err := sh(ctx, controllers)
	if err == nil && after != before {
		return out, fmt.Errorf("controllers before:\n%s\nand after:\n%s", before, after)
	}
	limits, lerr := g.limits(ctx)
	return strings.Join([]string{after, limits}, "\n"), errors.Join(err, lerr)
}

func (g *guest) restarted(ctx context.Context) (string, error) {
	took, journal := time.Duration(0), ""
	out, err := g.unharmed(ctx, func(control.Status) error {
		start := time.Now()
		out, err := sh(ctx, "systemctl restart k1s")
		took = time.Since(start).Round(time.Second)
		if err != nil {
			return fmt.Errorf("%w after %s: %s", err, took, out)
		}
		journal, err = sh(ctx, fmt.Sprintf("journalctl -u k1s -o short-monotonic --no-pager --since '%d seconds ago' | cut -c1-160", int(took.Seconds())+1))
		return err
	}, func(before, now control.Status) error {
		if now.PID == before.PID {
			return errors.New("it is the same daemon")
		}
		return nil
	})
	if err == nil && strings.Contains(journal, "timed out") {
		err = errors.New("systemd had to end it")
	}
	return fmt.Sprintf("systemctl restart took %s\n%s\n%s", took, journal, out), err
}

// podToken is what the pod client shows to the API server.
func podToken(ctx context.Context) (string, error) {
	return sh(ctx, "k1s kubectl exec client -- /bin/cat /var/run/secrets/kubernetes.io/serviceaccount/token")
}

// clockSet sets the machine's clock a day forward, waits until a pod has a token of that day, and sets it back: the token is of a time to come then,
// and the pod has to get another one long before that.
func (g *guest) clockSet(ctx context.Context) (string, error) {
	before, err := containers(ctx)
	if err != nil {
		return before, err
	}
	today, err := podToken(ctx)
	if err != nil {
		return today, err
	}
	if out, err := sh(ctx, "date -s '+1 day'"); err != nil {
		return out, err
	}
	start := time.Now()
	if out, err := g.answering(ctx); err != nil {
		return out, fmt.Errorf("a day ahead: %w", err)
	}
	_, err = eventually(ctx, "a token of tomorrow", func(ctx context.Context) (string, error) {
		t, err := podToken(ctx)
		if err == nil && t == today {
			err = errors.New("it is still today's")
		}
		return "", err
	})
	if err != nil {
		return "", err
	}
	told := fmt.Sprintf("a token of tomorrow after %s\n", time.Since(start).Round(time.Second))
	if out, err := sh(ctx, "date -s '-1 day'"); err != nil {
		return out, err
	}
	start = time.Now()
	out, err := eventually(ctx, "the pod to be known again", func(ctx context.Context) (string, error) {
		t, err := podToken(ctx)
		if err != nil {
			return t, err
		}
		return says(ctx, `printf '{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"%s"}}' '`+t+`' |
k1s kubectl create -f - -o 'jsonpath=authenticated: {.status.authenticated} {.status.error}'`, "authenticated: true")
	})
	if err != nil {
		return out, err
	}
	told += fmt.Sprintf("the pod is known again after %s\n", time.Since(start).Round(time.Second))
	after, err := containers(ctx)
	if err == nil && after != before {
		return told, fmt.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
	if err != nil {
		return told, err
	}
	said, err := g.running(ctx)
	if err != nil {
		return said, err
	}
	said, err = g.answering(ctx)
	return told + said, err
}

func (g *guest) backAgain(ctx context.Context) (string, error) {
	if out, err := g.ready(ctx); err != nil {
		return out, err
	}
	return g.answering(ctx)
}

// stopped shows that systemd takes `k1s stop` for what it is, and that no container is left.
func (g *guest) stopped(ctx context.Context) (string, error) {
	if out, err := sh(ctx, "k1s stop --pods --timeout 5m"); err != nil {
		return out, err
	}
	time.Sleep(10 * time.Second) // longer than RestartSec
	out, err := sh(ctx, "systemctl show k1s -p ActiveState,SubState,Result; systemctl list-units --no-legend '*cri-containerd*' '*kubepods*' | cat; grep -lsa '[/]var/lib/k1s/payload' /proc/[0-9]*/cmdline || echo 'no process of the payload'")
	switch {
	case err != nil:
		return out, err
	case !strings.Contains(out, "ActiveState=inactive"), !strings.Contains(out, "no process of the payload"), strings.Contains(out, "cri-containerd"):
		return out, errors.New("something of the node still runs")
	}
	return out, nil
}

// placed starts the node once more in a place that was given to it, as a machine without systemd or a container of others has one.
func (g *guest) placed(ctx context.Context) (string, error) {
	const dropIn = "/etc/systemd/system/k1s.service.d"
	out, err := sh(ctx, "mkdir -p "+dropIn+"; printf '[Service]\nEnvironment=K1S_CGROUP_ROOT=/place/node\n' >"+dropIn+"/place.conf; systemctl daemon-reload; systemctl start k1s")
	if err != nil {
		return out, err
	}
	steps := []func(context.Context) (string, error){g.running, g.backAgain, func(ctx context.Context) (string, error) { return driverIs(ctx, "cgroupfs") },
		func(ctx context.Context) (string, error) {
			pid, _, err := process(ctx)
			if err != nil {
				return "", err
			}
			if g.cgroup == "v1" {
				return says(ctx, "grep -E 'memory|cpu,cpuacct' /proc/"+pid+"/cgroup", ":/place/node/kubepods/")
			}
			return says(ctx, "d=/sys/fs/cgroup$(cut -d: -f3 /proc/"+pid+"/cgroup); echo $d; cd $d; grep -H . memory.max cpu.max",
				"/sys/fs/cgroup/place/node/kubepods/", fmt.Sprintf("memory.max:%d", limit), "cpu.max:50000 100000")
		}, g.stopped, func(ctx context.Context) (string, error) {
			return sh(ctx, "rm -r "+dropIn+"; systemctl daemon-reload; find /sys/fs/cgroup -depth -path '*/place*' -type d -exec rmdir {} +")
		}}
	var all []string
	for _, step := range steps {
		out, err := step(ctx)
		if all = append(all, out); err != nil {
			return strings.Join(all, "\n"), err
		}
	}
	return strings.Join(all, "\n"), nil
}

// reset compares the machine with what it was before k1s.
func (g *guest) reset(ctx context.Context) (string, error) {
	// nft goes with the payload, and the tables are looked at afterwards.
	if out, err := sh(ctx, "cp -a /var/lib/k1s/payload/current/nft /var/lib/k1s/payload/current/nft.d "+home+"/"); err != nil {
		return out, err
	}
	out, err := sh(ctx, "k1s reset --yes")
	if err != nil {
		return out, err
	}
	after, err := look(ctx)
	if err != nil {
		return out, err
	}
	tables, err := sh(ctx, filepath.Join(home, "nft")+" list tables")
	if err != nil {
		return out, err
	}
	if tables != "" {
		return out, fmt.Errorf("nftables tables are left:\n%s", tables)
	}
	added, gone := after.minus(g.Before), g.Before.minus(after)
	out = fmt.Sprintf("%s\ncompared: %d files, mounts, links, routes, cgroups, units and kernel settings; nft list tables is empty", out, len(after))
	if len(added)+len(gone) > 0 {
		return out, fmt.Errorf("added:\n%s\ngone:\n%s", strings.Join(added, "\n"), strings.Join(gone, "\n"))
	}
	return out, nil
}
