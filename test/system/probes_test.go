//go:build system

package system

import (
	"strings"
	"testing"
)

func TestReadinessDecidesWhoGetsRequests(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "readiness")
	s.apply(t, "probes.yaml")
	s.client(t)
	s.ready(t, "ready")
	ip := s.kubectl(t, "get", "pod", "ready", "-o", "jsonpath={.status.podIP}")
	endpoint := []string{"get", "endpointslices", "-l", "kubernetes.io/service-name=probed", "-o", "jsonpath={.items[*].endpoints[*].conditions.ready}"}
	s.untilOutput(t, limit, "the service to have the pod", is("true"), endpoint...)
	s.sh(t, "client", "/bin/wget -q -O - --post-data '' 'http://"+ip+":8080/healthz?ok=false'")
	s.untilOutput(t, limit, "the service to leave the pod out", is("false"), endpoint...)
	// Nobody else is there, so requests are refused.
	s.untilOutput(t, limit, "requests to be refused", is("refused"),
		"exec", "client", "--", "sh", "-c", "/bin/wget -q -T 5 -O - http://probed/ 2>/dev/null || echo refused")
	s.sh(t, "client", "/bin/wget -q -O - --post-data '' 'http://"+ip+":8080/healthz?ok=true'")
	s.untilOutput(t, limit, "the service to have the pod again", is("true"), endpoint...)
	s.untilOutput(t, limit, "requests to be answered", is("ready 1"), "exec", "client", "--", "wget", "-q", "-T", "5", "-O", "-", "http://probed/")
	if n := s.kubectl(t, "get", "pod", "ready", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); n != "0" {
		t.Errorf("it was restarted %s times", n)
	}
}

func TestLivenessRestartsWhatHangs(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "liveness")
	s.apply(t, "probes.yaml")
	s.client(t)
	s.ready(t, "alive")
	before := s.kubectl(t, "get", "pod", "alive", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
	ip := s.kubectl(t, "get", "pod", "alive", "-o", "jsonpath={.status.podIP}")
	s.sh(t, "client", "/bin/wget -q -O - --post-data '' 'http://"+ip+":8080/healthz?ok=false'")
	// More than once where the machine is so busy that the new one does not answer in time either.
	s.untilOutput(t, limit, "the container to be restarted and ready", func(out string) bool { return strings.HasSuffix(out, " true") && !strings.HasPrefix(out, before+" ") },
		"get", "pod", "alive", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")
	if out := s.kubectl(t, "get", "events", "--field-selector=reason=Unhealthy", "-o", "name"); out == "" {
		t.Error("no event tells why")
	}
}
