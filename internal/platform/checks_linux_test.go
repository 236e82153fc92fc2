package platform

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
)

// needRoot skips unless asked for; asked for without root is a failure, so that nobody believes they ran.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("K1S_TEST_ROOT") != "" {
		t.Fatal("root tests were asked for by an ordinary user")
	}
	t.Skip("needs root")
}

func input(t *testing.T) CheckInput {
	t.Helper()
	in := CheckInput{Paths: paths.Paths{Data: t.TempDir(), Run: "/run/k1s-test", Kubelet: "/var/lib/kubelet-k1s-test"}}
	in.Config.Spec = config.Spec{Network: config.Network{PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.43.0.0/16"}}
	facts, err := DetectFacts(t.Context(), FactsInput{DataDir: in.Paths.Data})
	if err != nil {
		t.Fatal(err)
	}
	in.Facts = facts
	in.NFT, _ = exec.LookPath("nft")
	return in
}

func checkNamed(t *testing.T, name string) Check {
	t.Helper()
	all := Checks()
	i := slices.IndexFunc(all, func(c Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no check %q", name)
	}
	return all[i]
}

func TestAllChecksCanLookAtThisMachine(t *testing.T) {
	needRoot(t)
	in := input(t)
	for _, p := range RunChecks(t.Context(), Checks(), in) {
		t.Log(p)
		if p.Code == health.CheckFailed {
			t.Errorf("could not look: %s", p)
		}
	}
	if left, _ := os.ReadDir(in.Paths.Data); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The features are named by what is missing; a rule that cannot be loaded stands for one.
func TestMissingNFTFeaturesAreNamed(t *testing.T) {
	needRoot(t)
	in := input(t)
	if in.NFT == "" {
		t.Skip("there is no nft program")
	}
	// A program that refuses what the kernel at hand knows: everything with "fib" or "numgen".
	picky := filepath.Join(t.TempDir(), "nft")
	script := "#!/bin/sh\ninput=$(cat)\ncase \"$input\" in *fib*|*numgen*) echo 'No such file or directory' >&2; exit 1;; esac\nprintf '%s\\n' \"$input\" | " + in.NFT + " -f -\n"
	if err := os.WriteFile(picky, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	in.NFT = picky
	got := shown(checkNFTables(t.Context(), in))
	want := []string{"error: nftables-incomplete: nf_tables lacks what services need: nft_numgen, nft_fib_ipv4"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAnNFTProgramThatFailsIsNotTakenForAKernelThatLacksEverything(t *testing.T) {
	needRoot(t)
	in := input(t)
	in.NFT = filepath.Join(t.TempDir(), "nft")
	if err := os.WriteFile(in.NFT, []byte("#!/bin/sh\necho 'libnftables.so.1: not found' >&2; exit 127\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	got := shown(checkNFTables(t.Context(), in))
	want := []string{"error: nftables-incomplete: no rule can be loaded with nf_tables: loading probe rules: exit status 127: libnftables.so.1: not found"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheNFTProbeLeavesTheMachineAlone(t *testing.T) {
	needRoot(t)
	in := input(t)
	if in.NFT == "" {
		t.Skip("there is no nft program")
	}
	if got := checkNFTables(t.Context(), in); len(got) != 0 {
		t.Fatalf("got %q", shown(got))
	}
	out, err := exec.Command(in.NFT, "list", "tables").CombinedOutput()
	if err != nil || strings.Contains(string(out), "k1s-probe") {
		t.Errorf("tables now: %s, %v", out, err)
	}
}

func TestAPortThatIsTakenIsReported(t *testing.T) {
	in := input(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	in.Config.Spec.API = config.API{Port: l.Addr().(*net.TCPAddr).Port, Bind: "0.0.0.0"}
	in.Config.Spec.NoWorker = true
	listeners, err := ListenersOn(uint16(in.Config.Spec.API.Port))
	if err != nil {
		t.Fatal(err)
	}
	got := decidePorts(wantedPorts(in.Config.Spec)[:1], listeners, nil)
	if len(got) != 1 || !strings.Contains(got[0].Text, processName(os.Getpid())) {
		t.Errorf("got %q", shown(got))
	}
	// Our own process is no stranger to the check itself.
	for _, p := range checkPorts(t.Context(), in) {
		if p.Component == "kube-apiserver" {
			t.Errorf("got %s", p)
		}
	}
}

func TestADataDirectoryThatCannotBeWrittenIsReported(t *testing.T) {
	needRoot(t)
	in := input(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in.Paths.Data = filepath.Join(file, "data")
	got := checkNamed(t, "data-dir").Run(t.Context(), in)
	if len(got) != 1 || got[0].Code != health.DataDirReadonly {
		t.Errorf("a file in the way: %q", shown(got))
	}

	dir := t.TempDir()
	in.Paths.Data = dir
	got = inNamespaces(t, unix.CLONE_NEWNS|unix.CLONE_FS, func() ([]health.Problem, error) {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return nil, err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, "size=4k"); err != nil {
			return nil, err
		}
		return checkDataDir(context.Background(), in), nil
	})
	if len(got) != 1 || got[0].Code != health.DataDirReadonly || !strings.Contains(got[0].Text, syscall.EROFS.Error()) {
		t.Errorf("read-only: %q", shown(got))
	}

	got = inNamespaces(t, unix.CLONE_NEWNS|unix.CLONE_FS, func() ([]health.Problem, error) {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return nil, err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
			return nil, err
		}
		return append(checkDataDir(context.Background(), in), DiskProblems(in.Paths.Data)...), nil
	})
	var codes []string
	for _, p := range got {
		codes = append(codes, string(p.Severity)+" "+string(p.Code))
	}
	if want := []string{"error data-dir-readonly", "error disk-low", "warning data-dir-fs"}; !slices.Equal(codes, want) {
		t.Errorf("full: %q", shown(got))
	}
}

func TestANamespaceOfItsOwnIsNotTheMachines(t *testing.T) {
	needRoot(t)
	got := inNamespaces(t, unix.CLONE_NEWNET, func() (bool, error) { return initialNetNS(), nil })
	if got {
		t.Error("a new network namespace is taken for the machine's own")
	}
}

// inNamespaces runs f on a thread with namespaces of its own, which end with it.
func inNamespaces[T any](t *testing.T, flags int, f func() (T, error)) T {
	t.Helper()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if err := unix.Unshare(flags); err != nil {
			done <- result{err: err}
			return
		}
		v, err := f()
		done <- result{v, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.v
}
