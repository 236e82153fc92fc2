//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/wait"
)

// A daemon was killed, and the next one finds other settings: what has changed has to end before it is started
// again, which takes as long as the old process likes.
func TestEveryComponentIsShownWhileOldProcessesAreStopped(t *testing.T) {
	t.Parallel()
	c := created(t, "settings")
	was := c.running(t)
	api, err := componentOf(was, "kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	kill(t, c.where().PID) // it would start the daemon again
	kill(t, was.PID)
	c.put(t, []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  components:\n    kube-apiserver:\n      args: {v: \"1\"}\n"), "/etc/k1s/config.yaml")
	if err := unix.Kill(api.PID, unix.SIGSTOP); err != nil { // so that it does not end before it is looked at
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(api.PID, unix.SIGCONT) }()
	if err := c.k1s(within(t, limit), "cluster", "start", c.name, "--no-wait", "--no-kubeconfig").error(); err != nil {
		t.Fatal(err)
	}
	var first *control.Status
	err = wait.Until(within(t, limit), askAgain, "the old API server to be shown", func(ctx context.Context) error {
		s, err := c.status(ctx)
		if err != nil {
			return err
		}
		if first == nil {
			first = &s
		}
		now, err := componentOf(s, "kube-apiserver")
		if err == nil && (now.State != "stopping" || !strings.Contains(now.Note, "other settings")) {
			err = fmt.Errorf("it is %s %s", now.State, now.Note)
		}
		if err == nil && len(s.Components) != len(was.Components) {
			err = errors.New("components are missing: " + notReady(s))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if first != nil && len(first.Components) != len(was.Components) {
		t.Errorf("the first answer shows %d components of %d", len(first.Components), len(was.Components))
	}
	if err := unix.Kill(api.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if now, err := componentOf(c.running(t), "kube-apiserver"); err != nil || now.PID == api.PID {
		t.Errorf("%v; process %d, the old one was %d", err, now.PID, api.PID)
	}
}
