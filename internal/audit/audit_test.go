package audit

import (
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

const header = "apiVersion: audit.k8s.io/v1\nkind: Policy\n"

func TestAPolicyIsAccepted(t *testing.T) {
	for _, content := range []string{
		header + "rules: [{level: Metadata}]",
		header + `metadata: {name: mine, labels: {a: b}}
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  - {level: None, users: [a], userGroups: [b], verbs: [get], nonResourceURLs: ["*", /healthz*, /version]}
  - level: RequestResponse
    namespaces: [default, ""]
    omitStages: [Panic]
    omitManagedFields: false
    resources: [{group: "", resources: [pods, pods/log, "*/scale"], resourceNames: [a]}, {group: apps}]
`,
		`{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Request"}]}`,
	} {
		if err := Check("policy.yaml", []byte(content)); err != nil {
			t.Errorf("%s\nis refused: %v", content, err)
		}
	}
}

func TestWhatAnAPIServerWouldRefuseIsToldWithItsLine(t *testing.T) {
	for content, want := range map[string]string{
		"":                                  "policy.yaml: apiVersion is \"\"",
		header:                              "policy.yaml: it has no rules",
		header + "rules: [{level: Meta}]":   `policy.yaml:3: rule 1: level is "Meta", and must be one of None, Metadata`,
		header + "rules:\n- level: None\n-": `policy.yaml:5: rule 2: level is ""`,
		header + "rules:\n- level: None\n  verb: [get]":                              `policy.yaml:5: unknown key "verb"`,
		header + "rules: {level: None}":                                              "policy.yaml:3: cannot unmarshal !!map",
		header + "rules: [{level: None":                                              ": did not find expected ',' or '}'",
		"apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]":     `apiVersion is "audit.k8s.io/v1beta1"`,
		header + "omitStages: [Received]\nrules: [{level: None}]":                    `omitStages: "Received" is none of RequestReceived`,
		header + "rules: [{level: None, omitStages: [x]}]":                           `rule 1: omitStages: "x"`,
		header + "rules: [{level: None, nonResourceURLs: [healthz]}]":                `"healthz" must begin with /`,
		header + "rules: [{level: None, nonResourceURLs: [/a*b]}]":                   `"/a*b" must begin with / and may`,
		header + "rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]":    "at once",
		header + "rules: [{level: None, resources: [{group: apps/v1}]}]":             `group "apps/v1" must be without a version`,
		header + "rules: [{level: None, resources: [{resourceNames: [a]}]}]":         "resourceNames need resources",
		header + "rules: [{level: None}]\n---\n" + header + "rules: [{level: None}]": "only one YAML document",
	} {
		err := Check("policy.yaml", []byte(content))
		if err == nil || !strings.Contains(err.Error(), want) || !errs.Is(err, errs.Invalid) {
			t.Errorf("%s\ngives %v\nwant %s", content, err, want)
			continue
		}
		if hint, _ := errs.HintOf(err); hint == "" {
			t.Errorf("%s: no hint", content)
		}
	}
}
