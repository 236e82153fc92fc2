// Package upstream says what is built from Kubernetes' own end-to-end tests: nothing of it is used, it only makes the go command keep the
// modules in go.mod that the test binary, agnhost and ginkgo need. It is a module of its own because these would add to what k1s is made from.
package upstream

import (
	_ "k8s.io/kubernetes/test/conformance/testdata"
	_ "k8s.io/kubernetes/test/e2e"
)
