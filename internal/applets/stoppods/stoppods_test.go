package stoppods

import (
	"testing"
	"time"
)

func TestAContainerGetsWhatItsPodGrantsAndNoMore(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"":     30 * time.Second,
		"odd":  30 * time.Second,
		"-1":   30 * time.Second,
		"0":    0,
		"2":    2 * time.Second,
		"3600": 30 * time.Second,
	} {
		if got := graceOf(map[string]string{graceAnnotation: text}, 30*time.Second); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
