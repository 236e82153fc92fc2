package cli

import (
	"bytes"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/printer"
)

func TestWhatIsShownOfADatastoreAndItsMoves(t *testing.T) {
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	sqlite, etcd := migration.Place{Engine: "sqlite", Endpoint: "sqlite"}, migration.Place{Engine: "etcd", Endpoint: "etcd"}
	db := migration.Place{Engine: "PostgreSQL", Endpoint: "postgres://[redacted]@db:5432/k1s"}
	done := migration.State{Kind: migration.Migrate, From: sqlite, To: db, Phase: migration.Done, Ended: noon, PausedS: 2.61, Previous: &sqlite, Result: &migration.Result{
		Keys: 12, Bytes: 3000, Late: 2, SourceRevision: 99, TargetRevision: 10_100,
		Rows: []migration.Row{{Prefix: "/registry/events", Keys: 4, Bytes: 1000, Leased: 4}, {Prefix: "/registry/pods", Keys: 8, Bytes: 2000, Source: "ab", Target: "ab"}},
	}}
	running := migration.State{Kind: migration.Migrate, From: sqlite, To: etcd, Phase: migration.Copying}
	failed := migration.State{Kind: migration.Migrate, From: sqlite, To: etcd, Phase: migration.Failed, Ended: noon, Error: "it is full"}
	together := migration.State{
		Kind: migration.Migrate, From: etcd, To: db, Phase: migration.Done, Ended: noon, Previous: &etcd, Servers: []string{"b", "c"}, Result: &migration.Result{Keys: 1},
	}
	followed := migration.State{Kind: migration.Migrate, From: etcd, To: db, Phase: migration.Done, Ended: noon, Leader: "a"}
	fencing := migration.State{Kind: migration.Migrate, From: etcd, To: db, Phase: migration.Fencing, Servers: []string{"b", "c"}}
	for want, show := range map[string]func(*bytes.Buffer) error{
		`DATASTORE   ENDPOINT                           SIZE   REVISION
PostgreSQL  postgres://[redacted]@db:5432/k1s  3 KiB  10107

The last migration, from sqlite to postgres://[redacted]@db:5432/k1s, was done on 2026-11-21 12:00:00 (12 keys; the API paused for 2.6s).
sqlite is kept as it was left; to go back to it: k1s datastore rollback
`: func(b *bytes.Buffer) error {
			return printDatastore(b, printer.Table, control.Datastore{Place: db, Bytes: 3000, Revision: 10_107, Move: &done})
		},
		`DATASTORE  ENDPOINT  SIZE    REVISION
sqlite     sqlite    12 MiB  -

migration from sqlite to etcd: copying while the API serves (copying: 5 of 9)
`: func(b *bytes.Buffer) error {
			return printDatastore(b, printer.Table, control.Datastore{Place: sqlite, Bytes: 12 << 20, Move: &running, Progress: &migration.Progress{Doing: "copying", Done: 5, All: 9}})
		},
		`DATASTORE  ENDPOINT  SIZE  REVISION
sqlite     sqlite    -     7

The last migration, from sqlite to etcd, failed on 2026-11-21 12:00:00, and the state is where it was: it is full
`: func(b *bytes.Buffer) error {
			return printDatastore(b, printer.Table, control.Datastore{Place: sqlite, Revision: 7, Move: &failed})
		},
		`DATASTORE   ENDPOINT                           SIZE  REVISION
PostgreSQL  postgres://[redacted]@db:5432/k1s  -     7

The last migration, from etcd to postgres://[redacted]@db:5432/k1s, was done on 2026-11-21 12:00:00 (1 keys).
to have etcd on the servers again, with what is written until then: k1s datastore rollback
`: func(b *bytes.Buffer) error {
			return printDatastore(b, printer.Table, control.Datastore{Place: db, Revision: 7, Move: &together})
		},
		`DATASTORE   ENDPOINT                           SIZE  REVISION
PostgreSQL  postgres://[redacted]@db:5432/k1s  -     7

The last migration, from etcd to postgres://[redacted]@db:5432/k1s, which was asked for on a, was done on 2026-11-21 12:00:00.
`: func(b *bytes.Buffer) error {
			return printDatastore(b, printer.Table, control.Datastore{Place: db, Revision: 7, Move: &followed})
		},
		`migration from etcd to postgres://[redacted]@db:5432/k1s: stopping the control planes of b, c, one after the other
`: func(b *bytes.Buffer) error {
			_, err := b.WriteString(moveText(fencing, nil) + "\n")
			return err
		},
		`from:  etcd
to:    postgres://[redacted]@db:5432/k1s
then:  the control planes of this server and of b, c restart, and /etc/k1s/config.d/zz.yaml is written on each
`: func(b *bytes.Buffer) error {
			return printMovePlan(b, control.DatastorePlan{Kind: migration.Migrate, From: etcd, To: db, DropIn: "/etc/k1s/config.d/zz.yaml", Servers: []string{"b", "c"}})
		},
		`PREFIX            KEYS  SIZE   EXPIRING  HASH  SAME
/registry/events  4     1 KiB  4               yes
/registry/pods    8     2 KiB  0         ab    yes

12 keys, 3 KiB; revision 10100, before 99; 2 changes while the API was stopped, for 2.6s.
The state is in postgres://[redacted]@db:5432/k1s.
sqlite is kept as it was left; to go back to it: k1s datastore rollback
`: func(b *bytes.Buffer) error { return printMoved(b, done) },
		`from:  sqlite
to:    https://e:2379
copy:  7 keys, 2 KiB, revision 1000
       the new datastore is not empty: it has 3 keys, which only --replace overwrites
       and 990 writes before that: an etcd of yours comes to the revision of now in no other way
then:  the control plane restarts, and /etc/k1s/config.d/zz.yaml is written
`: func(b *bytes.Buffer) error {
			return printMovePlan(b, control.DatastorePlan{
				Kind: migration.Migrate, From: sqlite, To: migration.Place{Engine: "external etcd", Endpoint: "https://e:2379"}, DropIn: "/etc/k1s/config.d/zz.yaml",
				Seen: &migration.Seen{Keys: 7, Bytes: 2000, Revision: 1000, TargetKeys: 3, TargetRevision: 10},
			})
		},
		`from:  etcd
to:    sqlite
lost:  what was written since 2026-11-21 12:00:00:

PREFIX          NEW  CHANGED  DELETED
/registry/pods  2    1        1

then:  the control plane restarts, and /etc/k1s/config.d/zz.yaml is written
`: func(b *bytes.Buffer) error {
			return printMovePlan(b, control.DatastorePlan{
				Kind: migration.Rollback, From: etcd, To: sqlite, DropIn: "/etc/k1s/config.d/zz.yaml", Since: noon,
				Lost: []migration.Row{{Prefix: "/registry/pods", Missing: 2, Leased: 1, Differs: 1, Extra: 1}},
			})
		},
	} {
		var b bytes.Buffer
		if err := show(&b); err != nil || b.String() != want {
			t.Errorf("%v, shown:\n%s\nwant:\n%s", err, b.String(), want)
		}
	}
}
