// Package version holds what this build is. The values are set by the linker, see the Makefile. A leaf.
package version

// Set with -ldflags -X.
var (
	// K1s is the version of k1s itself, e.g. "v0.1.0".
	K1s = "v0.1.0-dev"
	// Commit is the source commit, "" for a build outside a checkout.
	Commit = ""
	// Kubernetes is the upstream version carried in the payload.
	Kubernetes = "v1.36.3"
)
