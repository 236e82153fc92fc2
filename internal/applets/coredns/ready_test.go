package coredns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// asked is the answer to one question, over a real connection.
func asked(t *testing.T, ctx context.Context, url string) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/ready", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestAQuestionIsHeldUntilCoreDNSIsReady(t *testing.T) {
	// The plugin is not there at first, then it says no, then yes.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var looks atomic.Int32
	plugin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if looks.Add(1) < 3 {
			http.Error(w, "kubernetes", http.StatusServiceUnavailable)
		}
	})}
	t.Cleanup(func() { plugin.Close() })
	var refused atomic.Int32
	ask := asksPlugin("http://" + addr + "/ready")
	srv := httptest.NewServer(held(time.Minute, func(ctx context.Context) error {
		err := ask(ctx)
		if err != nil && looks.Load() == 0 && refused.Add(1) == 2 { // twice it was not there
			if l, err = net.Listen("tcp", addr); err != nil {
				t.Error(err)
				return err
			}
			go plugin.Serve(l) //nolint:errcheck // closed at the end
			return errors.New("it is there from now on")
		}
		return err
	}))
	t.Cleanup(srv.Close)
	code, body, err := asked(t, t.Context(), srv.URL)
	if err != nil || code != http.StatusOK || looks.Load() != 3 || refused.Load() != 2 {
		t.Errorf("%d %q %v after %d looks, %d refused", code, body, err, looks.Load(), refused.Load())
	}
}

func TestWhoIsNeverReadyIsSaidWhyAndStrangersAreFew(t *testing.T) {
	ctx, giveUp := context.WithCancel(t.Context())
	var holding atomic.Int32
	full := make(chan struct{})
	srv := httptest.NewServer(held(time.Millisecond, func(context.Context) error {
		if holding.Add(1) == holdAtOnce {
			close(full)
		}
		<-ctx.Done()
		return errors.New("kubernetes")
	}))
	t.Cleanup(srv.Close)
	answers := make(chan string, holdAtOnce)
	for range holdAtOnce {
		go func() {
			_, body, _ := asked(t, t.Context(), srv.URL)
			answers <- body
		}()
	}
	<-full
	if code, body, err := asked(t, t.Context(), srv.URL); err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, "too many") {
		t.Errorf("one more: %d %q %v", code, body, err)
	}
	giveUp()
	for range holdAtOnce {
		if body := <-answers; !strings.Contains(body, "kubernetes") {
			t.Errorf("the answer is %q", body)
		}
	}
}
