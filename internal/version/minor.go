package version

import "fmt"

// Newer tells that a has a greater minor version of Kubernetes than b: within one nothing is stored in another way. What is no version,
// as v1.36.3 is, is newer than nothing.
func Newer(a, b string) bool {
	var a1, a2, b1, b2 int
	if n, _ := fmt.Sscanf(a, "v%d.%d", &a1, &a2); n != 2 {
		return false
	}
	if n, _ := fmt.Sscanf(b, "v%d.%d", &b1, &b2); n != 2 {
		return false
	}
	return a1 > b1 || a1 == b1 && a2 > b2
}
