package platform

import "testing"

func TestMemoryLeftCountsPagesOfFilesAsFree(t *testing.T) {
	for _, c := range []struct {
		name        string
		limit       uint64
		usage, stat string
		want        uint64
	}{
		{"version 2", 1000, "700\n", "anon 200\ninactive_file 300\nactive_file 100\n", 700},
		{"version 1, with what is below", 1000, "700\n", "inactive_file 1\nactive_file 1\ntotal_inactive_file 300\ntotal_active_file 100\n", 700},
		{"full", 1000, "1000", "inactive_file 0\nactive_file 0\n", 0},
		{"over the limit", 1000, "1200", "", 0},
		{"more pages than use", 1000, "100", "inactive_file 300\n", 1000},
		{"unreadable", 1000, "", "", 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := memoryLeft(c.limit, c.usage, c.stat); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestAvailableMemoryIsKnownHere(t *testing.T) {
	if AvailableMemory() == 0 {
		t.Error("it is said to be unknown")
	}
}
