package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/errs"
)

func TestADSNShowsItsServersAndNothingElse(t *testing.T) {
	for dsn, want := range map[string]struct {
		shown    string
		engine   Engine
		password bool
	}{
		"sqlite":                        {"sqlite", SQLite, false},
		"etcd":                          {"etcd", EmbeddedEtcd, false},
		"https://a:2379,https://b:2379": {"https://a:2379,https://b:2379", ExternalEtcd, false},
		"postgres://k1s@h:5432/db":      {"postgres://[redacted]@h:5432/db", Postgres, false},
		"postgres://k1s:hunter2@h/db":   {"postgres://[redacted]@h/db", Postgres, true},
		"postgresql://h/db?password=hunter2&sslmode=disable":    {"postgresql://[redacted]@h/db", Postgres, true},
		"postgres://h/db?sslmode=disable":                       {"postgres://[redacted]@h/db", Postgres, false},
		"postgres://k1s:hunter2/@h/db":                          {"postgres://[redacted]", Postgres, true},
		"postgres://k1s:hunt,er2@h/db":                          {"postgres://[redacted]", Postgres, true},
		"mysql://k1s:hunter2@tcp(h:3306)/db":                    {"mysql://[redacted]@tcp(h:3306)/db", MySQL, true},
		"mysql://k1s:hunter2/@:@tcp(h:3306)/db?tls=skip-verify": {"mysql://[redacted]@tcp(h:3306)/db", MySQL, true},
		"mysql://root@unix(/run/mysqld.sock)/":                  {"mysql://[redacted]@unix(/run/mysqld.sock)/", MySQL, false},
		"mysql://k1s:hunter2@h":                                 {"mysql://[redacted]", MySQL, true},
		"nats://k1s:hunter2@a:4222,nats://b:4222?bucket=x":      {"nats://[redacted]@a:4222,nats://[redacted]@b:4222", NATS, true},
		"nats://hunter2token@a:4222":                            {"nats://[redacted]@a:4222", NATS, true},
		"redis://k1s:hunter2@h":                                 {"redis://[redacted]@h", SQLite, true},
		"k1s:hunter2@tcp(h)/db":                                 {"[redacted]", SQLite, true},
	} {
		d := DSN(dsn)
		if d.String() != want.shown || d.Engine() != want.engine || d.HasPassword() != want.password {
			t.Errorf("%s: %q, %s, password %v; want %+v", dsn, d.String(), d.Engine(), d.HasPassword(), want)
		}
		if d.Reveal() != dsn {
			t.Errorf("%s: reveals %q", dsn, d.Reveal())
		}
		var out strings.Builder
		s := struct{ Endpoint DSN }{d}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			fmt.Fprintf(&out, verb+verb, s, d)
		}
		asJSON, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		asYAML, err := yaml.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "dsn", d, "all", s)
		if err := d.Check(); err != nil {
			hint, _ := errs.HintOf(err)
			out.WriteString(err.Error() + hint)
		}
		for _, leak := range []string{"hunt", "68756e74"} {
			if all := out.String() + string(asJSON) + string(asYAML); strings.Contains(all, leak) {
				t.Errorf("%q is in %s", leak, all)
			}
		}
	}
}

func TestAPasswordOnTheCommandLineIsRefused(t *testing.T) {
	const at = "spec.datastore.endpoint"
	c := Default()
	for dsn, want := range map[DSN]int{"postgres://k1s:hunter2@h/db": 1, "postgres://k1s@h/db": 0} {
		c.Spec.Datastore.Endpoint = dsn
		problems := Validate(c, Known{Origins: Origins{at: {Kind: FromFlag, Name: "--datastore-endpoint"}}})
		if len(problems) != want || want == 1 && (problems[0].Path != at || strings.Contains(fmt.Sprint(problems), "hunter2")) {
			t.Errorf("%s: %v", dsn, problems)
		}
		if got := Validate(c, Known{Origins: Origins{at: {Kind: FromFile, Name: "config.yaml", Line: 1}}}); len(got) > 0 {
			t.Errorf("%s in a file: %v", dsn, got)
		}
	}
}
