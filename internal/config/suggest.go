package config

import "strings"

// longestName bounds what is compared: a longer name is no misspelling of a field.
const longestName = 64

// nearest is the candidate that name is most likely a misspelling of, or "". Case does not count, at
// most a third of the letters may be wrong, and a part of a name will do.
func nearest(name string, candidates []string) string {
	if len(name) > longestName {
		return ""
	}
	best, bestDist := "", longestName
	for _, c := range candidates {
		if d := distance(strings.ToLower(name), strings.ToLower(c)); d <= max(len(name), len(c))/3 && d < bestDist {
			best, bestDist = c, d
		}
	}
	if best == "" && len(name) >= 4 { // a part of the name, such as apiserver
		for _, c := range candidates {
			if strings.Contains(strings.ToLower(c), strings.ToLower(name)) {
				return c
			}
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with a neighbour to turn a into b
// (optimal string alignment).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	before, prev, cur := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(x); i++ {
		cur[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(y)]
}
