package registries

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"k1s.io/k1s/internal/errs"
)

var update = flag.Bool("update", false, "write golden files")

func TestRenderedFilesMatchGolden(t *testing.T) {
	content, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse("full.yaml", content)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		golden         string
		disableDefault bool
	}{{"full.golden", false}, {"full-no-default.golden", true}} {
		var b strings.Builder
		hosts := render(t, f, tc.disableDefault)
		for _, name := range slices.Sorted(maps.Keys(hosts)) {
			fmt.Fprintf(&b, "== %s\n%s\n", name, hosts[name])
			wellFormed(t, hosts[name])
		}
		fmt.Fprintf(&b, "== auth\n%s", AuthTOML(f))
		wellFormed(t, AuthTOML(f))
		golden(t, tc.golden, b.String())
	}
}

func render(t *testing.T, r Registries, disableDefault bool) map[string]string {
	t.Helper()
	hosts, err := Hosts(r, disableDefault)
	if err != nil {
		t.Fatal(err)
	}
	return hosts
}

func TestWhatCannotBeRenderedIsAnErrorEvenUnparsed(t *testing.T) {
	for want, m := range map[string]Mirror{
		"can only": {Endpoints: []string{"a"}, Rewrites: map[string]string{"^x$": "y"}},
		"scheme":   {Endpoints: []string{"ftp://a"}},
	} {
		_, err := Hosts(Registries{Mirrors: map[string]Mirror{"r": m}}, false)
		if err == nil || !strings.Contains(err.Error(), want) || !errs.Is(err, errs.Invalid) {
			t.Errorf("%v gives %v", m, err)
		}
	}
}

func wellFormed(t *testing.T, text string) {
	t.Helper()
	var v map[string]any
	if err := toml.Unmarshal([]byte(text), &v); err != nil {
		t.Errorf("not TOML: %v\n%s", err, text)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", name, got, want)
	}
}

func TestNothingIsRenderedFromNothing(t *testing.T) {
	for _, content := range []string{"", "# only a comment\n", "mirrors: {}\n"} {
		f, err := Parse("registries.yaml", []byte(content))
		if err != nil {
			t.Fatalf("%q: %v", content, err)
		}
		if got := render(t, f, false); len(got) != 0 {
			t.Errorf("%q renders %v", content, got)
		}
		if got := AuthTOML(f); got != "" {
			t.Errorf("%q renders credentials %q", content, got)
		}
	}
}

func TestDisabledDefaultLeavesUnnamedRegistriesNowhereToPullFrom(t *testing.T) {
	got := render(t, Registries{}, true)
	if len(got) != 1 || !strings.Contains(got["_default/hosts.toml"], nowhere) {
		t.Errorf("got %v", got)
	}
}

func TestARegistryNamedWithoutEndpointMayStillBeAskedItself(t *testing.T) {
	f, err := Parse("r", []byte("mirrors:\n  ghcr.io: {}\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := render(t, f, true)
	if strings.Contains(got["ghcr.io/hosts.toml"], nowhere) || !strings.Contains(got["_default/hosts.toml"], nowhere) {
		t.Errorf("got %v", got)
	}
}

func TestBadFilesAreRefusedWithFileAndLine(t *testing.T) {
	for name, tc := range map[string]struct{ content, want string }{
		"unknown key":           {"mirrors:\n  docker.io:\n    endpoints: [a]\n", `registries.yaml:3: unknown key "endpoints"`},
		"unknown top key":       {"mirror: {}\n", `registries.yaml:1: unknown key "mirror"`},
		"wrong type":            {"mirrors:\n  docker.io:\n    endpoint: {a: b}\n", "registries.yaml:3: cannot unmarshal"},
		"no YAML":               {"mirrors:\n\t- x\n", "registries.yaml:2: "},
		"two documents":         {"mirrors: {}\n---\nmirrors: {}\n", "only one YAML document"},
		"mirror with scheme":    {"mirrors:\n  https://docker.io:\n    endpoint: [a.example.com]\n", "registries.yaml:2: mirrors.https://docker.io"},
		"bad scheme":            {"mirrors:\n  a.example.com:\n    endpoint: [\"ftp://b\"]\n", "registries.yaml:3: mirrors.a.example.com.endpoint: endpoint \"ftp://b\": the scheme"},
		"password in URL":       {"mirrors:\n  a.example.com:\n    endpoint: [\"https://u:geheim@b\"]\n", "configs.b.auth"},
		"query":                 {"mirrors:\n  a.example.com:\n    endpoint: [\"https://b/?x=1\"]\n", "query"},
		"impossible rewrite":    {"mirrors:\n  a.example.com:\n    rewrite: {\"^library/(.*)\": \"x/$1\"}\n", "registries.yaml:3: mirrors.a.example.com.rewrite: containerd 2.3 can only"},
		"two rewrites":          {"mirrors:\n  a.example.com:\n    rewrite: {\"^(.*)$\": \"x/$1\", \"(.*)\": \"y/$1\"}\n", "several rewrites"},
		"config with path":      {"configs:\n  a.example.com/v2: {}\n", "registries.yaml:2: configs.a.example.com/v2"},
		"password without user": {"configs:\n  a.example.com:\n    auth: {password: geheim}\n", "registries.yaml:3: configs.a.example.com.auth: a password needs a username"},
		"user and token":        {"configs:\n  a.example.com:\n    auth: {username: u, identity_token: geheim}\n", "either"},
		"half a key pair":       {"configs:\n  a.example.com:\n    tls: {cert_file: /a}\n", "registries.yaml:3: configs.a.example.com.tls: cert_file and key_file"},
		"relative path":         {"configs:\n  a.example.com:\n    tls: {ca_file: ca.pem}\n", `"ca.pem" must be an absolute path`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("registries.yaml", []byte(tc.content))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error is %v, want one with %q", err, tc.want)
			}
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("kind is %v, want Invalid", errs.KindOf(err))
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	_, err := Parse("r", []byte("mirrors:\n  a.example.com:\n    endpoint: [\"ftp://b\", \"https://\"]\nconfigs:\n  a/b: {}\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("error is %v, want three lines", err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	f, err := Parse("r", []byte("configs:\n  a.example.com:\n    auth: {username: u, password: geheim}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(f), fmt.Sprintf("%+v", *f.Configs["a.example.com"].Auth), fmt.Sprintf("%#v", *f.Configs["a.example.com"].Auth)} {
		if strings.Contains(text, "geheim") {
			t.Errorf("shown: %s", text)
		}
	}
}

func TestAnEndpointWithoutTLSStaysWithoutIt(t *testing.T) {
	f, err := Parse("registries.yaml", []byte(`
mirrors:
  a.example: {endpoint: ["http://a.example", "https://b.example"]}
configs:
  a.example: {tls: {ca_file: /a.crt}}
  b.example: {tls: {ca_file: /b.crt}}
`))
	if err != nil {
		t.Fatal(err)
	}
	got := render(t, f, false)["a.example/hosts.toml"]
	plain, secure, ok := strings.Cut(got, `[host."https://b.example/v2"]`)
	if _, plain, _ = strings.Cut(plain, `[host."http://a.example/v2"]`); !ok || strings.Contains(plain, "ca =") || !strings.Contains(secure, `ca = "/b.crt"`) {
		t.Errorf("got\n%s", got)
	}
}
