package cli

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/wait"
)

// tokens is a node that has some.
type tokens struct {
	control.Backend
	left []string
}

func (b *tokens) RevokeToken(_ context.Context, id string) error {
	i := slices.Index(b.left, id)
	if i < 0 {
		return errs.Hint(errs.New(errs.NotFound, "there is no token %q", id), "see: k1s token ls")
	}
	b.left = slices.Delete(b.left, i, i+1)
	return nil
}

func TestOneTokenThatIsNotThereKeepsNoOtherFromBeingRevoked(t *testing.T) {
	p := paths.Paths{Run: t.TempDir()}
	node := &tokens{left: []string{"aaaaaaaaaa", "cccccccccc", "eeeeeeeeee"}}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- control.Serve(ctx, slog.New(slog.DiscardHandler), p.ControlSocket(), node) }()
	var out strings.Builder
	o := tokenRevokeOptions{
		deps: Deps{Streams: iostreams.Streams{Out: io.Discard, ErrOut: &out}, Paths: func() paths.Paths { return p }},
		ids:  []string{"aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc", "dddddddddd"},
	}
	var err error
	if werr := wait.Until(t.Context(), 10*time.Millisecond, "the socket", func(ctx context.Context) error {
		if err = runTokenRevoke(ctx, o); errs.Is(err, errs.NotRunning) {
			return err
		}
		return nil
	}); werr != nil {
		t.Fatal(werr)
	}
	stop()
	if serr := <-done; serr != nil {
		t.Fatal(serr)
	}
	if !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), `"bbbbbbbbbb"`) || !strings.Contains(err.Error(), `"dddddddddd"`) {
		t.Errorf("%v", err)
	}
	if want := "token aaaaaaaaaa is revoked\ntoken cccccccccc is revoked\n"; out.String() != want || !slices.Equal(node.left, []string{"eeeeeeeeee"}) {
		t.Errorf("said %q, left are %q", out.String(), node.left)
	}
	// Where nobody answers that is said once.
	if err := runTokenRevoke(t.Context(), o); !errs.Is(err, errs.NotRunning) || strings.Count(err.Error(), "not running") != 1 {
		t.Errorf("%v", err)
	}
}
