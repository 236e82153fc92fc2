package kine

import (
	"errors"

	_ "github.com/k3s-io/kine/pkg/drivers/nats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func explainNATS(err error) error {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return refuse(err, "correct user and password in the datastore's URL", "NATS does not let this user in")
	case errors.Is(err, nats.ErrPermissionViolation):
		return refuse(err, "allow it the subjects $JS.API.> and $KV.>", "NATS does not let this user use JetStream")
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return refuse(err, "turn JetStream on in the server's configuration: jetstream {}", "NATS keeps nothing")
	}
	return err
}
