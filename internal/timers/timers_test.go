package timers

import "testing"

func TestTheMonitorIsTheFirstThreadAfterTheProcess(t *testing.T) {
	for name, c := range map[string]struct {
		process int
		threads []int
		want    int
	}{
		"alone":                     {100, []int{100}, 0},
		"in order":                  {100, []int{100, 101, 102}, 101},
		"with a gap":                {100, []int{100, 140, 107, 103}, 103},
		"counting began anew":       {32760, []int{32760, 310, 305, 900}, 305},
		"counting began anew later": {32760, []int{32760, 32765, 305}, 32765},
	} {
		if got := monitor(c.process, c.threads, 32768); got != c.want {
			t.Errorf("%s: got %d, want %d", name, got, c.want)
		}
	}
}
