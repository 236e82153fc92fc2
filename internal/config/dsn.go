package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"regexp"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// DSN names a datastore: sqlite, etcd, or the URL of a database. The URL may hold a password, so printed with
// any verb, logged, or encoded it shows neither user nor parameters; only Reveal gives it whole.
type DSN string

// Engine is what answers at a DSN.
type Engine string

// The engines.
const (
	SQLite       Engine = "sqlite"
	EmbeddedEtcd Engine = "etcd"          // started by us
	ExternalEtcd Engine = "external etcd" // used by the API server directly
	Postgres     Engine = "PostgreSQL"
	MySQL        Engine = "MySQL"
	NATS         Engine = "NATS"
)

// External tells that somebody else runs it.
func (e Engine) External() bool { return e != SQLite && e != EmbeddedEtcd }

// Kine tells that it is reached through kine.
func (e Engine) Kine() bool { return e != EmbeddedEtcd && e != ExternalEtcd }

var engineOf = map[string]Engine{
	"postgres": Postgres, "postgresql": Postgres, "mysql": MySQL, "nats": NATS, "http": ExternalEtcd, "https": ExternalEtcd,
}

// endpoints are what may stand in spec.datastore.endpoint, as people see it.
var endpoints = []string{"sqlite", "etcd", "https://…", "postgres://…", "mysql://…", "nats://…"}

// Engine is what the DSN names; SQLite where that cannot be told.
func (d DSN) Engine() Engine {
	scheme, _, isURL := strings.Cut(string(d), "://")
	switch {
	case d == "etcd":
		return EmbeddedEtcd
	case isURL && engineOf[scheme] != "":
		return engineOf[scheme]
	default:
		return SQLite
	}
}

// Reveal is the whole of it.
func (d DSN) Reveal() string { return string(d) }

// HasPassword tells that it holds what must not be shown to others; where that cannot be told it does.
func (d DSN) HasPassword() bool {
	_, rest, isURL := strings.Cut(string(d), "://")
	if !isURL {
		return d.String() == redacted
	}
	if d.Engine() == MySQL {
		address, _, found := cutLast(rest, "/")
		_, user, _ := mysqlServer(address)
		return !found || strings.Contains(user, ":")
	}
	for _, one := range strings.Split(string(d), ",") {
		u, err := url.Parse(one)
		if err != nil {
			return true
		}
		_, password := u.User.Password()
		if token := d.Engine() == NATS && u.User != nil; password || token || u.Query().Has("password") || u.Query().Has("sslpassword") {
			return true
		}
	}
	return false
}

// mysqlServer is the address in what stands before the database of a MySQL DSN, and who asks, if that is there.
func mysqlServer(s string) (address, user string, hasUser bool) {
	if user, address, ok := cutLast(s, "@"); ok {
		return address, user, true
	}
	return s, "", false
}

var shownServers = regexp.MustCompile(`^[-A-Za-z0-9_.:,()/\[\]]*$`)

// String is the DSN without user, password and parameters.
func (d DSN) String() string {
	scheme, rest, isURL := strings.Cut(string(d), "://")
	if !isURL {
		if d == "sqlite" || d == "etcd" || d == "" {
			return string(d)
		}
		return redacted // nobody knows what it was meant to be
	}
	show := func(server string, hidden bool) string {
		switch {
		case !shownServers.MatchString(server):
			return scheme + "://" + redacted
		case hidden:
			return scheme + "://" + redacted + "@" + server
		default:
			return scheme + "://" + server
		}
	}
	if d.Engine() == MySQL {
		// As its driver reads it: the last slash ends the address, the last @ before it the user.
		address, database, found := cutLast(rest, "/")
		if !found {
			return scheme + "://" + redacted
		}
		address, _, user := mysqlServer(address)
		database, _, query := strings.Cut(database, "?")
		return show(address+"/"+database, user || query)
	}
	var all []string
	for _, one := range strings.Split(string(d), ",") {
		u, err := url.Parse(one)
		if err != nil || u.Opaque != "" || u.Host == "" && u.Path != "" {
			return scheme + "://" + redacted
		}
		all = append(all, show(u.Host+u.Path, u.User != nil || u.RawQuery != "" || u.Fragment != ""))
	}
	return strings.Join(all, ",")
}

// Format prints String for every verb.
func (d DSN) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, d.String()) }

// MarshalText serves encoding/json and most other encoders.
func (d DSN) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// MarshalYAML serves the YAML encoder.
func (d DSN) MarshalYAML() (any, error) { return d.String(), nil }

// LogValue serves slog.
func (d DSN) LogValue() slog.Value { return slog.StringValue(d.String()) }

var mysqlAddress = regexp.MustCompile(`^(tcp\([^()]+\)|unix\(/[^()]+\))$`)

