//go:build system

package system

import (
	"strings"
	"testing"
)

func TestAJobRunsToItsEnd(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "job")
	s.apply(t, "job.yaml")
	s.kubectl(t, "wait", "--for=condition=complete", "job/sum", "--timeout=4m")
	logs := s.kubectl(t, "logs", "-l", "job-name=sum", "--tail=-1")
	for _, want := range []string{"piece 0 is done", "piece 1 is done", "piece 2 is done"} {
		if strings.Count(logs, want) != 1 {
			t.Errorf("%q is not in the logs once:\n%s", want, logs)
		}
	}
}

func TestACronJobRunsByItselfAndByHand(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "cron")
	s.apply(t, "cronjob.yaml")
	s.kubectl(t, "create", "job", "by-hand", "--from=cronjob/tick")
	s.kubectl(t, "wait", "--for=condition=complete", "job/by-hand", "--timeout=4m")
	if out := s.kubectl(t, "logs", "job/by-hand"); out != "tick\n" {
		t.Errorf("the job by hand wrote %q", out)
	}
	// The one by hand counts as the cron job's too, so look for another.
	s.untilOutput(t, limit, "the job of the next minute to succeed", contains("1"),
		"get", "jobs", "-o", `jsonpath={.items[?(@.metadata.name!="by-hand")].status.succeeded}`)
}

func TestADaemonSetRunsOnTheNode(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "daemonset")
	s.apply(t, "daemonset.yaml")
	s.rolledOut(t, "daemonset/agent")
	s.untilOutput(t, limit, "its log", is("agent of server-0"), "logs", "daemonset/agent")
	// It sees the node's files, not those of the machine the sandbox is on.
	if out := s.kubectl(t, "exec", "daemonset/agent", "--", "cat", "/node/etc/hosts"); !strings.Contains(out, "server-0") {
		t.Errorf("/etc/hosts of the node: %q", out)
	}
}

// What k1s brings itself is as Kubernetes wants it.
func TestPackagedWorkloadsAreRolledOut(t *testing.T) {
	t.Parallel()
	c := shared(t)
	out := c.kubectl(t, "-n", "kube-system", "rollout", "status", "deployments,statefulsets,daemonsets", "--timeout=4m")
	for _, want := range []string{"coredns", "metrics-server", "local-path-provisioner"} {
		if !strings.Contains(out, `"`+want) {
			t.Errorf("%s is not among what was rolled out:\n%s", want, out)
		}
	}
	c.untilOutput(t, limit, "every API service to be available", func(out string) bool {
		return strings.Contains(out, "v1beta1.metrics.k8s.io True") && !strings.Contains(out, "False")
	}, "get", "apiservices", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Available")].status}{"\n"}{end}`)
}
