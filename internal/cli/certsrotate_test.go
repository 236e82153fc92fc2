package cli

import (
	"bytes"
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

func TestHowFarEachServerIsIsShown(t *testing.T) {
	var out bytes.Buffer
	err := printRotation(&out, control.Rotation{State: rotation.State{Number: 1, Stage: rotation.Overlapping, Hurry: true}, Waits: []string{"server-1 goes over to the stage"}, Servers: []control.RotationServer{
		{Name: "server-0", Stage: "overlapping", Ready: true, There: true, Leader: true}, {Name: "server-1", Stage: "trusting", Ready: true, Turn: true},
		{Name: "server-2", Error: "no route"}, {Name: "server-3", Stage: "trusting", Ready: true}, {Name: "server-4", Stage: "trusting"},
	}})
	const want = `SERVER    STAGE        IS
server-0  overlapping  there, leads
server-1  trusting     goes over
server-2  -            does not answer: no route
server-3  trusting     waits for its turn
server-4  trusting     its control plane starts
`
	if err != nil || !bytes.Contains(out.Bytes(), []byte(want)) || !bytes.Contains(out.Bytes(), []byte("waits: server-1 goes over")) {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	if err := printRotation(&out, control.Rotation{}); err != nil || bytes.Contains(out.Bytes(), []byte("SERVER")) {
		t.Errorf("of a single one: %v\n%s", err, out.String())
	}
}
