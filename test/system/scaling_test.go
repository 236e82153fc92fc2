//go:build system

package system

import (
	"strings"
	"testing"
	"time"
)

func TestTheHorizontalPodAutoscalerScalesUpOnCPU(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "scaling")
	s.apply(t, "busy.yaml")
	s.client(t)
	s.rolledOut(t, "deployment/busy")
	// One request after the other keeps the one replica busy; the load ends with the namespace.
	s.sh(t, "client", "(while :; do /bin/wget -q -T 30 -O /dev/null 'http://busy/cpu?ms=500'; done) >/dev/null 2>&1 &")
	s.untilOutput(t, 5*time.Minute, "a second replica to be ready", is("2"), "get", "deployment", "busy", "-o", "jsonpath={.status.readyReplicas}")
	if out := s.kubectl(t, "describe", "hpa", "busy"); !strings.Contains(out, "SuccessfulRescale") {
		t.Errorf("it was not the autoscaler:\n%s", out)
	}
}

func TestMemoryBeyondTheLimitIsReportedAsOOMKilledAndCPUTimeIsLimited(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "limits")
	s.apply(t, "limits.yaml")
	s.untilOutput(t, limit, "the pod to be killed", is("OOMKilled 137"),
		"get", "pod", "greedy", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}")
	s.untilOutput(t, limit, "the pod that looks at its limit to have ended", is("Succeeded"), "get", "pod", "modest", "-o", "jsonpath={.status.phase}")
	if out := strings.TrimSpace(s.kubectl(t, "logs", "modest")); out != "25000" && out != "25000 100000" {
		t.Errorf("a pod with 250m of CPU sees the limit %q", out)
	}
}
