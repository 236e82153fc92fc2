package upgrade

import (
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func program(version, kubernetes string) Program {
	return Program{Version: version, Kubernetes: kubernetes, Payload: "p-" + version, Platform: "linux/amd64", Digest: version + kubernetes}
}

func TestWhatANodeMayGoOverTo(t *testing.T) {
	from := program("v0.2.0", "v1.36.3")
	server := Around{Server: true}
	with := func(p Program, change func(*Program)) Program {
		change(&p)
		return p
	}
	for name, c := range map[string]struct {
		to     Program
		around Around
		older  bool
		want   string // "" is allowed
		hint   string
	}{
		"a newer one":          {to: program("v0.3.0", "v1.36.3"), around: server},
		"a newer patch":        {to: program("v0.2.0", "v1.36.4"), around: server},
		"a newer minor":        {to: program("v0.3.0", "v1.37.0"), around: server},
		"another build":        {to: program("v0.2.0", "v1.36.3"), around: server},
		"two minors":           {to: program("v0.3.0", "v1.38.0"), around: server, want: "one minor version at a time", hint: "v1.37 first"},
		"another major":        {to: program("v0.3.0", "v2.0.0"), around: server, want: "one minor version at a time"},
		"an older k1s":         {to: program("v0.1.9", "v1.36.3"), around: server, want: "older", hint: "--allow-older"},
		"a candidate of it":    {to: program("v0.2.0-rc.1", "v1.36.3"), around: server, want: "older"},
		"an older one, wanted": {to: program("v0.1.9", "v1.36.1"), around: server, older: true},
		"an older patch":       {to: program("v0.3.0", "v1.36.2"), around: server, want: "older"},
		"an older minor":       {to: program("v0.1.0", "v1.35.9"), around: server, older: true, want: "may not be able to read", hint: "backup"},
		"an agent's older":     {to: program("v0.1.0", "v1.35.9"), older: true},
		"an agent's newer":     {to: program("v0.3.0", "v1.37.0"), around: Around{API: "v1.37.1"}},
		"newer than servers":   {to: program("v0.3.0", "v1.37.0"), around: Around{API: "v1.36.3"}, want: "a kubelet must not be newer", hint: "servers first"},
		"newer patch than it":  {to: program("v0.3.0", "v1.36.9"), around: Around{API: "v1.36.3"}},
		"another machine":      {to: with(program("v0.3.0", "v1.36.3"), func(p *Program) { p.Platform = "linux/arm64" }), around: server, want: "built for linux/arm64"},
		"without programs":     {to: with(program("v0.3.0", "v1.36.3"), func(p *Program) { p.Payload = "" }), around: server, want: "carries no programs"},
		"without a version":    {to: program("devel", "v1.36.3"), around: server, want: `"devel"`},
		"servers apart": {
			to: program("v0.3.0", "v1.37.0"), around: Around{Server: true, Servers: map[string]string{"b": "v1.35.1"}, Kubelets: map[string]string{"b": "v1.35.1"}},
			want: "that of server b is v1.35.1", hint: "all servers",
		},
		"servers that follow":  {to: program("v0.3.0", "v1.37.0"), around: Around{Server: true, Servers: map[string]string{"b": "v1.36.1"}, Kubelets: map[string]string{"b": "v1.36.1", "c": "v1.34.0"}}},
		"a server that follow": {to: program("v0.2.1", "v1.36.4"), around: Around{Server: true, Servers: map[string]string{"b": "v1.37.1"}, Kubelets: map[string]string{"b": "v1.37.1"}}},
		"an agent far behind":  {to: program("v0.3.0", "v1.37.0"), around: Around{Server: true, Kubelets: map[string]string{"c": "v1.33.2"}}, want: "kubelet of node c is v1.33.2", hint: "that node first"},
		"an agent ahead":       {to: program("v0.3.0", "v1.36.4"), around: Around{Server: true, Kubelets: map[string]string{"c": "v1.37.0"}}, want: "must not be newer"},
		"what cannot be read":  {to: program("v0.3.0", "v1.37.0"), around: Around{Server: true, Kubelets: map[string]string{"c": ""}}},
	} {
		err := Check(from, c.to, c.around, c.older)
		hint, _ := errs.HintOf(err)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) || !strings.Contains(hint, c.hint)):
			t.Errorf("%s: %v, %q, want %q, %q", name, err, hint, c.want, c.hint)
		}
	}
}
