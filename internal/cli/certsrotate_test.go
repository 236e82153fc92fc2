package cli

import (
	"testing"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/rotation"
)

func TestWhoWatchesAReplacementIsToldWhatItWaitsFor(t *testing.T) {
	trusting := rotation.State{Number: 1, Stage: rotation.Trusting}
	const learns = "everybody learns to trust the new CA beside the old one"
	for _, c := range []struct {
		r    control.Rotation
		want string
	}{
		{control.Rotation{State: trusting}, learns},
		{control.Rotation{State: trusting, Waits: []string{"pods of apps are not given this stage's bundle yet", "agent-0: has not learned of the new CA yet"}}, learns + " (pods of apps are not given this stage's bundle yet)"},
		{control.Rotation{State: trusting, Waits: []string{"of before"}, Note: "asking which CA pods are given: connection refused"}, learns + " (asking which CA pods are given: connection refused)"},
		{control.Rotation{State: rotation.State{Number: 1}, Waits: []string{"of before"}}, "the CA is replaced"},
	} {
		if got := rotationProgress(c.r) + rotationWait(c.r); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
