//go:build system

package system

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/applets/etcdcare/s3test"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/etcdcare"
)

// snapshotsInS3 configures a bucket on a node whose etcd has a schedule of every minute that keeps one, with the credentials from each of the three
// places. put and has write and check ConfigMaps.
func snapshotsInS3(t *testing.T, c *Cluster, put func(name, value string) int, has func(name, want string)) {
	far := s3test.Start(t, c.network(t).listen(t, "127.0.0.1:9000"), nil)
	const (
		credentials = "/etc/k1s/s3-credentials"
		folder      = "s3://" + s3test.Bucket + "/clusters/edge/server-0/"
	)
	environ := []string{"AWS_ACCESS_KEY_ID=" + s3test.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3test.SecretKey}
	c.put(t, far.CA(), "/etc/k1s/s3-ca.crt")
	c.put(t, []byte("[default]\naws_access_key_id = "+s3test.AccessKey+"\naws_secret_access_key = "+s3test.SecretKey+"\n"), credentials)
	c.in(within(t, limit), "chmod", "600", credentials).wants(t, 0)
	// from says where the credentials are, as fields of the configuration.
	from := func(fields string) {
		t.Helper()
		c.put(t, []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  etcd:\n    snapshots:\n      s3: {bucket: "+s3test.Bucket+", endpoint: 'https://127.0.0.1:9000', folder: clusters/edge, region: "+
			s3test.Region+", caFile: /etc/k1s/s3-ca.crt, pathStyle: true"+fields+"}\n"), "/etc/k1s/config.d/50-s3.yaml")
	}
	restarted := func() {
		t.Helper()
		was := c.running(t)
		kill(t, was.PID)
		c.otherDaemon(t, was)
	}
	// saves takes a snapshot that is here and in the bucket. A Secret is waited for for two seconds only, which a busy machine may take.
	saves := func(name string) {
		t.Helper()
		tried := 0
		eventually(t, limit, "a snapshot that is here and in S3", func(ctx context.Context) error {
			if tried++; tried > 1 {
				c.in(ctx, "k1s", "etcd", "snapshot", "rm", "--yes", name)
			}
			r := c.in(ctx, "k1s", "etcd", "snapshot", "save", name, "-o", "json")
			var s control.Snapshots
			if err := json.Unmarshal([]byte(r.out), &s); err != nil || r.code != 0 || len(s.Snapshots) != 2 || s.Snapshots[1].Where != folder+name+".db" {
				return fmt.Errorf("%v: %v", err, r)
			}
			return nil
		})
	}
	back := func(r result) {
		t.Helper()
		if r.failure != nil || !strings.Contains(r.out, "The state is that of ") {
			t.Fatalf("%v", r)
		}
	}

	inTurn(t, "with credentials in a file, by schedule, and one only", func(t *testing.T) {
		from(", credentialsFile: " + credentials)
		restarted()
		eventually(t, limit, "one snapshot by schedule, here and in S3", func(ctx context.Context) error {
			s, err := control.NewClient(c.where().ControlSocket).Snapshots(ctx)
			var here, there []string
			for _, e := range s.Snapshots {
				switch {
				case e.Kind != etcdcare.Scheduled || e.State != etcdcare.Complete:
				case e.S3():
					there = append(there, e.Name)
				default:
					here = append(here, e.Name)
				}
			}
			if err == nil && (len(there) != 1 || !slices.Equal(here, there)) {
				err = fmt.Errorf("here are %q, there %q, warnings %q", here, there, s.Warnings)
			}
			return err
		})
		saves("oldest")
		saves("older")
		put("value", "kept")
		saves("kept")
		put("value", "later")
		// Of those that somebody asked for the oldest goes, here and there, and what is known of it. One by schedule may have come since.
		c.in(within(t, limit), "k1s", "etcd", "snapshot", "prune", "--manual", "--keep", "2", "--yes").wants(t, 0)
		if there, err := far.Objects(); err != nil || !slices.Contains(there, "clusters/edge/server-0/kept.db") || slices.ContainsFunc(there, func(o string) bool { return strings.Contains(o, "oldest") }) {
			t.Errorf("the bucket has %q: %v", there, err)
		}
	})
	inTurn(t, "and come back while it runs", func(t *testing.T) {
		back(c.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", folder+"kept.db", "--yes"))
		c.running(t)
		has("value", "kept")
		c.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "s3://elsewhere/kept.db", "--yes").wants(t, 2, "in another bucket than the one that is configured")
	})
	inTurn(t, "with credentials in a Secret", func(t *testing.T) {
		c.kubectl(t, "-n", "kube-system", "create", "secret", "generic", "etcd-snapshots", "--from-literal=accessKey="+s3test.AccessKey, "--from-literal=secretKey="+s3test.SecretKey)
		from(", secret: etcd-snapshots")
		restarted()
		saves("by-secret")
	})
	inTurn(t, "with credentials in the environment, while nothing runs too", func(t *testing.T) {
		put("value", "latest")
		c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		offline := []string{"k1s", "etcd", "snapshot", "restore", folder + "kept.db", "--yes"}
		from(", secret: etcd-snapshots")
		c.in(within(t, limit), offline...).wants(t, 3, "cannot be read while the API does not run")
		from("")
		c.in(within(t, limit), offline...).wants(t, 2, "there are no credentials for S3", "AWS_ACCESS_KEY_ID")
		back(c.in(within(t, limit), append(append([]string{"env"}, environ...), offline...)...))
		stop := c.serves(t, environ...)
		c.running(t)
		has("value", "kept")
		saves("by-environment")
		stop()
		c.starts(t)
	})
	if r := c.in(within(t, limit), "sh", "-c", "grep -rlsF "+s3test.SecretKey+" /var/lib/k1s/log /run/k1s /etc/k1s"); strings.TrimSpace(r.out) != credentials {
		t.Errorf("the credentials are in %q %v", r.out, r.error())
	}
	if r := c.in(within(t, limit), "sh", "-c", "k1s config print && k1s status -o json && k1s etcd -o json"); r.code != 0 || strings.Contains(r.out+r.err, s3test.SecretKey) {
		t.Errorf("the credentials are told, or it fails: %v", r)
	}
}
