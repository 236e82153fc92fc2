package kine

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/k3s-io/kine/pkg/drivers/pgsql"
)

// checkPostgres connects. A database that does not exist is left to kine, which makes it if it may.
func checkPostgres(ctx context.Context, s *settings) error {
	config, err := s.postgres()
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err == nil {
		return conn.Close(ctx)
	}
	var p *pgconn.PgError
	if !errors.As(err, &p) || p.Code != pgerrcode.InvalidCatalogName {
		return s.explainExternal(err)
	}
	name := config.Database
	config.Database = "postgres"
	if conn, err = pgx.ConnectConfig(ctx, config); err != nil {
		return refuse(err, "as its administrator run: CREATE DATABASE …", "the database %q does not exist, and this user may not make it", name)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return refuse(err, "as its administrator run: CREATE DATABASE …", "the database %q does not exist, and this user may not make it", name)
	}
	return nil
}

// postgres is the connection as kine makes it of the DSN and the TLS files.
func (s *settings) postgres() (*pgx.ConnConfig, error) {
	u, err := url.Parse("postgres://" + s.DataSourceName)
	if err != nil {
		return nil, fmt.Errorf("the datastore's URL is not valid") // the error repeats it
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/kubernetes"
	}
	u.Path = strings.ToLower(u.Path)
	q, tls := u.Query(), s.BackendTLSConfig
	for key, file := range map[string]string{"sslrootcert": tls.CAFile, "sslcert": tls.CertFile, "sslkey": tls.KeyFile} {
		if file != "" && !q.Has(key) {
			q.Set(key, file)
			if !q.Has("sslmode") {
				q.Set("sslmode", "verify-full")
			}
		}
	}
	u.RawQuery = q.Encode()
	return pgx.ParseConfig(u.String())
}

func explainPostgres(err error) error {
	var p *pgconn.PgError
	if !errors.As(err, &p) {
		return err
	}
	switch p.Code {
	case pgerrcode.InvalidPassword, pgerrcode.InvalidAuthorizationSpecification:
		return refuse(err, "correct user and password in the datastore's URL, or the server's pg_hba.conf", "PostgreSQL does not let this user in")
	case pgerrcode.InsufficientPrivilege:
		return refuse(err, "as its administrator run: ALTER DATABASE … OWNER TO …", "PostgreSQL does not let this user make tables")
	case pgerrcode.ReadOnlySQLTransaction:
		return refuse(err, "name the primary, not a replica, in spec.datastore.endpoint", "this PostgreSQL cannot be written to")
	}
	return err
}
