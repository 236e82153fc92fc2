//go:build !k1s_upstream

package main

// plugins is empty when the copies of the upstream packages were not made first; go vet and editors
// see the program in this form. "make build" makes the real one.
func plugins() []plugin { return nil }
