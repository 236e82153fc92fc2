package kine

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
)

// A database of others may be away, or not ready for us yet, at any time. That is no reason to end: it is
// told in a file, and tried again.
const (
	tryEvery  = 2 * time.Second  // to open it
	askEvery  = 5 * time.Second  // whether it is still there
	answerFor = 10 * time.Second // it may take to answer
)

// refused is an answer of the database that will be the same until somebody changes something.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

func refuse(err error, hint, format string, args ...any) error {
	return errs.Hint(refused{fmt.Errorf(format+": %w", append(args, err)...)}, "%s", hint)
}

// checks connect to a database as kine is going to and tell in plain words what is in the way: kine itself tries
// a database that does not let it in for five minutes, and then panics.
var checks = map[string]func(context.Context, *settings) error{
	"postgres": checkPostgres, "postgresql": checkPostgres, "mysql": checkMySQL,
}

// openDatabase tries until the database is open or ctx ends. What it opens ends with lasting.
func (s *settings) openDatabase(ctx, lasting context.Context, closed *sync.WaitGroup) (server.Backend, error) {
	s.hide()
	for {
		attempt, giveUp := context.WithCancel(lasting)
		backend, err := s.tryDatabase(ctx, attempt, closed)
		if err == nil {
			context.AfterFunc(lasting, giveUp)
			return backend, s.report(nil)
		}
		giveUp()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if s.once {
			hint, _ := errs.HintOf(err)
			return nil, errs.Hint(errors.New(s.problem(err).Text), "%s", hint)
		}
		slog.Warn("waiting for the database", "err", err)
		if err := s.report(err); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(tryEvery):
		}
	}
}

func (s *settings) tryDatabase(ctx, attempt context.Context, closed *sync.WaitGroup) (server.Backend, error) {
	if check := checks[s.Scheme]; check != nil {
		ctx, cancel := context.WithTimeoutCause(ctx, answerFor, fmt.Errorf("no answer within %s", answerFor))
		defer cancel()
		if err := check(ctx, s); err != nil {
			return nil, err
		}
	}
	_, backend, err := drivers.New(attempt, closed, &s.Config)
	if err != nil {
		return nil, s.explainExternal(err)
	}
	if err := s.advance(ctx); err != nil {
		return nil, s.explainExternal(err)
	}
	if err := backend.Start(attempt); err != nil {
		return nil, s.explainExternal(err)
	}
	return backend, nil
}

// watchDatabase reports when the database goes away, and when it is back.
func (s *settings) watchDatabase(ctx context.Context, backend server.Backend) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	away := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked, cancel := context.WithTimeoutCause(ctx, answerFor, fmt.Errorf("no answer within %s", answerFor))
		_, err := backend.DbSize(asked)
		if err != nil {
			err = s.explainExternal(errors.Join(err, context.Cause(asked)))
		}
		cancel()
		if ctx.Err() != nil || err == nil && !away {
			continue
		}
		if err == nil {
			slog.Info("the database is back")
		} else if !away {
			slog.Error("the database is away", "err", err)
		}
		away = err != nil
		if err := s.report(err); err != nil {
			slog.Error("reporting about the database", "err", err)
		}
	}
}

// explainExternal says what an error means, in which the DSN does not occur.
func (s *settings) explainExternal(err error) error {
	var is refused
	if errors.As(err, &is) {
		return err
	}
	switch s.Scheme {
	case "mysql":
		err = explainMySQL(err)
	case "nats":
		err = explainNATS(err)
	default:
		err = explainPostgres(err)
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	switch {
	case errors.As(err, &is):
		return err
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &name):
		return refuse(err, "set spec.datastore.caFile to the authority that issued it, and name the server as in the certificate", "the database's certificate is not trusted")
	case strings.Contains(err.Error(), "remote error: tls:"):
		return refuse(err, "set spec.datastore.certFile and keyFile to a client certificate that the database trusts", "the database does not accept our certificate")
	}
	return err
}

// report is written for the daemon: a problem, or none.
func (s *settings) report(err error) error {
	if s.statusFile == "" {
		return nil
	}
	problems := []health.Problem{}
	if err != nil {
		problems = append(problems, s.problem(err))
	}
	text, err := json.Marshal(map[string]any{"problems": problems})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.statusFile, text, 0o600); err != nil {
		return fmt.Errorf("writing what is known about the database: %w", err)
	}
	return nil
}

func (s *settings) problem(err error) health.Problem {
	var is refused
	code, what := health.DatabaseAway, "the database at "+s.where+" does not answer: "
	if errors.As(err, &is) {
		code, what = health.DatabaseRefuses, ""
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	p := health.FromError(errors.New(s.without(what+text)), code, "kine")
	if hint, _ := errs.HintOf(err); hint != "" {
		p.Remedy = hint
	}
	return p
}

// readEndpoint takes the DSN from its file.
func (s *settings) readEndpoint() error {
	raw, err := os.ReadFile(s.endpointFile)
	if err != nil {
		return fmt.Errorf("reading the datastore's URL: %w", err)
	}
	s.Endpoint = strings.TrimSpace(string(raw))
	s.Scheme, s.DataSourceName, _ = strings.Cut(s.Endpoint, "://")
	return nil
}

// hide keeps user and password out of what libraries log in this process.
func (s *settings) hide() {
	s.secrets, s.where = secretsOf(s.Scheme, s.DataSourceName)
	logrus.AddHook(s)
}

// secretsOf are the texts that must not be seen, and the address, which may.
func secretsOf(scheme, rest string) (secrets []string, where string) {
	path := strings.LastIndexByte(rest, '/')
	if scheme != "mysql" || path < 0 {
		path = strings.IndexAny(rest, "/?#")
	}
	if path < 0 {
		path = len(rest)
	}
	at := strings.LastIndexByte(rest[:path], '@')
	where = rest[at+1 : path]
	if at < 0 {
		return nil, where
	}
	user, password, _ := strings.Cut(rest[:at], ":")
	secrets = append(secrets, rest[:at]+"@")
	for _, p := range []string{password, user} {
		if len(p) < 6 || p == user && password != "" { // it would be found in the middle of words
			continue
		}
		secrets = append(secrets, p)
		if plain, err := url.PathUnescape(p); err == nil && plain != p {
			secrets = append(secrets, plain)
		}
	}
	return secrets, where
}

func (s *settings) without(text string) string {
	for _, secret := range s.secrets {
		text = strings.ReplaceAll(text, secret, "[redacted]")
	}
	return text
}

// Levels and Fire make settings a logrus.Hook.
func (s *settings) Levels() []logrus.Level { return logrus.AllLevels }

// Fire takes the secrets out of a line.
func (s *settings) Fire(e *logrus.Entry) error {
	e.Message = s.without(e.Message)
	return nil
}
