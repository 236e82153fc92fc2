package kine

import (
	"context"
	"database/sql"
	"errors"

	"github.com/go-sql-driver/mysql"
	_ "github.com/k3s-io/kine/pkg/drivers/mysql"
)

// Numbers of errors MySQL and MariaDB share.
const (
	mysqlDatabaseDenied  = 1044
	mysqlAccessDenied    = 1045
	mysqlUnknownDatabase = 1049
	mysqlTableDenied     = 1142
	mysqlReadOnly        = 1290
	mysqlNoPassword      = 1698 // MariaDB: the user is to come through a socket
)

// tlsName is under which the driver keeps our TLS configuration.
const tlsName = "k1s"

// mysql connects as kine is going to with the DSN and the TLS files.
func (s *settings) mysql() (*sql.DB, error) {
	config, err := mysql.ParseDSN(s.DataSourceName)
	if err != nil {
		return nil, err
	}
	tls, err := s.BackendTLSConfig.ClientConfig()
	if err != nil {
		return nil, err
	}
	if tls != nil {
		if err := mysql.RegisterTLSConfig(tlsName, tls); err != nil {
			return nil, err
		}
		config.TLSConfig = tlsName
	}
	if config.DBName == "" {
		config.DBName = "kubernetes"
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// checkMySQL connects. A database that does not exist is left to kine, which makes it if it may.
func checkMySQL(ctx context.Context, s *settings) error {
	db, err := s.mysql()
	if err != nil {
		return err
	}
	defer db.Close()
	var e *mysql.MySQLError
	if err := db.PingContext(ctx); err != nil && !(errors.As(err, &e) && e.Number == mysqlUnknownDatabase) {
		return s.explainExternal(err)
	}
	return nil
}

func explainMySQL(err error) error {
	var e *mysql.MySQLError
	if !errors.As(err, &e) {
		return err
	}
	switch e.Number {
	case mysqlAccessDenied, mysqlNoPassword:
		return refuse(err, "correct user and password in the datastore's URL; a user of MySQL is also one of a host", "MySQL does not let this user in")
	case mysqlDatabaseDenied, mysqlTableDenied:
		return refuse(err, "as its administrator run: GRANT ALL ON DATABASE.* TO …", "MySQL does not let this user make tables")
	case mysqlReadOnly:
		return refuse(err, "name the primary, not a replica, in spec.datastore.endpoint", "this MySQL cannot be written to")
	}
	return err
}
