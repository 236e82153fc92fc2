package etcdcare

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
)

// bucket is where snapshots are in S3: FOLDER/NODE/NAME.db, and what is known of each beside it.
type bucket struct {
	c            *minio.Client
	name, folder string
	endpoint     string
}

const (
	dialTime   = 10 * time.Second
	headerTime = 30 * time.Second // from the end of a request to the begin of its answer
	s3Tries    = 3
)

// cutS3 is the key of an object by its place.
func cutS3(where string) (key string, ok bool) {
	rest, ok := strings.CutPrefix(where, etcdcare.S3Scheme)
	if ok {
		_, rest, _ = strings.Cut(rest, "/")
	}
	return rest, ok
}

// openBucket does not connect yet.
func openBucket(s etcdcare.S3) (*bucket, error) {
	if s.Bucket == "" {
		return nil, errs.Hint(errs.New(errs.Invalid, "no bucket is configured"), "set spec.etcd.snapshots.s3.bucket, and the endpoint")
	}
	endpoint, secure := strings.TrimSuffix(cmp.Or(s.Endpoint, "s3.amazonaws.com"), "/"), true
	if rest, ok := strings.CutPrefix(endpoint, "http://"); ok {
		endpoint, secure = rest, false
	}
	endpoint = strings.TrimPrefix(endpoint, "https://")
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		raw, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, errs.Hint(errs.New(errs.Invalid, "reading the certificate authority of S3 (spec.etcd.snapshots.s3.caFile): %w", err), "copy it there, or correct the path")
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(raw) {
			return nil, errs.Hint(errs.New(errs.Invalid, "%s (spec.etcd.snapshots.s3.caFile) has no certificate in it", s.CAFile), "it has to be PEM: -----BEGIN CERTIFICATE-----")
		}
	}
	creds, err := credentialsOf(s)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: dialTime}
	o := &minio.Options{Creds: creds, Secure: secure, Region: s.Region, MaxRetries: s3Tries, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: conf,
		TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: headerTime, DisableCompression: true,
	}}
	if s.PathStyle {
		o.BucketLookup = minio.BucketLookupPath
	}
	c, err := minio.New(endpoint, o)
	if err != nil {
		return nil, errs.Hint(errs.New(errs.Invalid, "the endpoint of S3, %q, cannot be used: %w", endpoint, err), "it is HOST or HOST:PORT, e.g. s3.eu-central-1.amazonaws.com")
	}
	return &bucket{c: c, name: s.Bucket, folder: strings.Trim(s.Folder, "/"), endpoint: endpoint}, nil
}

func credentialsOf(s etcdcare.S3) (*credentials.Credentials, error) {
	if s.AccessKey != "" {
		return credentials.NewStaticV4(s.AccessKey, s.SecretKey, s.SessionToken), nil
	}
	creds := credentials.NewEnvAWS()
	if s.CredentialsFile != "" {
		st, err := os.Stat(s.CredentialsFile)
		if err != nil {
			return nil, errs.Hint(errs.New(errs.Invalid, "reading the credentials for S3 (spec.etcd.snapshots.s3.credentialsFile): %w", err), "write them there, as in ~/.aws/credentials")
		}
		if st.Mode().Perm()&0o007 != 0 {
			return nil, errs.Hint(errs.New(errs.Invalid, "%s (spec.etcd.snapshots.s3.credentialsFile) can be read by everybody on this machine", s.CredentialsFile), "run: chmod 600 %s", s.CredentialsFile)
		}
		creds = credentials.NewFileAWSCredentials(s.CredentialsFile, "")
	}
	v, err := creds.GetWithContext(nil)
	if err != nil { // of the file; it may quote it
		return nil, errs.Hint(errs.New(errs.Invalid, "the credentials for S3 in %s cannot be read", s.CredentialsFile), "they are as in ~/.aws/credentials: [default], aws_access_key_id = …, aws_secret_access_key = …")
	}
	if v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return nil, errs.Hint(errs.New(errs.Invalid, "there are no credentials for S3"),
			"name a file (spec.etcd.snapshots.s3.credentialsFile) or a Secret (spec.etcd.snapshots.s3.secret), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where k1s runs")
	}
	return creds, nil
}

