package kine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirupsen/logrus"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
)

func TestAnErrorOfADatabaseBecomesAProblemWithARemedy(t *testing.T) {
	for name, c := range map[string]struct {
		dsn  string
		err  error
		code health.Code
		says string
	}{
		"wrong password":     {"postgres://k1s:hunter2@h:5432/k1s", &pgconn.PgError{Code: "28P01", Message: "password authentication failed"}, health.DatabaseRefuses, "does not let this user in"},
		"no right to create": {"postgres://k1s:hunter2@h:5432/k1s", &pgconn.PgError{Code: "42501"}, health.DatabaseRefuses, "make tables"},
		"a replica":          {"postgres://k1s:hunter2@h:5432/k1s", &pgconn.PgError{Code: "25006"}, health.DatabaseRefuses, "cannot be written"},
		"shutting down":      {"postgres://k1s:hunter2@h:5432/k1s", &pgconn.PgError{Code: "57P03", Message: "the database system is starting up"}, health.DatabaseAway, "the database at h:5432 does not answer"},
		"mysql password":     {"mysql://k1s:hunter2@tcp(h:3306)/k1s", &mysql.MySQLError{Number: 1045}, health.DatabaseRefuses, "does not let this user in"},
		"mysql rights":       {"mysql://k1s:hunter2@tcp(h:3306)/k1s", &mysql.MySQLError{Number: 1142}, health.DatabaseRefuses, "make tables"},
		"nats user":          {"nats://k1s:hunter2@h:4222", nats.ErrAuthorization, health.DatabaseRefuses, "does not let this user in"},
		"nats in memory":     {"nats://k1s:hunter2@h:4222", jetstream.ErrJetStreamNotEnabled, health.DatabaseRefuses, "keeps nothing"},
		"tells the password": {"nats://k1s:hunter2@h:4222", errors.New("no route to nats://k1s:hunter2@h:4222, hunter2"), health.DatabaseAway, "no route to nats://[redacted]h:4222, [redacted]"},
	} {
		t.Run(name, func(t *testing.T) {
			s := settings{}
			s.Endpoint = c.dsn
			s.Scheme, s.DataSourceName, _ = strings.Cut(c.dsn, "://")
			s.secrets, s.where = secretsOf(s.Scheme, s.DataSourceName)
			p := s.problem(s.explainExternal(c.err))
			if p.Code != c.code || !strings.Contains(p.Text, c.says) || p.Remedy == "" || p.Component != "kine" {
				t.Errorf("%+v", p)
			}
			if strings.Contains(p.Text+p.Remedy, "hunter2") {
				t.Errorf("the password is in %+v", p)
			}
		})
	}
}

func TestTheUserOfADSNIsKeptOutOfTheLog(t *testing.T) {
	for dsn, where := range map[string]string{
		"postgres://k1s:hunter%2F2@h:5432/db?x=a@b": "h:5432",
		"mysql://k1s:hunter/2@tcp(h:3306)/db":       "tcp(h:3306)",
		"nats://k1s:hunter2@h:4222":                 "h:4222",
		"nats://h:4222?bucket=a":                    "h:4222",
	} {
		s := settings{}
		s.Scheme, s.DataSourceName, _ = strings.Cut(dsn, "://")
		s.secrets, s.where = secretsOf(s.Scheme, s.DataSourceName)
		e := &logrus.Entry{Message: "connecting to " + dsn + " with hunter/2 and hunter2"}
		if err := s.Fire(e); err != nil {
			t.Fatal(err)
		}
		if s.where != where || strings.Contains(e.Message, "k1s:") {
			t.Errorf("%s: at %s, logs %q", dsn, s.where, e.Message)
		}
	}
}

func TestADatabaseThatIsAwayIsReportedAndWaitedFor(t *testing.T) {
	for _, dsn := range []string{"postgres://k1s:hunter2@127.0.0.1:1/k1s", "mysql://k1s:hunter2@tcp(127.0.0.1:1)/k1s", "nats://k1s:hunter2@127.0.0.1:1"} {
		scheme, _, _ := strings.Cut(dsn, "://")
		t.Run(scheme, func(t *testing.T) {
			dir := t.TempDir()
			file, status := filepath.Join(dir, "dsn"), filepath.Join(dir, "status.json")
			if err := os.WriteFile(file, []byte(dsn+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- Run(ctx, []string{"--listen=unix://" + dir + "/kine.sock", "--endpoint-file=" + file, "--status-file=" + status})
			}()
			var raw []byte
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
				var err error
				if raw, err = os.ReadFile(status); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("nothing is reported within a minute")
				}
			}
			var report struct{ Problems []health.Problem }
			if err := json.Unmarshal(raw, &report); err != nil {
				t.Fatal(err)
			}
			if len(report.Problems) != 1 || report.Problems[0].Code != health.DatabaseAway || strings.Contains(string(raw), "hunter2") {
				t.Errorf("%s", raw)
			}
			select {
			case err := <-done:
				t.Errorf("it ended with %v", err)
			default:
			}
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("when stopped: %v", err)
			}
		})
	}
}

func TestKineTakesADSNOrTheFileOfOne(t *testing.T) {
	for _, args := range [][]string{{}, {"--endpoint=sqlite:///x", "--endpoint-file=/y"}} {
		if _, err := parse(append(args, "--listen=unix:///s")); !errs.Is(err, errs.Usage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}
