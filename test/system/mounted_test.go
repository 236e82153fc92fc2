//go:build system

package system

import (
	"strings"
	"testing"
)

func TestConfigMapsAndSecretsAreMountedAndUpdatedWhileThePodRuns(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "mounted")
	s.apply(t, "mounted.yaml")
	s.ready(t, "reader")
	read := "echo $COLOUR $WORD; cat /settings/colour; echo; cat /password/word; echo; stat -L -c %a /password/word"
	if got, want := s.sh(t, "reader", read), "red swordfish\nred\nswordfish\n400\n"; got != want {
		t.Errorf("the pod sees %q, want %q", got, want)
	}
	s.kubectl(t, "patch", "configmap", "settings", "-p", `{"data":{"colour":"green"}}`)
	s.kubectl(t, "patch", "secret", "password", "-p", `{"stringData":{"word":"xyzzy"}}`)
	// The kubelet renews volumes when it looks after the pod the next time, at most every 90 s or so.
	s.untilOutput(t, limit, "the files to be updated", is("green xyzzy"),
		"exec", "reader", "--", "sh", "-c", "echo $(cat /settings/colour) $(cat /password/word)")
	// Variables are those of the start.
	if out := s.sh(t, "reader", "echo $COLOUR"); strings.TrimSpace(out) != "red" {
		t.Errorf("the variable became %q", out)
	}
}
