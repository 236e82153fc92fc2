package kine

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// natsStore is a NATS server in this process, and a way to run kine on it.
func natsStore(t *testing.T) (_ *settings, run func(args []string, do func(*clientv3.Client))) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("NATS does not start")
	}
	file, socket := filepath.Join(t.TempDir(), "dsn"), "unix://"+filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(file, []byte(s.ClientURL()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--listen=" + socket, "--endpoint-file=" + file, "--once"}
	config, err := parse(args)
	if err != nil {
		t.Fatal(err)
	}
	if err := config.readEndpoint(); err != nil {
		t.Fatal(err)
	}
	return &config, func(more []string, do func(*clientv3.Client)) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, append(args, more...)) }()
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{socket}})
		if err != nil {
			t.Fatal(err)
		}
		asked, late := context.WithTimeout(t.Context(), time.Minute)
		defer late()
		if _, err := c.Get(asked, "/"); err != nil {
			t.Error(err)
		} else {
			do(c)
		}
		_ = c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestABucketPassesOverRevisions(t *testing.T) {
	_, run := natsStore(t)
	var kept int64
	run([]string{"--min-revision=5000"}, func(c *clientv3.Client) { // an empty one
		if kept = put(t, c, "/kept", "as it was", 0); kept <= 5000 || kept > 5010 {
			t.Errorf("the first write has revision %d", kept)
		}
	})
	for range 2 { // one with content, and the second time it is there already
		run([]string{"--min-revision=20000"}, func(c *clientv3.Client) {
			r, err := c.Get(t.Context(), "/kept")
			if err != nil || len(r.Kvs) != 1 || r.Kvs[0].ModRevision != kept || r.Header.Revision < 20_000 || r.Header.Revision > 20_010 {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
	run(nil, func(c *clientv3.Client) {
		w := c.Watch(t.Context(), "/", clientv3.WithPrefix())
		if got := put(t, c, "/kept", "changed", kept); got <= 20_000 {
			t.Errorf("the next write has revision %d", got)
		}
		events(t, w, 1)
		all, err := c.Get(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil || len(all.Kvs) != 2 { // with kine's own
			t.Errorf("it has %v, %v", all, err)
		}
	})
}

func TestABucketThatHasNothingButKinesOwnPassesOverAnyRevision(t *testing.T) {
	_, run := natsStore(t)
	run(nil, func(*clientv3.Client) {}) // who looks what is there makes kine keep something
	for _, past := range []int64{10_000_000, 3_000_000_000} {
		run([]string{fmt.Sprintf("--min-revision=%d", past)}, func(c *clientv3.Client) {
			r, err := c.Get(t.Context(), "/", clientv3.WithPrefix())
			if err != nil || len(r.Kvs) != 1 || r.Header.Revision <= past || r.Header.Revision > past+10 {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
	run(nil, func(c *clientv3.Client) {
		w := c.Watch(t.Context(), "/", clientv3.WithPrefix())
		if got := put(t, c, "/first", "1", 0); got <= 3_000_000_000 {
			t.Errorf("the first write has revision %d", got)
		}
		events(t, w, 1)
	})
}

// late is where a server answers, but only after a while, however much it is asked meanwhile.
func late(t *testing.T, server string, after time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); all.Wait() }) // clients have closed their connections
	type chunk struct {
		due  time.Time
		data []byte
	}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp4", server)
			if err != nil {
				t.Error(err)
				_ = c.Close()
				return
			}
			all.Go(func() { _, _ = io.Copy(s, c); _ = s.Close() })
			answers := make(chan chunk, 1<<12)
			all.Go(func() {
				defer close(answers)
				for {
					b := make([]byte, 1<<16)
					n, err := s.Read(b)
					answers <- chunk{time.Now().Add(after), b[:n]}
					if err != nil {
						return
					}
				}
			})
			all.Go(func() {
				defer c.Close()
				for a := range answers { // to the end, so that who reads them ends
					time.Sleep(time.Until(a.due))
					_, _ = c.Write(a.data)
				}
			})
		}
	})
	return l.Addr().String()
}

func TestABucketPassesOverRevisionsHoweverLateTheServerAnswers(t *testing.T) {
	s, run := natsStore(t)
	run(nil, func(c *clientv3.Client) { put(t, c, "/kept", "as it was", 0) })
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	slow := *s
	slow.Endpoint = "nats://" + late(t, u.Host, 300*time.Millisecond)
	if err := slow.advanceNATS(t.Context(), 3*natsBatch); err != nil {
		t.Fatal(err)
	}
	run(nil, func(c *clientv3.Client) {
		r, err := c.Get(t.Context(), "/kept")
		if err != nil || len(r.Kvs) != 1 || r.Header.Revision < 3*natsBatch || r.Header.Revision > 3*natsBatch+10 {
			t.Errorf("%v, %v", r, err)
		}
	})
}

func TestKineStartsOnABucketOfWhichOnlyTheEndIsLeft(t *testing.T) {
	s, run := natsStore(t)
	run(nil, func(c *clientv3.Client) { put(t, c, "/a", "1", 0) })
	conn, bucket, err := s.nats()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "KV_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(5000)); err != nil {
		t.Fatal(err)
	}
	run(nil, func(c *clientv3.Client) {
		if got := put(t, c, "/a", "2", 0); got < 5000 {
			t.Errorf("the next write has revision %d", got)
		}
	})
}
