package cli

import (
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/printer"
)

func TestWhatWasFoundBeforeIsNotSaidOfAChangeOnItsWay(t *testing.T) {
	e := control.Encryption{
		Enabled: true, Keys: []control.EncryptionKey{{Provider: "secretbox", Name: "new", Writes: true}, {Provider: "identity"}},
		Checked: &control.EncryptionChecked{At: time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC), Objects: 3, Key: "new"},
	}
	show := func() string {
		var out strings.Builder
		if err := printEncryption(&out, printer.Table, e); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	want := `Secrets are encrypted in the database.
On 2026-11-21 09:00:00 all 3 were found to be written with the key new: no other key is needed for them.

KEY  PROVIDER   USE
new  secretbox  writes, reads
-    identity   reads
`
	if got := show(); got != want {
		t.Errorf("settled:\n%s\nwant:\n%s", got, want)
	}
	e.Change = &control.EncryptionChange{Action: "rotate", Stage: "rewriting", Key: "newer", Done: 2, All: 9, Note: "a webhook says no"}
	if got := show(); strings.Contains(got, "were found") || !strings.HasPrefix(got, "rotate: every Secret is written again with the key newer, 2 of 9 (a webhook says no)\n") {
		t.Errorf("on its way:\n%s", got)
	}
}
