package clustertest

import (
	"testing"

	"k1s.io/k1s/internal/cluster"
)

func TestFakeConforms(t *testing.T) {
	Run(t, func(t *testing.T) cluster.Provider { return NewFake(t.TempDir()) })
}
