package kine

import (
	"context"
	"errors"
	"sync"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Kine ends its process where a compaction cannot be committed or rolled back (pkg/drivers/generic/tx.go), as on a disk that
// is full. In the process is the API server, which could go on answering; nothing is lost, and the next compaction does the
// work. So what is fatal to kine is a panic here, which ends the request, or Run, but not the process.

// fatal is what such a panic is about. What was the matter is in the log.
type fatal struct{}

var errFatal = errors.New("the database did not end a transaction as it should")

// panicInsteadOfExit changes what kine's log does after a fatal line. Kine logs through what a process has one of.
var panicInsteadOfExit = sync.OnceFunc(func() {
	logrus.StandardLogger().ExitFunc = func(int) { panic(fatal{}) }
})

// caught is to be deferred: it makes an error of what was fatal, and passes on every other panic.
func caught(err *error) {
	switch r := recover(); r.(type) {
	case nil:
	case fatal:
		*err = errFatal
	default:
		panic(r)
	}
}

// endRequest is an interceptor: what is fatal ends the request alone.
func endRequest(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	defer func() {
		if errors.Is(err, errFatal) {
			err = status.Error(codes.Unavailable, err.Error())
		}
	}()
	defer caught(&err)
	return handler(ctx, req)
}
