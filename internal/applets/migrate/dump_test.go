package migrate

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	clientv3 "go.etcd.io/etcd/client/v3"

	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/claim"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
)

// told runs a job to its end, and returns what it told.
func told(t *testing.T, j migration.Job) ([]migration.Event, error) {
	t.Helper()
	in, input := io.Pipe()
	output, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(t.Context(), in, out)
		out.Close()
		done <- err
	}()
	line, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = fmt.Fprintf(input, "%s\n", line) }()
	var all []migration.Event
	for lines := bufio.NewScanner(output); lines.Scan(); {
		var e migration.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	err = <-done
	input.Close()
	return all, err
}

func dumped(t *testing.T, s migration.Store, file string) dump.Summary {
	t.Helper()
	all, err := told(t, migration.Job{Mode: migration.Dump, Root: root, Live: s, File: file})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Dumped != nil {
			return *e.Dumped
		}
	}
	t.Fatalf("it told %+v", all)
	return dump.Summary{}
}

func TestADumpGoesFromAnyDatastoreToAnyOther(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dump")
	want := map[string]string{}
	fill := func(s *store) {
		for i := range 450 { // several pages
			key := fmt.Sprintf("%s/configmaps/default/%03d", root, i)
			want[key] = strings.Repeat(fmt.Sprint(i), i)
			s.put(t, key, want[key])
		}
		s.put(t, root+"/configmaps/default/gone", "x")
		s.drop(t, root+"/configmaps/default/gone")
		if s.ThroughKine {
			if _, err := s.write(t.Context(), root+"/events/default/e", []byte("event"), 0, 3600); err != nil {
				t.Fatal(err)
			}
		} else {
			lease, err := s.client.Grant(t.Context(), 3600)
			if err == nil {
				_, err = s.write(t.Context(), root+"/events/default/e", []byte("event"), 0, int64(lease.ID))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		want[root+"/events/default/e"] = "event"
		s.put(t, "/k1s.io/cluster"+root, "the datastore's too")
		s.put(t, "/k1s.io/etcd/defragment", "the datastore's")
		s.put(t, "/elsewhere/x", "not the API server's")
	}
	for _, c := range []struct{ from, to config.DSN }{{"sqlite", "etcd"}, {"etcd", "sqlite"}} {
		t.Run(fmt.Sprintf("%s to %s", c.from, c.to), func(t *testing.T) {
			from, to := datastore(t, c.from), datastore(t, c.to)
			clear(want)
			var sum dump.Summary
			with(t, from("s"), func(s *store) {
				fill(s)
				served := s.Store
				served.Kine, served.Etcd = nil, ""
				sum = dumped(t, served, file)
			})
			if sum.Keys != int64(len(want)) || sum.Revision == 0 {
				t.Fatalf("%+v, want %d keys", sum, len(want))
			}
			again := dumped(t, from("own"), file+".again") // while nobody else uses it
			if again.Keys != sum.Keys || again.Revision < sum.Revision {
				t.Errorf("%+v, and before %+v", again, sum)
			}
			// An older database of the same cluster is here.
			old := datastore(t, c.from)
			var last int64
			with(t, old("o"), func(s *store) {
				for range 600 {
					last = s.put(t, root+"/x/y", "z")
				}
			})
			j := migration.Job{Mode: migration.Load, ID: "load", Root: root, Target: to("t"), File: file, Summary: sum, At: time.Now()}
			if place := old("o"); place.EtcdDir != "" {
				j.OldEtcd = place.EtcdDir
			} else {
				_, path, _ := strings.Cut(strings.Join(place.Kine, " "), "sqlite://")
				j.OldSQLite, _, _ = strings.Cut(path, "?")
			}
			all, err := told(t, j)
			if err != nil {
				t.Fatal(err)
			}
			result := all[len(all)-1].Result
			if result == nil || result.TargetRevision <= last || result.Keys != int(sum.Keys) && result.Keys == 0 {
				t.Fatalf("%+v, the last revision of the old one is %d", result, last)
			}
			with(t, to("s"), func(s *store) {
				if got := s.all(t); !maps.Equal(got, want) {
					t.Errorf("%d keys, want %d", len(got), len(want))
				}
				for key, value := range map[string]string{"/k1s.io/cluster" + root: "", "/k1s.io/etcd/defragment": "", "/elsewhere/x": "", migration.MarkKey(root): ""} {
					r, err := s.client.Get(t.Context(), key)
					if err != nil || (len(r.Kvs) == 1) != (value != "") || value != "" && string(r.Kvs[0].Value) != value {
						t.Errorf("%s: %v, %v", key, r, err)
					}
				}
				e, err := s.client.Get(t.Context(), root+"/events/default/e")
				if err != nil || len(e.Kvs) != 1 || e.Kvs[0].Lease == 0 {
					t.Errorf("the event: %v, %v", e, err)
				} else if left, err := s.left(t.Context(), e.Kvs[0].Lease); err != nil || left < 3000 || left > 3600 {
					t.Errorf("the event has %ds left, %v", left, err)
				}
				if rev := s.put(t, root+"/next", "1"); rev <= last {
					t.Errorf("the next write has revision %d", rev)
				}
				if w := <-s.client.Watch(t.Context(), root+"/", clientv3.WithPrefix(), clientv3.WithRev(last)); w.CompactRevision == 0 {
					t.Errorf("who watched is not told to begin anew: %+v", w)
				}
			})
			// What is not empty is not touched, also not by the same load once it is over.
			if _, err := told(t, j); !errs.Is(err, errs.Exists) {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

// A restore begins so far behind what anybody can have seen that nobody can get there by writing.
func TestADumpGoesToANATSThatIsEmpty(t *testing.T) {
	n, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	t.Cleanup(func() { n.Shutdown(); n.WaitForShutdown() })
	if !n.ReadyForConnections(time.Minute) {
		t.Fatal("NATS does not start")
	}
	file := filepath.Join(t.TempDir(), "dump")
	from, to := datastore(t, "sqlite"), datastore(t, config.DSN(n.ClientURL()))
	want := map[string]string{root + "/configmaps/default/a": "1", root + "/configmaps/default/b": "2"}
	with(t, from("s"), func(s *store) {
		for key, value := range want {
			s.put(t, key, value)
		}
	})
	with(t, to("looked at"), func(*store) {}) // as whoever asks what a restore would do
	sum := dumped(t, from("d"), file)
	all, err := told(t, migration.Job{Mode: migration.Load, ID: "load", Root: root, Target: to("t"), File: file, Summary: sum, CA: authority(t), Node: "server-0", At: time.Now().Add(-24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if r := all[len(all)-1].Result; r == nil || r.TargetRevision < 90_000_000 {
		t.Errorf("%+v", r)
	}
	with(t, to("u"), func(s *store) {
		if got := s.all(t); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

func TestADumpIsWholeWhileOthersWrite(t *testing.T) {
	for _, engine := range []config.DSN{"sqlite", "etcd"} {
		t.Run(string(engine), func(t *testing.T) {
			d, file := datastore(t, engine), filepath.Join(t.TempDir(), "dump")
			with(t, d("s"), func(s *store) {
				// Both of a pair are always written one after the other, the far one first, so what is in the near one is at most
				// what is in the far one, at every revision; a reader of pages that were not of one revision would see otherwise.
				near, far := root+"/a/000", root+"/z/000"
				for i := range 600 {
					s.put(t, fmt.Sprintf("%s/m/%03d", root, i), strings.Repeat("x", 100))
				}
				s.put(t, far, "0")
				s.put(t, near, "0")
				done, ended := make(chan struct{}), make(chan int)
				go func() {
					n := 1
					for ; ; n++ {
						select {
						case <-done:
							ended <- n
							return
						default:
						}
						for _, key := range []string{far, near} {
							if _, err := s.writeOver(t.Context(), key, []byte(fmt.Sprint(n)), nil); err != nil {
								t.Error(err)
							}
						}
					}
				}()
				served := s.Store
				served.Kine, served.Etcd = nil, ""
				for range 5 {
					sum := dumped(t, served, file)
					values := map[string]int{}
					f, err := os.Open(file)
					if err != nil {
						t.Fatal(err)
					}
					r, err := dump.NewReader(f)
					for err == nil {
						var rec dump.Record
						if rec, err = r.Next(); err == nil && (rec.Key == near || rec.Key == far) {
							var n int
							if _, err := fmt.Sscan(string(rec.Value), &n); err != nil {
								t.Error(err)
							}
							values[rec.Key] = n
						}
					}
					f.Close()
					if !errors.Is(err, io.EOF) || sum.Keys != 602 || values[far]-values[near] < 0 || values[far]-values[near] > 1 {
						t.Errorf("%+v, %v, %v", sum, values, err)
					}
				}
				close(done)
				<-ended
			})
		})
	}
}

func TestWhatCannotBeLoadedIsNotLoaded(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, records ...dump.Record) (string, dump.Summary) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		w := dump.NewWriter(f)
		for _, r := range records {
			if err := w.Add(r); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := w.Close(100)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return f.Name(), sum
	}
	load := func(to migration.Store, id, file string, sum dump.Summary) error {
		_, err := told(t, migration.Job{Mode: migration.Load, ID: id, Root: root, Target: to, File: file, Summary: sum, At: time.Now()})
		return err
	}
	good, sum := write("good", dump.Record{Key: root + "/a", Value: []byte("1")}, dump.Record{Key: root + "/b", Value: []byte("2"), Lease: 9, TTL: 0})
	t.Run("a datastore that is used", func(t *testing.T) {
		d := datastore(t, "sqlite")
		with(t, d("s"), func(s *store) { s.put(t, root+"/mine", "x") })
		if err := load(d("t"), "1", good, sum); !errs.Is(err, errs.Exists) {
			t.Errorf("%v", err)
		}
		with(t, d("s"), func(s *store) {
			if got := s.all(t); len(got) != 1 || got[root+"/mine"] != "x" {
				t.Errorf("%v", got)
			}
		})
	})
	t.Run("what broke off goes on, and what has no time left does not come", func(t *testing.T) {
		d := datastore(t, "sqlite")
		with(t, d("s"), func(s *store) {
			s.put(t, migration.MarkKey(root), "1")
			s.put(t, root+"/a", "half")
		})
		if err := load(d("t"), "1", good, sum); err != nil {
			t.Errorf("%v", err)
		}
		with(t, d("s"), func(s *store) {
			if got := s.all(t); len(got) != 1 || got[root+"/a"] != "1" {
				t.Errorf("%v", got)
			}
		})
	})
	t.Run("what somebody wrote into the half of it goes", func(t *testing.T) {
		d, id := datastore(t, "sqlite"), migration.RestoreID("1", "node")
		with(t, d("s"), func(s *store) {
			s.put(t, migration.MarkKey(root), id)
			s.put(t, root+"/a", "1")
			s.put(t, root+"/namespaces/default", "made anew")
		})
		if err := load(d("t"), id, good, sum); err != nil {
			t.Errorf("%v", err)
		}
		with(t, d("s"), func(s *store) {
			if got := s.all(t); len(got) != 1 || got[root+"/a"] != "1" {
				t.Errorf("%v", got)
			}
		})
	})
	t.Run("where another restore has begun, with nothing there yet", func(t *testing.T) {
		d, other := datastore(t, "sqlite"), migration.RestoreID("1", "other")
		with(t, d("s"), func(s *store) { s.put(t, migration.MarkKey(root), other) })
		if err := load(d("t"), migration.RestoreID("1", "node"), good, sum); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), other) {
			t.Errorf("%v", err)
		}
		with(t, d("s"), func(s *store) {
			if mark, at, err := s.mark(t.Context(), root); err != nil || mark != other || len(s.all(t)) != 0 {
				t.Errorf("%q, %v, %v", mark, err, s.all(t))
			} else if err := s.setMark(t.Context(), root, "mine", at-1); !errs.Is(err, errs.Exists) {
				t.Errorf("one that is faster is overwritten: %v", err)
			} else if err := s.setMark(t.Context(), root, "mine", 0); !errs.Is(err, errs.Exists) {
				t.Errorf("one that is faster is overwritten: %v", err)
			}
		})
	})
	for name, records := range map[string][]dump.Record{
		"of nobody":     {{Key: "/elsewhere/x"}},
		"of a database": {{Key: root + "/health"}},
	} {
		t.Run("keys "+name, func(t *testing.T) {
			file, sum := write("bad", records...)
			if err := load(datastore(t, "sqlite")("t"), "1", file, sum); !errs.Is(err, errs.Invalid) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("whose the database was, in an early dump, is nobody's business", func(t *testing.T) {
		file, sum := write("early", dump.Record{Key: "/k1s.io/cluster" + root, Value: []byte("another's")}, dump.Record{Key: root + "/a", Value: []byte("1")})
		d := datastore(t, "sqlite")
		if err := load(d("t"), "1", file, sum); err != nil {
			t.Fatal(err)
		}
		with(t, d("s"), func(s *store) {
			if r, err := s.client.Get(t.Context(), claim.Key(root)); err != nil || len(r.Kvs) != 0 {
				t.Errorf("%v, %v", r, err)
			}
		})
	})
	t.Run("to a database that is another cluster's", func(t *testing.T) {
		d, ours, other := datastore(t, "sqlite"), authority(t), authority(t)
		j := migration.Job{Mode: migration.Load, ID: "1", Root: root, Target: d("t"), File: good, Summary: sum, At: time.Now(), CA: ours, Node: "restored"}
		is, err := claim.Of(other, nil, "elsewhere", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		with(t, d("s"), func(s *store) { s.put(t, claim.Key(root), string(is.Marshal())) })
		if _, err := told(t, j); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "elsewhere") {
			t.Errorf("%v", err)
		}
		with(t, d("s"), func(s *store) {
			if got := s.all(t); len(got) != 0 {
				t.Errorf("it has %v", got)
			}
			s.drop(t, claim.Key(root))
		})
		if _, err := told(t, j); err != nil {
			t.Fatal(err)
		}
		with(t, d("s"), func(s *store) {
			r, err := s.client.Get(t.Context(), claim.Key(root))
			if err != nil || len(r.Kvs) != 1 || !strings.Contains(string(r.Kvs[0].Value), `"server":"restored"`) {
				t.Errorf("the database is not taken: %v, %v", r, err)
			}
		})
	})
	t.Run("another dump than was checked", func(t *testing.T) {
		other := sum
		other.Keys++
		if err := load(datastore(t, "sqlite")("t"), "1", good, other); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v", err)
		}
	})
}

// authority is the file of a cluster's CA.
func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Two that were founded by the same node at the same address are one cluster to each other without that, and let each other in.
func TestAnEtcdThatIsFoundedWithATokenHasIDsOfItsOwn(t *testing.T) {
	clusters, members := map[uint64]string{}, map[uint64]string{}
	for _, token := range []string{"", "restore-1-a", "restore-1-b"} {
		of := founded(t, "etcd")
		ids := func(token string) (cluster, member uint64) {
			with(t, of("t", token), func(s *store) {
				r, err := s.client.Get(t.Context(), "x")
				if err != nil {
					t.Fatal(err)
				}
				cluster, member = r.Header.ClusterId, r.Header.MemberId
			})
			return cluster, member
		}
		cluster, member := ids(token)
		if was, known := clusters[cluster]; known {
			t.Errorf("with %q and %q it is the same cluster", token, was)
		}
		if was, known := members[member]; known {
			t.Errorf("with %q and %q it is the same member", token, was)
		}
		clusters[cluster], members[member] = token, token
		if c, m := ids(""); c != cluster || m != member { // as the node starts it afterwards
			t.Errorf("with %q it became another cluster", token)
		}
	}
}

// silent is a datastore that never tells what is left of a lease.
type silent struct{ clientv3.Lease }

var errWaited = errors.New("it is waited for, but not for ever")

func (silent) TimeToLive(ctx context.Context, _ clientv3.LeaseID, _ ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	if _, bounded := ctx.Deadline(); bounded {
		return nil, errWaited
	}
	return nil, errors.New("it is waited for")
}

func TestALeaseIsNotAskedForForEver(t *testing.T) {
	s := &store{client: &clientv3.Client{Lease: silent{}}}
	if _, err := s.left(context.Background(), 1); !errors.Is(err, errWaited) {
		t.Error(err)
	}
}
