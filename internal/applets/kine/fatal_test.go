package kine

import (
	"context"
	"errors"
	"testing"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestWhatIsFatalToKineEndsTheRequestAndNotTheProcess(t *testing.T) {
	panicInsteadOfExit()
	rolledBack := false
	_, err := endRequest(t.Context(), nil, nil, func(context.Context, any) (any, error) {
		defer func() { rolledBack = true }()
		logrus.Fatalf("Transaction commit failed: %v", errors.New("database or disk is full"))
		return nil, nil
	})
	if status.Code(err) != codes.Unavailable || !rolledBack {
		t.Errorf("got %v, rolled back %v", err, rolledBack)
	}
	answer, err := endRequest(t.Context(), 1, nil, func(_ context.Context, req any) (any, error) { return req, nil })
	if answer != 1 || err != nil {
		t.Errorf("a request that is well: %v %v", answer, err)
	}
	defer func() {
		if r := recover(); r != "another" {
			t.Errorf("another panic became %v", r)
		}
	}()
	_, _ = endRequest(t.Context(), nil, nil, func(context.Context, any) (any, error) { panic("another") })
}
