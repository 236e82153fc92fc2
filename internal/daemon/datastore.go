package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/supervise"
)

// resolveDatastore puts the DSN of spec.datastore.endpointFile into the configuration, where there is one.
func resolveDatastore(c *config.Config) error {
	const at = "spec.datastore.endpointFile"
	d := &c.Spec.Datastore
	if d.EndpointFile == "" {
		return nil
	}
	st, err := os.Stat(d.EndpointFile)
	if err != nil {
		return errs.Hint(errs.New(errs.Invalid, "reading the file of the datastore's URL (%s): %w", at, err), "write the URL into that file")
	}
	if st.Mode().Perm()&0o007 != 0 {
		return errs.Hint(errs.New(errs.Invalid, "%s (%s) can be read by everybody on this machine", d.EndpointFile, at), "run: chmod 600 %s", d.EndpointFile)
	}
	raw, err := os.ReadFile(d.EndpointFile)
	if err != nil {
		return errs.New(errs.Invalid, "reading the file of the datastore's URL (%s): %w", at, err)
	}
	dsn := config.DSN(strings.TrimSpace(string(raw)))
	if dsn == "" {
		return errs.Hint(errs.New(errs.Invalid, "%s (%s) is empty", d.EndpointFile, at), "write the URL into that file")
	}
	if err := dsn.Check(); err != nil {
		hint, _ := errs.HintOf(err)
		return errs.Hint(errs.New(errs.Invalid, "%s (%s) %w", d.EndpointFile, at, err), "%s", hint)
	}
	d.Endpoint = dsn
	return nil
}

// datastoreID reads what the database is reached with, and identifies all of it without telling it. "" is for
// datastores of ours.
func datastoreID(d config.Datastore) (string, error) {
	if !d.Endpoint.Engine().External() {
		return "", nil
	}
	if _, err := datastoreTLS(d); err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q", d.Endpoint.Reveal())
	for _, file := range []string{d.CAFile, d.CertFile, d.KeyFile} {
		if file == "" {
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q%q", file, raw)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// datastoreTLS is how to speak with the database, nil for the defaults.
func datastoreTLS(d config.Datastore) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if d.CAFile != "" {
		raw, err := os.ReadFile(d.CAFile)
		if err != nil {
			return nil, errs.Hint(errs.New(errs.Invalid, "reading the certificate authority of the datastore (spec.datastore.caFile): %w", err),
				"copy it there, or correct the path")
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(raw) {
			return nil, errs.Hint(errs.New(errs.Invalid, "%s (spec.datastore.caFile) has no certificate in it", d.CAFile), "it has to be PEM: -----BEGIN CERTIFICATE-----")
		}
	}
	if d.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(d.CertFile, d.KeyFile)
		if err != nil {
			return nil, errs.Hint(errs.New(errs.Invalid, "reading the client certificate for the datastore (spec.datastore.certFile, keyFile): %w", err),
				"both have to be PEM and belong to each other")
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// writeDatastore hands the DSN to kine, in a file of its own: it is in no Spec.
func writeDatastore(in component.Input) error {
	// What an earlier kine said may not be true any more; one that runs on says it again while it is.
	if err := removeIfThere(in.Paths.DatastoreStatus()); err != nil {
		return err
	}
	engine := components.Engine(in)
	if !engine.External() || !engine.Kine() {
		return removeIfThere(in.Paths.Datastore())
	}
	if err := writeIfChanged(in.Paths.Datastore(), []byte(in.Config.Spec.Datastore.Endpoint.Reveal()+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the datastore's URL for kine: %w", err)
	}
	return nil
}

func removeIfThere(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// datastoreProblems are what kine says about a database of others.
func datastoreProblems(in component.Input) []health.Problem {
	engine := components.Engine(in)
	if !engine.External() || !engine.Kine() {
		return nil
	}
	var report struct {
		Problems []health.Problem `json:"problems"`
	}
	if err := readStatusFile(in.Paths.DatastoreStatus(), &report); err != nil {
		return []health.Problem{health.FromError(err, health.DatabaseAway, "kine")}
	}
	return report.Problems
}

// reasons tells of components that wait for the database what is the matter with it.
func reasons(all []supervise.Status, problems []health.Problem) {
	ofDatabase := []health.Code{health.DatabaseAway, health.DatabaseRefuses, health.DatabaseHalf, health.DatabaseLeft}
	for i, c := range all {
		for _, p := range problems {
			if slices.Contains(ofDatabase, p.Code) && c.Component == p.Component && c.State != supervise.Ready {
				all[i].Reason = p.Text
			}
		}
	}
}

// How often an external etcd is asked while the API server is not ready, and for how long.
const (
	askEtcdEvery = 2 * time.Second
	askEtcdFor   = 5 * time.Second
)

// watchEtcd finds out why the API server does not get on with an etcd of others: the API server itself waits
// for it without a word, and then ends.
func (d *Daemon) watchEtcd(ctx context.Context) {
	tick := time.NewTicker(askEtcdEvery)
	defer tick.Stop()
	for {
		d.mu.Lock()
		c := d.in.Config.Spec.Datastore // it may be moved
		d.mu.Unlock()
		var problems []health.Problem
		if c.Endpoint.Engine() == config.ExternalEtcd {
			problems = d.askEtcd(ctx, c)
		}
		d.board.Report("datastore", problems)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *Daemon) askEtcd(ctx context.Context, c config.Datastore) []health.Problem {
	for _, s := range d.sup.Snapshot() {
		if s.Component == "kube-apiserver" && s.State == supervise.Ready {
			return nil
		}
	}
	conf, err := datastoreTLS(c) // anew: it may have been corrected
	if err != nil {
		return []health.Problem{health.FromError(err, health.DatabaseRefuses, "kube-apiserver")}
	}
	transport := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeoutCause(ctx, askEtcdFor, fmt.Errorf("no answer within %s", askEtcdFor))
	defer cancel()
	var failures []error
	for _, server := range c.Endpoint.URLs() {
		if err := etcdHealth(ctx, &http.Client{Transport: transport}, server); err == nil {
			return nil
		} else if ctx.Err() == nil || len(failures) == 0 {
			failures = append(failures, err)
		}
	}
	return []health.Problem{etcdProblem(errors.Join(failures...))}
}

func etcdHealth(ctx context.Context, client *http.Client, server string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s says of itself that it is not healthy: %s", server, resp.Status)
	}
	return nil
}

// etcdProblem is what an error of asking means.
func etcdProblem(err error) health.Problem {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var alert tls.AlertError
	switch {
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &name):
		return health.New(health.DatabaseRefuses, "etcd's certificate is not trusted: %s", text).Of("kube-apiserver").
			Fix("set spec.datastore.caFile to the authority that issued it, and name the server as in the certificate")
	case errors.As(err, &alert), strings.Contains(text, "remote error: tls:"):
		return health.New(health.DatabaseRefuses, "etcd does not accept our certificate: %s", text).Of("kube-apiserver").
			Fix("set spec.datastore.certFile and keyFile to a client certificate that etcd trusts")
	case errors.Is(err, http.ErrSchemeMismatch):
		return health.New(health.DatabaseRefuses, "etcd does not speak TLS there: %s", text).Of("kube-apiserver").Fix("write http:// in spec.datastore.endpoint, or turn TLS on in etcd")
	}
	return health.New(health.DatabaseAway, "etcd does not answer: %s", text).Of("kube-apiserver")
}
