// Package s3test is an S3 server in memory for tests. It has TLS with a certificate of its own, one bucket and one user, and checks
// the signature of every request as Amazon does. Used by the tests of package etcdcare and of the system.
package s3test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// What clients have to know.
const (
	AccessKey = "AKIAEXAMPLE"
	SecretKey = "tops3cret"
	Bucket    = "snapshots"
	Region    = "us-east-1"
)

// Server is one. Its URL begins with https://.
type Server struct {
	*httptest.Server
	backend gofakes3.Backend
}

// Start starts one that ends with the test. It listens at l, or at a free port of 127.0.0.1 for nil; its certificate is
// for 127.0.0.1. before sees every request whose signature is right, and answers it itself if it returns true; it may be nil.
func Start(t testing.TB, l net.Listener, before func(http.ResponseWriter, *http.Request) bool) *Server {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(Bucket); err != nil {
		t.Fatal(err)
	}
	inner := gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server() // it knows no credentials itself
	s := &Server{backend: backend}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code, err := signed(r); err != nil {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `<Error><Code>%s</Code><Message>%v</Message></Error>`, code, err)
			return
		}
		if before == nil || !before(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	if l != nil {
		if err := s.Listener.Close(); err != nil {
			t.Fatal(err)
		}
		s.Listener = l
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// CA is what clients have to trust, as PEM.
func (s *Server) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// Objects are the names of all that the bucket has, in their order.
func (s *Server) Objects() ([]string, error) {
	list, err := s.backend.ListBucket(Bucket, nil, gofakes3.ListBucketPage{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, o := range list.Contents {
		out = append(out, o.Key)
	}
	slices.Sort(out)
	return out, nil
}

// signed checks the signature of version 4 that is in a request's headers, and returns S3's code for what is wrong with it. See
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html (2026-11). That a body is what its hash
// says is not checked.
func signed(r *http.Request) (code string, err error) {
	const algorithm = "AWS4-HMAC-SHA256"
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), algorithm+" ")
	if !ok {
		return "AccessDenied", errors.New("there is no signature")
	}
	fields := map[string]string{}
	for f := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(f), "=")
		fields[k] = v
	}
	user, scope, _ := strings.Cut(fields["Credential"], "/")
	of := strings.Split(scope, "/") // day, region, service, aws4_request
	if user != AccessKey {
		return "InvalidAccessKeyId", errors.New("The access key ID does not exist.")
	}
	if len(of) != 4 || of[1] != Region || of[2] != "s3" {
		return "AuthorizationHeaderMalformed", fmt.Errorf("the scope is %q", scope)
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	canonical := []string{r.Method, path, strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20")}
	names := strings.Split(fields["SignedHeaders"], ";")
	if !slices.Contains(names, "host") || !slices.Contains(names, "x-amz-date") || !slices.IsSorted(names) {
		return "AuthorizationHeaderMalformed", fmt.Errorf("signed are %q", names)
	}
	for _, name := range names {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		}
		canonical = append(canonical, name+":"+strings.TrimSpace(value))
	}
	canonical = append(canonical, "", fields["SignedHeaders"], r.Header.Get("X-Amz-Content-Sha256"))
	sum := sha256.Sum256([]byte(strings.Join(canonical, "\n")))
	key := []byte("AWS4" + SecretKey)
	for _, part := range append(of, strings.Join([]string{algorithm, r.Header.Get("X-Amz-Date"), scope, hex.EncodeToString(sum[:])}, "\n")) {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(part)) // a hash takes everything
		key = m.Sum(nil)
	}
	if got, err := hex.DecodeString(fields["Signature"]); err != nil || !hmac.Equal(got, key) {
		return "SignatureDoesNotMatch", errors.New("The request signature we calculated does not match the signature you provided.")
	}
	return "", nil
}
