package daemon

import (
	"cmp"
	"net/url"
	"strings"
)

// proxy reads the proxy configuration of the environment, in either spelling.
func proxy(getenv func(string) string) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v := cmp.Or(getenv(name), getenv(strings.ToLower(name))); v != "" {
			out[name] = v
		}
	}
	if out["HTTP_PROXY"] == "" && out["HTTPS_PROXY"] == "" {
		return nil
	}
	return out
}

// withoutPasswords is a proxy configuration that may be shown.
func withoutPasswords(proxy map[string]string) map[string]string {
	if proxy == nil {
		return nil
	}
	out := map[string]string{}
	for name, value := range proxy {
		out[name] = value
		if !strings.Contains(value, "@") {
			continue
		}
		full := value
		if !strings.Contains(full, "://") { // "user:word@proxy:3128" is understood as well
			full = "http://" + full
		}
		u, err := url.Parse(full)
		if err != nil || u.User == nil {
			out[name] = "[redacted]"
			continue
		}
		if _, has := u.User.Password(); has {
			u.User = url.UserPassword(u.User.Username(), "redacted")
		} else { // a token
			u.User = url.User("redacted")
		}
		out[name] = u.String()
	}
	return out
}
