package cluster

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestWhatIsShownHasNoSecrets(t *testing.T) {
	const conf = "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  join: {token: k1s1.agent.hush-hush}\n  datastore:\n    endpoint: postgres://me:hush-hush@db.example/k1s\n    keyFile: /etc/k1s/hash.key\n  isolation: none\n"
	st := Status{Spec: Spec{
		Name: "dev", Env: []Env{{Name: "HTTPS_PROXY", Value: "http://me:hush-hush@proxy.example:3128"}, {Name: "DB_PASSWORD", Value: "hush-hush"}, {Name: "A", Value: "shown"}},
		Nodes: []NodeSpec{{Role: Server, Config: conf}}, Like: []NodeSpec{{Role: Agent, Config: conf}},
		Files: map[string][]byte{"registries.yaml": []byte("hush-hush")},
	}}
	b, err := json.Marshal(st.Public())
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	if strings.Contains(got, "hush") {
		t.Errorf("it tells a secret: %s", got)
	}
	for _, want := range []string{"http://me:[redacted]@proxy.example:3128", "shown", "isolation: none", "/etc/k1s/hash.key", "db.example"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	if st.Spec.Nodes[0].Config != conf || st.Spec.Env[1].Value != "hush-hush" {
		t.Error("the record was changed")
	}
	if got := PublicConfig("a: b # as it was\n"); got != "a: b # as it was\n" {
		t.Errorf("a file without secrets became %q", got)
	}
	if got := PublicConfig("a: [b"); strings.Contains(got, "b") {
		t.Errorf("a file that is none became %q", got)
	}
}

func TestSecretsAreTakenOutOfLogs(t *testing.T) {
	for in, want := range map[string]string{
		"pull with reader:correct-horse failed":                                             "pull with reader:[redacted] failed",
		"joined with k1s1.agent.abcdefghijklmnopqrstuvwxyz.0123456789":                      "joined with k1s1.[redacted]",
		"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI\n-----END EC PRIVATE KEY-----\nthe rest": "[redacted]\nthe rest",
		"bearer eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2ln":                              "bearer [redacted]",
		"Authorization: Bearer abc123def":                                                   "Authorization: Bearer [redacted]",
		"dial postgres://me:pw@db.example:5432/x":                                           "dial postgres://me:[redacted]@db.example:5432/x",
		"      DB_PASSWORD:  hunter22\n      secretName: web-tls":                           "      DB_PASSWORD:  [redacted]\n      secretName: web-tls",
		`{"password":"hunter22"}`:                                                           `{"password":[redacted]}`,
		"started containerd at https://10.88.0.10:6443 in 3.2s, 5:6@7":                      "started containerd at https://10.88.0.10:6443 in 3.2s, 5:6@7",
	} {
		if got := string(Redact([]byte(in), []string{"correct-horse", "a"})); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
