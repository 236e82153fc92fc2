package platform

import (
	"net"
	"net/netip"
	"os"
	"reflect"
	"testing"
)

func TestTheOwnerOfAPortIsFound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	got, err := ListenersOn(addr.Port())
	want := []Listener{{Port: addr.Port(), Addr: netip.MustParseAddr("127.0.0.1"), PID: os.Getpid(), Process: processName(os.Getpid())}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := ListenersOn(addr.Port()); err != nil || len(got) != 0 {
		t.Errorf("after closing: %+v, %v", got, err)
	}
}
