package kine

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
)

// Revision is the last in a SQLite file of kine's that nobody uses.
func Revision(file string) (int64, error) {
	if _, err := os.Stat(file); err != nil {
		return 0, err
	}
	db, err := sql.Open(driverName, "file:"+(&url.URL{Path: file}).EscapedPath()+"?_busy_timeout=2000&_query_only=true")
	if err != nil {
		return 0, err
	}
	var last sql.NullInt64
	err = db.QueryRow("SELECT MAX(id) FROM kine").Scan(&last)
	if err = errors.Join(err, db.Close()); err != nil {
		return 0, fmt.Errorf("reading the last revision in %s: %w", file, err)
	}
	return last.Int64, nil
}
