// Command guest makes the checks inside the virtual machine, as a systemd service that starts with every
// boot, and tells the harness about each through a virtio port. It remembers in a file what it has done,
// because the machine is started anew in between. See package main in test/vm.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/wait"
	"k1s.io/k1s/test/vm/report"
)

const (
	disk    = "/checks" // where the second disk is mounted
	home    = "/var/lib/k1s-checks"
	program = "/usr/local/bin/k1s"
	// patience is for one thing to happen on an emulated processor that ten others want as well.
	patience = 10 * time.Minute
	// pause is between two looks, each of which costs that processor a second.
	pause = 3 * time.Second
)

func main() {
	g, err := newGuest()
	if err == nil {
		err = g.run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		if g != nil {
			g.tell(report.Result{Check: "the checks themselves", Failure: err.Error()})
		}
	}
	// The end of the machine is the end of the run, whatever has happened.
	if err := exec.Command("systemctl", "poweroff").Run(); err != nil {
		fmt.Fprintln(os.Stderr, "error: powering off:", err)
	}
}

// guest is this machine and what is known about it.
type guest struct {
	port   io.Writer
	cgroup string // v1 or v2
	quick  bool   // what takes long is left out
	state
}

// state is what is remembered over a reboot.
type state struct {
	Boots  int      `json:"boots"`
	Before snapshot `json:"before"` // the machine without k1s
}

// check is one statement that is to be true.
type check struct {
	name string
	// show makes it true where it has to be done first, and returns what shows it.
	show func(context.Context) (string, error)
	// needed is set where nothing after it can succeed without.
	needed bool
	// long is set where it takes long on an emulated processor.
	long bool
}

// openPort opens what the host reads. The link with the port's name is udev's, which may still be at work when this is started.
func openPort(path string) (*os.File, error) {
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(end) {
			return f, err
		}
	}
}

func newGuest() (*guest, error) {
	port, err := openPort("/dev/virtio-ports/" + report.Port)
	if err != nil {
		return nil, err
	}
	g := &guest{port: port}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return g, err
	}
	for arg := range strings.FieldsSeq(string(cmdline)) {
		if v, ok := strings.CutPrefix(arg, "k1s.cgroup="); ok {
			g.cgroup = v
		}
		g.quick = g.quick || arg == "k1s.quick=true"
	}
	raw, err := os.ReadFile(filepath.Join(home, "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return g, os.MkdirAll(home, 0o755)
	}
	if err != nil {
		return g, err
	}
	return g, json.Unmarshal(raw, &g.state)
}

func (g *guest) save() error {
	raw, err := json.Marshal(g.state)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(home, "state.json"), raw, 0o644)
}

func (g *guest) tell(r report.Result) {
	if err := report.Write(g.port, r); err != nil {
		fmt.Fprintln(os.Stderr, "error: telling the harness:", err)
	}
}

// run makes the checks of this boot. After the first boot's it starts the machine anew and waits for its
// own end.
func (g *guest) run(ctx context.Context) error {
	g.Boots++
	if err := g.save(); err != nil {
		return err
	}
	switch {
	case g.quick:
		if g.all(ctx, slices.DeleteFunc(append(g.firstBoot(), g.end()...), func(c check) bool { return c.long })) {
			g.tell(report.Result{Last: true})
		}
		return nil
	case g.Boots == 1:
		if !g.all(ctx, g.firstBoot()) {
			return nil
		}
		if err := g.save(); err != nil {
			return err
		}
		if out, err := sh(ctx, "systemctl reboot"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		select {} // systemd ends us
	case g.Boots == 2:
		if g.all(ctx, g.secondBoot()) {
			g.tell(report.Result{Last: true})
		}
		return nil
	default:
		return fmt.Errorf("this is boot %d: the machine has started by itself", g.Boots)
	}
}

// all makes checks in order; it is false when it had to leave some out.
func (g *guest) all(ctx context.Context, checks []check) bool {
	for _, c := range checks {
		fmt.Println("check:", c.name)
		start := time.Now()
		out, err := c.show(ctx)
		r := report.Result{Check: c.name, Took: time.Since(start), Output: out}
		if err != nil {
			r.Failure = err.Error()
			r.Detail = diagnosis(ctx)
		}
		g.tell(r)
		if err != nil && c.needed {
			return false
		}
	}
	return true
}

// diagnosis is what one wants to see when something is not as it should be.
func diagnosis(ctx context.Context) string {
	out, _ := sh(ctx, `set +e
echo "--- journal"; journalctl -u k1s -n 40 --no-pager -o cat
echo "--- status"; k1s status
echo "--- pods"; timeout 60 k1s kubectl get pods -A -o wide
echo "--- events"; timeout 60 k1s kubectl get events -A --sort-by=.lastTimestamp | tail -n 30
echo "--- endpoints"; timeout 60 k1s kubectl get endpointslices -A -o jsonpath='{range .items[*]}{.metadata.name} {.metadata.resourceVersion} {range .endpoints[*]}{.addresses} {.conditions} {end}{"\n"}{end}'
echo "--- services as kube-proxy has written them"; PATH=/var/lib/k1s/payload/current:$PATH nft list map ip kube-proxy no-endpoint-services; PATH=/var/lib/k1s/payload/current:$PATH nft list map ip kube-proxy service-ips
echo "--- what kube-proxy says"; grep -iE "sync|nft|proxier|endpointslice" /var/lib/k1s/log/node.log | grep -v flannel | tail -n 20
echo "--- kernel"; dmesg | tail -n 10
for f in /var/lib/k1s/log/*.log; do echo "--- $f"; tail -n 12 $f; done`)
	return out
}

// sh runs a shell script and returns all it prints.
func sh(ctx context.Context, script string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", script)
	// What kubectl remembers is the user's, and stays; here it would look like something k1s has left.
	cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "KUBECACHEDIR="+home+"/kube")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	text := strings.TrimRight(string(out), "\n")
	if err != nil {
		return text, fmt.Errorf("%s: %w", firstLine(script), err)
	}
	return text, nil
}

// says runs a script whose output must contain each of the words.
func says(ctx context.Context, script string, words ...string) (string, error) {
	out, err := sh(ctx, script)
	if err != nil {
		return out, err
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			return out, fmt.Errorf("%s does not say %q", firstLine(script), w)
		}
	}
	return out, nil
}

// eventually repeats what may need time. On an emulated processor a few kubectl are seconds of work for all there is, so it rests for
// twice as long as a try took: otherwise asking whether the node answers is what keeps it from answering, probes of pods fail, and DNS has
// no endpoints for as long as it is asked.
func eventually(ctx context.Context, what string, try func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var out string
	err := wait.Until(ctx, pause, what, func(ctx context.Context) (err error) {
		began := time.Now()
		if out, err = try(ctx); err != nil {
			rest(ctx, 2*time.Since(began))
		}
		return err
	})
	return out, err
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
