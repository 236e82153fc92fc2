//go:build system

package system

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// The whole way: 127.0.0.1, forwarder, node port, front, DNS, headless service, store, volume.
func TestAnApplicationOfTwoTiersKeepsItsDataWhenItsPodsAreDeleted(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "guestbook")
	s.apply(t, "guestbook.yaml")
	s.rolledOut(t, "deployment/front", "statefulset/store")
	url := fmt.Sprintf("http://127.0.0.1:%d/cgi-bin/visit", s.ports[frontNodePort])
	// The name of a headless service leads to a new pod only some time after it is ready; till then the front says 503 and counts
	// nothing. What it does answer must be right the first time.
	visit := func(want string) {
		t.Helper()
		var body string
		eventually(t, limit, "the front to reach its store", func(ctx context.Context) error {
			var code int
			var err error
			code, body, err = get(ctx, url)
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("answer %d %q", code, body)
			}
			return err
		})
		if body != want {
			t.Fatalf("%s answers %q, want %q", url, body, want)
		}
	}
	visit("visit 1")
	visit("visit 2")
	if phase := s.kubectl(t, "get", "pvc", "data-store-0", "-o", "jsonpath={.status.phase} {.spec.storageClassName}"); phase != "Bound local-path" {
		t.Errorf("the volume claim is %q", phase)
	}
	uid := s.kubectl(t, "get", "pod", "store-0", "-o", "jsonpath={.metadata.uid}")
	s.kubectl(t, "delete", "pods", "--all")
	s.untilOutput(t, limit, "another store-0 to be ready", func(out string) bool { return strings.HasSuffix(out, " True") && !strings.HasPrefix(out, uid) },
		"get", "pod", "store-0", "-o", `jsonpath={.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}`)
	s.rolledOut(t, "deployment/front", "statefulset/store")
	visit("visit 3")

	// The data goes with the claim.
	volume := s.kubectl(t, "get", "pvc", "data-store-0", "-o", "jsonpath={.spec.volumeName}")
	s.kubectl(t, "delete", "statefulset/store")
	s.kubectl(t, "delete", "pvc/data-store-0")
	eventually(t, limit, "the volume to be removed", func(ctx context.Context) error {
		r := s.try(ctx, "get", "pv", volume)
		if r.failure == nil || !strings.Contains(r.err, "NotFound") {
			return fmt.Errorf("it is still there: %v", r)
		}
		return nil
	})
	if r := s.in(within(t, limit), "sh", "-c", "ls -d /var/lib/k1s/storage/*"+volume+"*"); r.failure == nil {
		t.Errorf("its directory is still there: %s", r.out)
	}
}
