package images

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

func TestAContainerdThatIsBusyIsNotOneThatDoesNotRun(t *testing.T) {
	dir := t.TempDir()
	mute := filepath.Join(dir, "mute.sock")
	l, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for socket, want := range map[string]struct {
		kind errs.Kind
		hint string
	}{
		mute:                            {errs.Timeout, "it listens, so the machine is busy: try again; see: k1s status"},
		filepath.Join(dir, "none.sock"): {errs.NotRunning, "see whether the node runs: k1s status"},
	} {
		c, err := dial(t.Context(), socket, 50*time.Millisecond)
		if err == nil {
			c.Close()
			t.Errorf("%s answers", socket)
			continue
		}
		if hint, _ := errs.HintOf(err); errs.KindOf(err) != want.kind || hint != want.hint {
			t.Errorf("%v: kind %d, hint %q", err, errs.KindOf(err), hint)
		}
	}
}
