//go:build system

package system

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// auditEvent is what the tests read of an event.
type auditEvent struct {
	Level, Stage, Verb string
	User               struct{ Username string }
	ObjectRef          struct{ Resource, Namespace, Name string }
	RequestObject      json.RawMessage
	ResponseObject     json.RawMessage
}

func (e auditEvent) String() string {
	return fmt.Sprintf("%s %s %s/%s by %s (%s)", e.Verb, e.ObjectRef.Resource, e.ObjectRef.Namespace, e.ObjectRef.Name, e.User.Username, e.Stage)
}

// administrator is who kubectl is with the kubeconfig k1s writes.
const administrator = "kubernetes-admin"

// did finds what the administrator did to an object.
func did(verb, resource, name string) func(auditEvent) bool {
	return func(e auditEvent) bool {
		return e.User.Username == administrator && e.Stage == "ResponseComplete" && e.Verb == verb &&
			e.ObjectRef.Resource == resource && e.ObjectRef.Name == name
	}
}

// auditLog reads the log, the last line of which may not be complete yet.
func (c *Cluster) auditLog(t *testing.T) (raw []byte, events []auditEvent) {
	t.Helper()
	raw, err := os.ReadFile(c.disk("var/lib/k1s/log/audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(raw) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("not JSON: %v: %s", err, line)
		}
		events = append(events, e)
	}
	return raw, events
}

// untilAudited waits for an event: the log is written behind the answers.
func (c *Cluster) untilAudited(t *testing.T, what string, is func(auditEvent) bool) auditEvent {
	t.Helper()
	var found auditEvent
	eventually(t, limit, "the audit log to tell "+what, func(context.Context) error {
		_, events := c.auditLog(t)
		i := slices.IndexFunc(events, is)
		if i < 0 {
			return fmt.Errorf("it has %d events, the last: %v", len(events), events[max(0, len(events)-5):])
		}
		found = events[i]
		return nil
	})
	return found
}

func TestTheAuditLogTellsWhoDidWhatWithoutBodies(t *testing.T) {
	t.Parallel()
	c := created(t, "audit", "--set", "spec.noWorker=true", "--set", "spec.audit.enabled=true")
	const word = "nobody-may-read-this"
	c.kubectl(t, "create", "secret", "generic", "password", "--from-literal=word="+word)
	if out := c.kubectl(t, "get", "secret", "password", "-o", "jsonpath={.data.word}"); out != base64.StdEncoding.EncodeToString([]byte(word)) {
		t.Fatalf("the secret is %q", out)
	}
	c.kubectl(t, "delete", "secret", "password")
	for _, verb := range []string{"create", "get", "delete"} {
		c.untilAudited(t, verb+" of the secret", did(verb, "secrets", "password"))
	}
	raw, events := c.auditLog(t)
	for _, secret := range []string{word, base64.StdEncoding.EncodeToString([]byte(word))} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("the audit log has the secret, as %s", secret)
		}
	}
	for _, e := range events {
		if e.Level != "Metadata" || e.RequestObject != nil || e.ResponseObject != nil {
			t.Errorf("level %s, or a body: %v", e.Level, e)
		}
	}
	st, err := os.Stat(c.disk("var/lib/k1s/log/audit.log"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the audit log: %v %v", st.Mode(), err)
	}

	t.Run("a policy of the user's own is taken up by the next daemon", func(t *testing.T) {
		c.put(t, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n"+
			"- {level: RequestResponse, verbs: [create], resources: [{group: '', resources: [configmaps]}]}\n- level: None\n"), "/etc/k1s/audit-policy.yaml")
		c.put(t, []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  audit: {policyFile: /etc/k1s/audit-policy.yaml}\n"), "/etc/k1s/config.d/50-audit.yaml")
		// A killed daemon leaves the API server running; the next one must not adopt it as it is.
		was := c.running(t)
		kill(t, was.PID)
		c.otherDaemon(t, was)
		c.kubectl(t, "create", "secret", "generic", "unseen", "--from-literal=word="+word)
		c.kubectl(t, "create", "configmap", "seen", "--from-literal=colour=blue")
		e := c.untilAudited(t, "the creation of the config map", did("create", "configmaps", "seen"))
		if !strings.Contains(string(e.RequestObject), `"colour":"blue"`) || !strings.Contains(string(e.ResponseObject), `"uid"`) {
			t.Errorf("bodies of %v: %s and %s", e, e.RequestObject, e.ResponseObject)
		}
		if _, events := c.auditLog(t); slices.ContainsFunc(events, did("create", "secrets", "unseen")) {
			t.Error("what the policy leaves out is in the log")
		}
	})
}

func TestAnAuditPolicyThatCannotBeUsedIsToldWithItsLine(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	policy := filepath.Join(b.dir, "etc/audit-policy.yaml")
	b.configured(t, "audit: {enabled: true, policyFile: "+policy+"}")
	b.fails(t).wants(t, 2, "error: ", policy, "no such file", "spec.audit.policyFile", "hint:  ")
	for content, want := range map[string]string{
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n- level: Everything\n": ":5: rule 2: level is \"Everything\", and must be one of None, Metadata",
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: None\n  user: [a]\n":             ":5: unknown key \"user\"",
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [":                                         ": did not find expected",
		"": "it has no rules",
	} {
		if err := os.WriteFile(policy, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		b.fails(t).wants(t, 2, "error: ", policy, want, "hint:  ")
	}
	if _, err := os.Stat(b.data() + "/db"); err == nil {
		t.Error("a database was made")
	}
}
