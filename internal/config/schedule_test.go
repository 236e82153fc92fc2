package config

import (
	"strings"
	"testing"
	"time"
)

func TestSchedules(t *testing.T) {
	at := time.Date(2026, 11, 21, 18, 10, 30, 0, time.Local)
	for s, want := range map[Schedule]time.Time{
		"0 */12 * * *": time.Date(2026, 11, 22, 0, 0, 0, 0, time.Local),
		"@daily":       time.Date(2026, 11, 22, 0, 0, 0, 0, time.Local),
		"@every 6h":    at.Add(6 * time.Hour),
		"15 18 * * 6":  time.Date(2026, 11, 21, 18, 15, 0, 0, time.Local), // a Saturday
		Never:          {},
	} {
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if got := s.After(at); !got.Equal(want) {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
	}
	for s, says := range map[Schedule]string{
		"": "is empty", "tomorrow": "no cron expression", "* * * *": "no cron expression", "* * * * * *": "no cron expression",
		"@every 30s": "more often", "0 0 30 2 *": "never comes",
	} {
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
