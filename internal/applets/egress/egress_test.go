//go:build linux

package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/clustertest"
	"k1s.io/k1s/internal/cluster/netns"
	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/internal/wait"
)

// The test binary is also the program of the cluster it makes: all its processes, and what runs in its node.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case "cluster":
			err = netns.Main(context.Background(), os.Args[2:])
		case "egress":
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
			err = Run(ctx, os.Args[2:])
			stop()
		case "server":
			_ = unix.Pause()
		case "get":
			err = get(os.Args[2])
		case "ask":
			err = ask(os.Args[2])
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func get(url string) error {
	c := http.Client{Timeout: 20 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(os.Stdout, resp.Body)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func ask(addr string) error {
	c, err := net.Dial("udp4", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 1500)
	for range 3 { // the first packet may be lost while neighbours are found
		if _, err = c.Write([]byte("hello")); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		var n int
		if n, err = c.Read(b); err == nil {
			fmt.Printf("%s", b[:n])
			return nil
		}
	}
	return err
}

// ownAddr is an address of this machine itself that is not its loopback: the nearest thing to the outside
// that needs no outside.
func ownAddr(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr()
		}
	}
	t.Skip("this machine has no address but its loopback")
	return netip.Addr{}
}

func echo(t *testing.T, at string) string {
	t.Helper()
	pc, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(append([]byte("re: "), b[:n]...), from)
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return pc.LocalAddr().String()
}

func serve(t *testing.T, at, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	s := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host, _, _ := net.SplitHostPort(r.RemoteAddr); strings.HasPrefix(host, "10.88.") {
			t.Errorf("a packet of the cluster came out: %s", host)
		}
		fmt.Fprint(w, answer)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

func TestANodeReachesTheOutsideAndNothingElse(t *testing.T) {
	testenv.Root(t)
	o := netns.Below(t.TempDir())
	o.CgroupRoot = "/k1s-test-egress-" + strconv.Itoa(os.Getpid())
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o.Egress = []string{exe, "egress"}
	p := netns.New(o)
	t.Cleanup(func() {
		if err := p.Delete(context.Background(), "out", ""); err != nil {
			t.Error(err)
		}
		clustertest.NothingLeft(t, p, "out")
	})
	if _, err := p.Prepare(t.Context(), cluster.Spec{Name: "out", Egress: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "out", Role: cluster.Server}); err != nil {
		t.Fatal(err)
	}
	inNode := func(args ...string) (string, error) {
		var out strings.Builder
		err := p.Exec(t.Context(), "out", "server-0", append([]string{"/opt/k1s/k1s"}, args...), cluster.Streams{Out: &out, ErrOut: &out})
		return out.String(), err
	}
	own := ownAddr(t)
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	outside := serve(t, netip.AddrPortFrom(own, 0).String(), big)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = wait.Until(ctx, 100*time.Millisecond, "the way out", func(context.Context) error {
		got, err := inNode("get", "http://"+outside)
		if err != nil {
			return fmt.Errorf("%w: %.200s", err, got)
		}
		if got != big {
			return wait.Permanent(fmt.Errorf("got %d bytes that are not what was sent", len(got)))
		}
		return nil
	})
	if err != nil {
		b, _ := os.ReadFile(o.State + "/out/log/switch.log")
		t.Fatalf("%v\n%s", err, b)
	}
	if got, err := inNode("ask", echo(t, netip.AddrPortFrom(own, 0).String())); got != "re: hello" {
		t.Errorf("UDP: got %q, %v", got, err)
	}
	if got, err := inNode("get", "http://"+netip.AddrPortFrom(own, 1).String()); err == nil || !strings.Contains(got, "refused") {
		t.Errorf("a closed port outside: got %q, %v, want it refused", got, err)
	}
	// Everything that is not outside is refused at once.
	for _, to := range []string{"10.42.7.7:80", "10.43.0.1:443", "169.254.169.254:80", "10.88.0.2:80"} {
		if got, err := inNode("get", "http://"+to); err == nil || !strings.Contains(got, "refused") {
			t.Errorf("%s: got %q, %v, want it refused", to, got, err)
		}
	}
}

func TestWhatIsNotOutsideIsRefused(t *testing.T) {
	gw := netip.MustParsePrefix("10.88.0.2/24")
	dns := netip.MustParseAddrPort("192.0.2.53:53")
	e := &egress{o: Options{Gateway: gw, Resolver: dns}, refuse: refused(gw, []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")})}
	for to, want := range map[string]string{
		"203.0.113.1:443": "203.0.113.1:443", "192.168.1.1:80": "192.168.1.1:80", "10.88.0.2:53": "192.0.2.53:53", "10.41.0.1:1": "10.41.0.1:1",
		"10.88.0.2:80": "", "10.88.0.10:6443": "", "10.42.1.2:80": "", "127.0.0.1:22": "", "169.254.169.254:80": "",
		"0.0.0.0:80": "", "224.0.0.1:5353": "", "255.255.255.255:67": "",
	} {
		got, err := e.target(netip.MustParseAddrPort(to))
		if want == "" && err == nil || want != "" && (err != nil || got.String() != want) {
			t.Errorf("%s: got %v, %v, want %q", to, got, err, want)
		}
	}
}

func TestTheMachinesNameServerIsFound(t *testing.T) {
	got, err := firstResolver("# comment\nsearch lan\nnameserver nonsense\nnameserver 192.0.2.1 # first\nnameserver 192.0.2.2\n")
	if err != nil || got.String() != "192.0.2.1:53" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := firstResolver("search lan\n"); err == nil {
		t.Error("none: got no error")
	}
}
