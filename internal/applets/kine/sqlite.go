package kine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"k1s.io/k1s/internal/errs"
)

// quickCheckBelow is the size up to which the whole database is checked at every start. Reading that
// much takes about a tenth of a second; larger ones are looked at only where they are used.
const quickCheckBelow = 64 << 20

// checkSQLite opens the database as kine is going to, checks it and writes to it, so that an unusable
// one is reported at once and in plain words.
func checkSQLite(ctx context.Context, dsn string) error {
	path := file(dsn)
	db, err := sql.Open(driverName, dsn)
	if err != nil {
		return explain(path, err)
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return explain(path, err)
	}
	defer conn.Close()

	if st, err := os.Stat(path); err == nil && st.Size() <= quickCheckBelow {
		var verdict string
		if err := conn.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
			return explain(path, err)
		}
		if verdict != "ok" {
			return corrupt(path, errors.New(strings.Join(strings.Fields(verdict), " ")))
		}
	}
	// A write of what is there already: it fails where nothing can be written, and changes nothing.
	var version int
	if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return explain(path, err)
	}
	if _, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil {
		return explain(path, err)
	}
	return nil
}

func corrupt(path string, err error) error {
	return errs.Hint(fmt.Errorf("database file %s is corrupt: %w", path, err),
		"stop k1s, keep a copy of the file, and restore a backup")
}

// trouble is what an SQLite error means for the database as a whole.
type trouble int

const (
	troubleOther trouble = iota
	troubleCorrupt
	troubleReadOnly
	troubleFull
	troubleOpen
	troubleIO
)

// explain turns an error of the database into what is in the way and what to do.
func explain(path string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	switch troubleOf(err) {
	case troubleCorrupt:
		return corrupt(path, err)
	case troubleReadOnly:
		return errs.Hint(fmt.Errorf("database file %s cannot be written: %w", path, err),
			"check that its file system is not mounted read-only and that the file belongs to root")
	case troubleFull:
		return errs.Hint(fmt.Errorf("database file %s cannot be written, the disk is full: %w", path, err),
			"make room on the file system that holds %s", path)
	case troubleOpen:
		// SQLite says the same for a missing directory and for a read-only one; the system knows better.
		if f, sys := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); sys == nil {
			f.Close()
		} else {
			err = sys
		}
		return errs.Hint(fmt.Errorf("database file %s cannot be opened for writing: %w", path, err),
			"check that its directory exists and can be written")
	case troubleIO:
		if errors.Is(err, syscall.ENOSPC) {
			return errs.Hint(fmt.Errorf("database file %s cannot be written, the disk is full: %w", path, err), "make room on its file system")
		}
		return errs.Hint(fmt.Errorf("database file %s cannot be read or written: %w", path, err), "check the disk: see the kernel's log")
	default:
		return fmt.Errorf("opening database file %s: %w", path, err)
	}
}
