package gate

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// The test binary is the plugin, by its name, and also the one before it in the list.
const before = "addresses"

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case Plugin:
		Main()
	case before:
		fmt.Println(`{"cniVersion": "1.0.0", "ips": [{"address": "10.42.0.5/24"}, {"address": "fd00::5/64"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}`)
	default:
		os.Exit(m.Run())
	}
}

// cni is a network of the two plugins whose agent answers with an error or "".
func cni(t *testing.T, answer string) (*libcni.CNIConfig, *libcni.NetworkConfigList, <-chan Request) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{Plugin, before} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	heard, ended := make(chan Request, 10), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var r Request
			if err := json.NewDecoder(conn).Decode(&r); err == nil {
				heard <- r
				_ = json.NewEncoder(conn).Encode(Response{Error: answer})
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": %q}, {"type": %q, "socket": %q}]}`, before, Plugin, socket))
	if err != nil {
		t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{dir}, filepath.Join(dir, "cache"), nil), list, heard
}

func ofPod(args ...[2]string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: "c1", NetNS: "/none", IfName: "eth0", Args: append([][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_INFRA_CONTAINER_ID", "c1"}}, args...)}
}

var pod = [][2]string{{"K8S_POD_NAMESPACE", "x"}, {"K8S_POD_NAME", "a"}, {"K8S_POD_UID", "u"}}

func TestThePluginTellsAddressesAndPassesTheResultOn(t *testing.T) {
	c, list, heard := cni(t, "")
	result, err := c.AddNetworkList(t.Context(), list, ofPod(pod...))
	if err != nil {
		t.Fatal(err)
	}
	want := Request{Namespace: "x", Name: "a", UID: "u", Container: "c1", IPs: []netip.Addr{netip.MustParseAddr("10.42.0.5"), netip.MustParseAddr("fd00::5")}}
	if got := <-heard; !reflect.DeepEqual(got, want) {
		t.Errorf("told %+v, want %+v", got, want)
	}
	got, err := types100.NewResultFromResult(result)
	if err != nil || len(got.IPs) != 2 || len(got.Routes) != 1 {
		t.Errorf("the result is %v, %v", result, err)
	}
	if err := c.DelNetworkList(t.Context(), list, ofPod(pod...)); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; !got.Gone || got.Name != "a" || got.Container != "c1" {
		t.Errorf("told %+v at its end", got)
	}
	// Whoever is no pod has no policies.
	if _, err := c.AddNetworkList(t.Context(), list, ofPod()); err != nil || len(heard) != 0 {
		t.Errorf("without a pod: %v, told %d", err, len(heard))
	}
}

func TestAPodWhosePoliciesAreNotInForceDoesNotStart(t *testing.T) {
	c, list, _ := cni(t, "the API server has not answered")
	_, err := c.AddNetworkList(t.Context(), list, ofPod(pod...))
	if err == nil || !strings.Contains(err.Error(), "the API server has not answered") {
		t.Errorf("got %v", err)
	}
	// Its end is never held up.
	if err := c.DelNetworkList(t.Context(), list, ofPod(pod...)); err != nil {
		t.Error(err)
	}
}

func TestWithoutAddressesThePluginIsInTheWrongPlace(t *testing.T) {
	c, list, _ := cni(t, "")
	list.Plugins = list.Plugins[1:]
	_, err := c.AddNetworkList(t.Context(), list, ofPod(pod...))
	if err == nil || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "not the first plugin") {
		t.Errorf("got %v", err)
	}
}
