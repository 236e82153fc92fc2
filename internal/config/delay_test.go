package config

import (
	"strings"
	"testing"
	"time"
)

func TestDelaysAreDurationsOrNever(t *testing.T) {
	for text, c := range map[Delay]struct {
		after time.Duration
		says  string
	}{
		"never":  {0, ""},
		"1m":     {time.Minute, ""},
		"72h":    {72 * time.Hour, ""},
		"1h30m":  {90 * time.Minute, ""},
		"59s":    {59 * time.Second, "1m0s at least"},
		"0":      {0, "1m0s at least"},
		"-1h":    {-time.Hour, "1m0s at least"},
		"3d":     {0, "no duration"},
		"3 days": {0, "no duration"},
		"":       {0, "is empty"},
	} {
		err := text.Check(time.Minute)
		if got := text.Duration(); got != c.after {
			t.Errorf("%q is %s, want %s", text, got, c.after)
		}
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v, want %q", text, err, c.says)
		}
	}
}