// Check says what is wrong with a DSN, without repeating what could be secret. The error may carry a hint.
func (d DSN) Check() error {
	scheme, rest, isURL := strings.Cut(string(d), "://")
	engine, known := engineOf[scheme]
	switch {
	case d == "sqlite" || d == "etcd":
		return nil
	case !isURL && strings.ContainsAny(string(d), ":@/"):
		return errs.Hint(fmt.Errorf("is no datastore"), "write %s", oneOf(endpoints))
	case !isURL:
		err := fmt.Errorf("is %q, and must be %s", shorten(string(d)), oneOf(endpoints))
		if near := nearest(string(d), []string{"sqlite", "etcd"}); near != "" {
			return errs.Hint(err, "did you mean %q?", near)
		}
		return err
	case !known:
		err := fmt.Errorf("%s:// is no datastore", shorten(scheme))
		switch near := nearest(scheme, []string{"postgres", "postgresql", "mysql", "nats", "https", "http"}); {
		case scheme == "mariadb":
			return errs.Hint(err, "did you mean mysql://?")
		case scheme == "sqlite":
			return errs.Hint(err, "write sqlite alone: the file is %s below the data directory", "db/state.db")
		case scheme == "etcd" || scheme == "etcds":
			return errs.Hint(err, "an etcd of yours is https://HOST:2379, one that k1s runs is etcd")
		case near != "":
			return errs.Hint(err, "did you mean %s://?", near)
		}
		return errs.Hint(err, "write %s", oneOf(endpoints))
	case strings.ContainsAny(rest, " \t\r\n"):
		return errs.Hint(fmt.Errorf("contains a space or a line break"), "in a password write %%20 for a space")
	case engine == MySQL:
		return d.checkMySQL(rest)
	}
	return d.checkURLs(engine)
}

func (d DSN) checkMySQL(rest string) error {
	const want = "for example mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE"
	address, _, found := cutLast(rest, "/")
	if !found {
		return errs.Hint(fmt.Errorf("names no database of MySQL"), want)
	}
	address, _, _ = mysqlServer(address)
	if !mysqlAddress.MatchString(address) {
		return errs.Hint(fmt.Errorf("has no address of MySQL: that is tcp(HOST:PORT) or unix(/SOCKET)"), want)
	}
	return nil
}

func (d DSN) checkURLs(engine Engine) error {
	all := strings.Split(string(d), ",")
	if engine == Postgres { // a comma may be part of its password
		all = []string{string(d)}
	}
	for _, one := range all {
		u, err := url.Parse(one)
		if err != nil { // the error repeats it
			return errs.Hint(fmt.Errorf("is no valid URL"), "in user and password write %%40 for @, %%2F for /, %%3A for :, %%23 for #, %%3F for ? and %%25 for %%")
		}
		switch {
		case engineOf[u.Scheme] != engine:
			return errs.Hint(fmt.Errorf("names several servers, and one of them is not of the same kind"), "every one of them needs its scheme: https://A:2379,https://B:2379")
		case u.Hostname() == "" && u.Query().Get("host") == "":
			return fmt.Errorf("names no server")
		case engine == ExternalEtcd && u.User != nil:
			return errs.Hint(fmt.Errorf("has a user, and etcd is told by a certificate who asks"), "set spec.datastore.certFile and spec.datastore.keyFile")
		case engine == ExternalEtcd && (u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != ""):
			return errs.Hint(fmt.Errorf("has something behind the server of etcd"), "the prefix of keys is set with spec.components.kube-apiserver.args.etcd-prefix")
		case engine == ExternalEtcd && u.Port() == "":
			return errs.Hint(fmt.Errorf("has no port"), "etcd's is 2379")
		}
	}
	return nil
}

// URLs are the servers of an external etcd.
func (d DSN) URLs() []string {
	var out []string
	for _, one := range strings.Split(string(d), ",") {
		out = append(out, strings.TrimSuffix(one, "/"))
	}
	return out
}

// datastore checks what the configuration alone tells; files are looked at when they are used.
func (c *checker) datastore(d Datastore) {
	const at = "spec.datastore.endpoint"
	inFile := d.EndpointFile != ""
	switch err := d.Endpoint.Check(); {
	case err != nil:
		c.bad(at, hintOf(err), "%v", err)
	case inFile && d.Endpoint != "sqlite":
		c.bad("spec.datastore.endpointFile", "leave one of them out", "is set beside %s", at)
	case d.Endpoint.HasPassword() && c.known.Origins.Of(at).Kind == FromFlag:
		c.bad(at, "put the URL into a file and name that with spec.datastore.endpointFile", "has a password, and a command line can be read by everybody on this machine")
	}
	files := map[string]string{"caFile": d.CAFile, "certFile": d.CertFile, "keyFile": d.KeyFile, "endpointFile": d.EndpointFile}
	tls := d.CAFile != "" || d.CertFile != "" || d.KeyFile != ""
	for _, name := range []string{"endpointFile", "caFile", "certFile", "keyFile"} {
		if files[name] != "" {
			c.file("spec.datastore."+name, files[name])
		}
	}
	switch {
	case !inFile && !d.Endpoint.Engine().External(): // nothing to use them for
	case d.CertFile != "" && d.KeyFile == "":
		c.bad("spec.datastore.certFile", "set spec.datastore.keyFile too", "has no key")
	case d.KeyFile != "" && d.CertFile == "":
		c.bad("spec.datastore.keyFile", "set spec.datastore.certFile too", "has no certificate")
	case tls && strings.HasPrefix(string(d.Endpoint), "http://"):
		c.bad(at, "write https://", "does not use TLS, and certificates are set for it")
	}
}