func (b *bucket) where(key string) string { return etcdcare.S3Scheme + b.name + "/" + key }

// upload copies a snapshot, what is known of it first.
func (b *bucket) upload(ctx context.Context, s etcdcare.Snapshot, file string, meta []byte) (etcdcare.Entry, error) {
	base := path.Join(b.folder, s.Node, s.Name)
	e := etcdcare.Entry{Snapshot: s, Where: b.where(base + etcdcare.FileEnd), State: etcdcare.Complete}
	if _, err := b.c.PutObject(ctx, b.name, base+etcdcare.MetaEnd, bytes.NewReader(meta), int64(len(meta)), minio.PutObjectOptions{ContentType: "application/json"}); err != nil {
		return e, b.explain(ctx, err)
	}
	return e, b.put(ctx, base+etcdcare.FileEnd, file)
}

// put writes a file, which is there when all of it is.
func (b *bucket) put(ctx context.Context, key, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := b.c.PutObject(ctx, b.name, key, f, st.Size(), minio.PutObjectOptions{ContentType: "application/octet-stream"}); err != nil {
		return b.explain(ctx, err)
	}
	there, err := b.c.StatObject(ctx, b.name, key, minio.StatObjectOptions{})
	if err == nil && there.Size != st.Size() {
		err = fmt.Errorf("%d bytes were written, and %d are there", st.Size(), there.Size)
	}
	return b.explain(ctx, err)
}

