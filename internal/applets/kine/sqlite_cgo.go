//go:build cgo

package kine

import (
	"errors"

	"github.com/mattn/go-sqlite3"
)

// driverName is the database/sql driver kine uses in this build.
const driverName = "sqlite3"

func troubleOf(err error) trouble {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return troubleOther
	}
	switch e.Code {
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB:
		return troubleCorrupt
	case sqlite3.ErrReadonly, sqlite3.ErrPerm:
		return troubleReadOnly
	case sqlite3.ErrFull:
		return troubleFull
	case sqlite3.ErrCantOpen:
		return troubleOpen
	case sqlite3.ErrIoErr:
		return troubleIO
	default:
		return troubleOther
	}
}
