package kine

import (
	"regexp"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
)

// keepContentsOut makes kine's log tell of requests that failed without the objects in them: it writes them down as a
// whole, and they may be Secrets. Kine logs through what a process has one of.
var keepContentsOut = sync.OnceFunc(func() { logrus.AddHook(contentsHook{}) })

// contentsHook is a logrus.Hook.
type contentsHook struct{}

func (contentsHook) Levels() []logrus.Level { return logrus.AllLevels }

// contents are values as the text of a protocol buffer has them, where quotes in a value follow a backslash.
var contents = regexp.MustCompile(`value: ?"(?:[^"\\]|\\.)*"`)

// Fire leaves the values out of a line about a request, and the keys in it.
func (contentsHook) Fire(e *logrus.Entry) error {
	if strings.HasPrefix(e.Message, "error in ") { // of kine's pkg/server/kv.go
		e.Message = contents.ReplaceAllString(e.Message, "value:[left out]")
	}
	return nil
}
