package platform

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestRoutesAreRead(t *testing.T) {
	table := "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		"eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n" +
		"eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n" +
		"eth1\t0000000A\t00000000\t0000\t0\t0\t0\t000000FF\t0\t0\t0\n"
	want := []route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.168.2.1"), Dev: "eth0", Metric: 100},
		{Dst: netip.MustParsePrefix("192.168.2.0/24"), Dev: "eth0"},
	}
	if got := parseRoutes(table); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestFactsOfThisMachine(t *testing.T) {
	dir := t.TempDir()
	f, err := DetectFacts(t.Context(), FactsInput{DataDir: filepath.Join(dir, "not", "yet")})
	if err != nil {
		t.Fatal(err)
	}
	if f.NodeName == "" || f.CPUs < 1 || f.MemoryBytes < 64*mb || f.CgroupRoot != "/k1s" {
		t.Errorf("got %+v", f)
	}
	t.Logf("%+v", f)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	mounts, err := mountPoints()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if filepath.Base(m) == "merged" && filepath.Dir(filepath.Dir(m)) == dir {
			t.Errorf("left a mount: %s", m)
		}
	}
}

func TestWhatIsAskedForIsNotDetected(t *testing.T) {
	f, err := DetectFacts(t.Context(), FactsInput{DataDir: t.TempDir(), NodeName: "n7", NodeIP: "192.0.2.77", CgroupRoot: "/x"})
	if err != nil || f.NodeName != "n7" || f.NodeIP.String() != "192.0.2.77" || f.NodeInterface != "" || f.CgroupRoot != "/x" {
		t.Errorf("got %+v, %v", f, err)
	}
	if _, err := DetectFacts(t.Context(), FactsInput{DataDir: t.TempDir(), NodeIP: "192.0.2"}); err == nil {
		t.Error("took a malformed address")
	}
}

func TestTheDirectoryThatExistsIsFound(t *testing.T) {
	dir := t.TempDir()
	if got, err := existing(filepath.Join(dir, "a", "b")); got != dir || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{file, filepath.Join(file, "x"), ""} {
		if got, err := existing(bad); err == nil {
			t.Errorf("%q: got %q", bad, got)
		}
	}
}

func TestTheLowestLimitOfMemoryCounts(t *testing.T) {
	mount := t.TempDir()
	for name, limit := range map[string]string{
		"": "max", "a": "9223372036854771712", "a/b": "3000", "a/b/c": "4000", "node": "2000",
	} {
		if err := os.MkdirAll(filepath.Join(mount, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(mount, name, "memory.max"), []byte(limit+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		own, root string
		bytes     uint64
		file      string
	}{
		{"/", "/k1s", 10000, ""},
		{"/a", "/k1s", 10000, ""},
		{"/a/b/c", "/k1s", 3000, "a/b/memory.max"},
		{"/", "/node/not/yet", 2000, "node/memory.max"},
		{"/a/b", "/node", 2000, "node/memory.max"},
		{"", "", 10000, ""},
	} {
		file := c.file
		if file != "" {
			file = filepath.Join(mount, file)
		}
		cg := &Cgroups{Version: 2, Hierarchies: map[string]string{"": mount}, Own: map[string]string{"": c.own}}
		if bytes, got := lowestLimit(10000, memoryCgroups(cg, c.root)); bytes != c.bytes || got != file {
			t.Errorf("%s and %s: %d by %q, want %d by %q", c.own, c.root, bytes, got, c.bytes, file)
		}
	}
	if bytes, file := lowestLimit(10000, memoryCgroups(nil, "/k1s")); bytes != 10000 || file != "" {
		t.Errorf("without cgroups: %d by %q", bytes, file)
	}
}
