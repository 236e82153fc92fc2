// Command registry is a container registry for the system tests: the real one of the distribution project,
// with TLS and one user, that keeps images in memory and ends with its standard input. It is a module of its
// own because what it needs would move versions of what k1s is made from.
//
//	registry -listen 127.0.0.1:5000 -cert FILE -key FILE -user NAME -password WORD
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"golang.org/x/crypto/bcrypt"
)

type options struct{ listen, cert, key, user, password string }

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:5000", "address to serve at")
	flag.StringVar(&o.cert, "cert", "", "certificate file")
	flag.StringVar(&o.key, "key", "", "its key")
	flag.StringVar(&o.user, "user", "", "who may pull and push")
	flag.StringVar(&o.password, "password", "", "and the password")
	flag.Parse()
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // whatever ends it
		stop()
	}()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "k1s-test-registry-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	hash, err := bcrypt.GenerateFromPassword([]byte(o.password), bcrypt.MinCost)
	if err != nil {
		return err
	}
	users := filepath.Join(dir, "htpasswd")
	if err := os.WriteFile(users, fmt.Appendf(nil, "%s:%s\n", o.user, hash), 0o600); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", o.listen)
	if err != nil {
		return err
	}
	var c configuration.Configuration
	c.Storage = configuration.Storage{"inmemory": nil}
	c.Auth = configuration.Auth{"htpasswd": {"realm": "test", "path": users}}
	c.Catalog.MaxEntries = 100
	srv := &http.Server{
		Handler:           handlers.NewApp(ctx, &c),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}},
		ReadHeaderTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(l, "", "") }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	err = srv.Close()
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}
