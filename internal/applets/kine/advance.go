package kine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// advance makes the revision after the next write greater than s.minRevision, without so many writes. It has to be
// between the making of kine's tables and the start of its backend: a running one would fill every revision it
// finds missing with a row, one after the other.
//
// Revisions that are passed over count as compacted, so that whoever watched another datastore up to one of them is
// told to read everything again.
func (s *settings) advance(ctx context.Context) error {
	if s.minRevision <= 0 && s.Scheme != "nats" {
		return nil
	}
	if err := s.advanceTo(ctx, s.minRevision); err != nil {
		return fmt.Errorf("advancing the database to revision %d: %w", s.minRevision, err)
	}
	return nil
}

func (s *settings) advanceTo(ctx context.Context, revision int64) error {
	switch s.Scheme {
	case "nats":
		return s.advanceNATS(ctx, revision)
	case "mysql": // AUTO_INCREMENT follows the greatest id by itself
		db, err := s.mysql()
		if err != nil {
			return err
		}
		defer db.Close()
		return advanceSQL(ctx, db, revision, func(int) string { return "?" }, "")
	case "postgres", "postgresql":
		config, err := s.postgres()
		if err != nil {
			return err
		}
		db := stdlib.OpenDB(*config)
		defer db.Close()
		return advanceSQL(ctx, db, revision, func(n int) string { return fmt.Sprintf("$%d", n) }, "SELECT setval(pg_get_serial_sequence('kine', 'id'), $1)")
	default: // so does AUTOINCREMENT
		db, err := sql.Open(driverName, s.DataSourceName)
		if err != nil {
			return err
		}
		defer db.Close()
		return advanceSQL(ctx, db, revision, func(int) string { return "?" }, "")
	}
}