// list lists the snapshots of all nodes. Of their contents only the size is compared.
func (b *bucket) list(ctx context.Context) ([]etcdcare.Entry, error) {
	prefix := ""
	if b.folder != "" {
		prefix = b.folder + "/"
	}
	// Ends the listing's goroutine with this function.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	objects := map[string]minio.ObjectInfo{}
	var bases []string
	for o := range b.c.ListObjects(ctx, b.name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, b.explain(ctx, o.Err)
		}
		base := cutEnds(o.Key)
		if base == o.Key {
			continue
		}
		if _, known := objects[base+etcdcare.FileEnd]; !known {
			if _, known = objects[base+etcdcare.MetaEnd]; !known {
				bases = append(bases, base)
			}
		}
		objects[o.Key] = o
	}
	var out []etcdcare.Entry
	for _, base := range bases {
		if path.Dir(path.Dir(base)) != path.Clean(b.folder) {
			continue // it is somebody else's
		}
		e, err := b.entry(ctx, base, objects)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// look is what there is to be known of one object.
func (b *bucket) look(ctx context.Context, key string) (etcdcare.Entry, error) {
	base, objects := cutEnds(key), map[string]minio.ObjectInfo{}
	for _, end := range []string{etcdcare.FileEnd, etcdcare.MetaEnd} {
		st, err := b.c.StatObject(ctx, b.name, base+end, minio.StatObjectOptions{})
		switch {
		case err == nil:
			objects[base+end] = st
		case minio.ToErrorResponse(err).StatusCode != http.StatusNotFound:
			return etcdcare.Entry{}, b.explain(ctx, err)
		}
	}
	if len(objects) == 0 {
		return etcdcare.Entry{}, errs.Hint(errs.New(errs.NotFound, "there is no %s", b.where(key)), "see: k1s etcd snapshot ls")
	}
	return b.entry(ctx, base, objects)
}

func (b *bucket) entry(ctx context.Context, base string, objects map[string]minio.ObjectInfo) (etcdcare.Entry, error) {
	e := etcdcare.Entry{Where: b.where(base + etcdcare.FileEnd), State: etcdcare.Complete}
	file, whole := objects[base+etcdcare.FileEnd]
	if info, ok := objects[base+etcdcare.MetaEnd]; ok {
		e.At = info.LastModified.UTC()
		raw, err := b.small(ctx, base+etcdcare.MetaEnd)
		if err != nil {
			return e, b.explain(ctx, err)
		}
		if err := unmarshalMeta(raw, &e.Snapshot); err != nil {
			e.State, e.Problem = etcdcare.Corrupt, err.Error()
		}
	} else {
		e.State, e.Problem = etcdcare.Bare, "there is no "+path.Base(base)+etcdcare.MetaEnd+" beside it, so nothing is known of its cluster"
		e.Kind, e.At, e.Bytes = etcdcare.Manual, file.LastModified.UTC(), file.Size
	}
	e.Name = path.Base(base)
	switch {
	case !whole:
		e.State, e.Problem = etcdcare.Unfinished, "it is being written, or its writing broke off"
	case e.State == etcdcare.Complete && file.Size != e.Bytes:
		e.State, e.Problem = etcdcare.Corrupt, fmt.Sprintf("it has %d bytes and should have %d", file.Size, e.Bytes)
	}
	return e, nil
}

// maxMeta is more than what is known of a snapshot takes.
const maxMeta = 1 << 20

func (b *bucket) small(ctx context.Context, key string) ([]byte, error) {
	o, err := b.c.GetObject(ctx, b.name, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return io.ReadAll(io.LimitReader(o, maxMeta))
}

// download writes an object to a file.
func (b *bucket) download(ctx context.Context, key, file string) error {
	o, err := b.c.GetObject(ctx, b.name, key, minio.GetObjectOptions{})
	if err != nil {
		return b.explain(ctx, err)
	}
	defer o.Close()
	if err := write(file, o); err != nil {
		return b.explain(ctx, err)
	}
	return nil
}

// remove removes a snapshot, and what is known of it last.
func (b *bucket) remove(ctx context.Context, key string) error {
	base := cutEnds(key)
	if err := b.c.RemoveIncompleteUpload(ctx, b.name, base+etcdcare.FileEnd); err != nil && minio.ToErrorResponse(err).StatusCode != http.StatusNotFound {
		return b.explain(ctx, err)
	}
	for _, end := range []string{etcdcare.FileEnd, etcdcare.MetaEnd} {
		if err := b.c.RemoveObject(ctx, b.name, base+end, minio.RemoveObjectOptions{}); err != nil {
			return b.explain(ctx, err)
		}
	}
	return nil
}

// explain says what an error of S3 means. It never repeats credentials; S3's own messages do not either.
func (b *bucket) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		dial    *net.OpError
	)
	answer := minio.ToErrorResponse(err)
	switch {
	case errors.As(err, &unknown), errors.As(err, &name), errors.As(err, &invalid):
		return errs.Hint(fmt.Errorf("the certificate of %s is not trusted: %w", b.endpoint, err), "set spec.etcd.snapshots.s3.caFile to the authority that issued it, and name the server as in the certificate")
	case errors.Is(err, http.ErrSchemeMismatch):
		return errs.Hint(fmt.Errorf("%s does not speak TLS", b.endpoint), "write http:// before it in spec.etcd.snapshots.s3.endpoint, or turn TLS on there")
	case errors.As(err, &dial):
		return errs.Hint(fmt.Errorf("%s does not answer: %w", b.endpoint, err), "correct spec.etcd.snapshots.s3.endpoint, or see that it can be reached from here")
	case answer.Code == "NoSuchBucket":
		return errs.Hint(errs.New(errs.NotFound, "there is no bucket %q at %s", b.name, b.endpoint), "make it, or correct spec.etcd.snapshots.s3.bucket")
	case answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusUnauthorized:
		return errs.Hint(errs.New(errs.Denied, "%s does not accept the credentials for the bucket %q: %s", b.endpoint, b.name, cmp.Or(answer.Code, answer.Message)), "correct the credentials, or what they may do")
	}
	return fmt.Errorf("asking %s: %w", b.endpoint, err)
}
