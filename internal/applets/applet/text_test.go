package applet

import (
	"reflect"
	"strings"
	"testing"
)

const someSmaps = `00400000-00401000 r--p 00000000 fe:00 117 /opt/k1s/k1s kube
Size:                  4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
00401000-08000000 r-xp 00001000 fe:00 117 /opt/k1s/k1s kube
Rss:                 900 kB
Anonymous:             0 kB
08000000-0a000000 r--p 07c00000 fe:00 117 /opt/k1s/k1s kube
Anonymous:            12 kB
0a000000-0a100000 rw-p 09c00000 fe:00 117 /opt/k1s/k1s kube
Anonymous:             0 kB
c000000000-c004000000 rw-p 00000000 00:00 0
Anonymous:           100 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 118 /opt/k1s/other
Anonymous:             0 kB
7ffd00000000-7ffd00021000 r--p 00000000 00:00 0 [vvar]
Anonymous:             0 kB
`

func TestOnlyUntouchedTextOfTheProgramIsDropped(t *testing.T) {
	got, err := programText(strings.NewReader(someSmaps), "/opt/k1s/k1s kube")
	want := []span{{0x00400000, 0x00401000}, {0x00401000, 0x08000000}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %x, %v; want %x", got, err, want)
	}
}

func TestABrokenMapDropsNothing(t *testing.T) {
	got, err := programText(strings.NewReader("zz-08000000 r-xp 0 fe:00 117 /opt/k1s\nAnonymous: 0 kB\n"), "/opt/k1s")
	if err == nil || got != nil {
		t.Errorf("got %x, %v", got, err)
	}
}

// The process goes on: every function and constant used from here on comes from the file again.
func TestDroppingTextIsNotNoticed(t *testing.T) {
	if err := dropText(); err != nil {
		t.Fatal(err)
	}
	if strings.Repeat("a", 3) != "aaa" {
		t.Error("the program is broken")
	}
}