// advanceSQL writes a row with the revision as its id: a fill of kine's, or in an empty table the row in which kine
// keeps up to where it has compacted.
func advanceSQL(ctx context.Context, db *sql.DB, revision int64, parameter func(int) string, sequence string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	var current sql.NullInt64
	var compacts int
	if err := tx.QueryRowContext(ctx, "SELECT MAX(id) FROM kine").Scan(&current); err != nil {
		return err
	}
	if current.Int64 >= revision {
		return nil
	}
	if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM kine WHERE name = 'compact_rev_key'").Scan(&compacts); err != nil {
		return err
	}
	var parameters []string
	for n := range 9 {
		parameters = append(parameters, parameter(n+1))
	}
	insert := "INSERT INTO kine(id, name, created, deleted, create_revision, prev_revision, lease, value, old_value) VALUES (" + strings.Join(parameters, ", ") + ")"
	if compacts == 0 {
		_, err = tx.ExecContext(ctx, insert, revision, "compact_rev_key", 1, 0, 0, revision, 0, []byte{}, []byte{})
	} else {
		_, err = tx.ExecContext(ctx, insert, revision, fmt.Sprintf("gap-%d", revision), 0, 1, 0, 0, 0, nil, nil)
		if err == nil {
			_, err = tx.ExecContext(ctx, "UPDATE kine SET prev_revision = "+parameter(1)+" WHERE name = 'compact_rev_key'", revision)
		}
	}
	if err == nil && sequence != "" {
		_, err = tx.ExecContext(ctx, sequence, revision)
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

// Subjects below kine's bucket, as its driver encodes keys (each piece in base 58).
const (
	natsFiller = "d1Ht"                 // /k1s
	natsHealth = "L8nZchjdPLL.tzCUBDXD" // /registry/health, which kine's driver writes at every start
)

// natsBatch is how many messages are on their way at a time. The client waits for room for a fifth of a second and then
// gives up, so it is never asked for more than it has.
const natsBatch = 4096

// natsAnswer is how long the server may take for the answer to one message; an answer that was lost does not come.
const natsAnswer = 30 * time.Second

// advanceNATS makes the sequence of the bucket's stream, which is kine's revision, at least revision. An empty stream, also
// one that has nothing but what kine's driver and we have put there for ourselves, is purged up to there, which the server
// takes as where to go on; one with content gets messages that say that a key of ours is deleted, of which the bucket
// keeps the last few: some ten thousand a second, so it may not be far.
func (s *settings) advanceNATS(ctx context.Context, revision int64) error {
	conn, bucket, err := s.nats()
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(natsBatch), jetstream.WithPublishAsyncTimeout(natsAnswer))
	if err != nil {
		return err
	}
	stream, err := js.Stream(ctx, "KV_"+bucket)
	if err != nil {
		return err
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 && state.LastSeq > 0 {
		// Kine waits for the last message there was. That one is gone, e.g. because we were killed right here.
		revision = max(revision, int64(state.LastSeq)+1)
	}
	if int64(state.LastSeq) >= revision {
		return nil
	}
	empty, err := natsEmpty(ctx, stream, bucket)
	if err != nil {
		return err
	}
	if empty && revision > 2 {
		if err := stream.Purge(ctx, jetstream.WithPurgeSequence(uint64(revision))); err != nil {
			return err
		}
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return err
	}
	for at := int64(info.State.LastSeq); at < revision; at = int64(info.State.LastSeq) {
		lost, err := publishFill(ctx, js, "$KV."+bucket+"."+natsFiller, min(revision-at, natsBatch))
		if err != nil {
			return err
		}
		if info, err = stream.Info(ctx); err != nil {
			return err
		}
		switch { // those that are missing are sent again
		case int64(info.State.LastSeq) > at:
		case lost != nil:
			return fmt.Errorf("the stream stays at %d: %w", at, lost)
		default:
			return fmt.Errorf("the stream stays at %d", at)
		}
	}
	return nil
}

// natsEmpty tells that a stream has nothing that would be missed.
func natsEmpty(ctx context.Context, stream jetstream.Stream, bucket string) (bool, error) {
	own := []string{"$KV." + bucket + "." + natsHealth, "$KV." + bucket + "." + natsFiller}
	state := stream.CachedInfo().State
	if state.Msgs == 0 || state.NumSubjects > uint64(len(own)) {
		return state.Msgs == 0, nil
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return false, err
	}
	for subject := range info.State.Subjects {
		if !slices.Contains(own, subject) {
			return false, nil
		}
	}
	return len(info.State.Subjects) > 0, nil
}

// publishFill publishes n messages, of which no others may be on their way, and waits for the answers. It returns why
// the first one that was not kept was not.
func publishFill(ctx context.Context, js jetstream.JetStream, subject string, n int64) (lost, err error) {
	sent := make([]jetstream.PubAckFuture, 0, n)
	for range n {
		m := nats.NewMsg(subject)
		m.Header.Set("KV-Operation", "DEL")
		one, err := js.PublishMsgAsync(m)
		if err != nil {
			return nil, err
		}
		sent = append(sent, one)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for _, one := range sent {
		select {
		case err := <-one.Err():
			return err, nil
		default:
		}
	}
	return nil, nil
}

// nats connects as kine's driver does with the DSN and the TLS files, and names the bucket.
func (s *settings) nats() (*nats.Conn, string, error) {
	var servers []string
	var options []nats.Option
	bucket := "kine"
	for i, one := range strings.Split(s.Endpoint, ",") {
		u, err := url.Parse(one)
		if err != nil {
			return nil, "", errors.New("the datastore's URL is not valid") // the error repeats it
		}
		servers = append(servers, "nats://"+u.Host)
		if i > 0 {
			continue
		}
		if name := u.Query().Get("bucket"); name != "" {
			bucket = name
		}
		if file := u.Query().Get("credsFile"); file != "" {
			options = append(options, nats.UserCredentials(file))
		}
		if u.User != nil { // as it stands there: the driver does not decode it
			if user, password, ok := strings.Cut(u.User.String(), ":"); ok {
				options = append(options, nats.UserInfo(user, password))
			} else {
				options = append(options, nats.Token(user))
			}
		}
	}
	if tls := s.BackendTLSConfig; tls.CertFile != "" && tls.KeyFile != "" {
		options = append(options, nats.ClientCert(tls.CertFile, tls.KeyFile))
	}
	if ca := s.BackendTLSConfig.CAFile; ca != "" {
		options = append(options, nats.RootCAs(ca))
	}
	conn, err := nats.Connect(strings.Join(servers, ","), options...)
	return conn, bucket, err
}
