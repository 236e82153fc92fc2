//go:build !cgo

package kine

import (
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// driverName is the database/sql driver kine uses in this build.
const driverName = "sqlite"

func troubleOf(err error) trouble {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return troubleOther
	}
	switch e.Code() & 0xff { // the rest of the code is detail
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return troubleCorrupt
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return troubleReadOnly
	case sqlite3.SQLITE_FULL:
		return troubleFull
	case sqlite3.SQLITE_CANTOPEN:
		return troubleOpen
	case sqlite3.SQLITE_IOERR:
		return troubleIO
	default:
		return troubleOther
	}
}
