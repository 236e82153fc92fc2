package daemon

import (
	"maps"
	"testing"
)

func TestTheProxyOfTheEnvironmentIsReadInEitherSpelling(t *testing.T) {
	for _, c := range []struct{ env, want map[string]string }{
		{nil, nil},
		{map[string]string{"NO_PROXY": "a"}, nil},
		{map[string]string{"https_proxy": "p:1", "no_proxy": "a"}, map[string]string{"HTTPS_PROXY": "p:1", "NO_PROXY": "a"}},
		{map[string]string{"HTTP_PROXY": "p:1", "http_proxy": "q:1"}, map[string]string{"HTTP_PROXY": "p:1"}},
	} {
		got := proxy(func(name string) string { return c.env[name] })
		if !maps.Equal(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%v gives %v, want %v", c.env, got, c.want)
		}
	}
}

func TestAPlanDoesNotTellThePasswordOfAProxy(t *testing.T) {
	for value, want := range map[string]string{
		"http://proxy.example:3128":            "http://proxy.example:3128",
		"proxy.example:3128":                   "proxy.example:3128",
		"http://me:word@proxy.example:3128":    "http://me:redacted@proxy.example:3128",
		"me:word@proxy.example:3128":           "http://me:redacted@proxy.example:3128",
		"http://token@proxy.example":           "http://redacted@proxy.example",
		"http://me:wo%zzrd@proxy.example:3128": "[redacted]",
	} {
		if got := withoutPasswords(map[string]string{"HTTPS_PROXY": value})["HTTPS_PROXY"]; got != want {
			t.Errorf("%s is shown as %s, want %s", value, got, want)
		}
	}
}
