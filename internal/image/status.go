package image

// Status is what the images component reports to the daemon, in a file that also has its problems.
type Status struct {
	// Base tells that the base image is there and unpacked.
	Base    bool     `json:"base"`
	Bundles []Bundle `json:"bundles"`
}

// BundleState is what became of a file in the bundles directory.
type BundleState string

// The states.
const (
	BundleImported BundleState = "imported"
	BundleWaiting  BundleState = "waiting" // somebody is still writing it
	BundleFailed   BundleState = "failed"  // see Error; retried when the file changes
)

// Bundle is one file in the bundles directory. A bundle that holds several images can have some imported
// and an Error about the others.
type Bundle struct {
	File   string      `json:"file"`
	State  BundleState `json:"state"`
	Images []Imported  `json:"images,omitempty"`
	Error  string      `json:"error,omitempty"`
}

// Imported is an image in the container runtime.
type Imported struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}
