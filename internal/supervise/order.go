package supervise

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
)

// stopItem is a unit to stop and how.
type stopItem struct {
	unit component.Unit
	stop func() error
}

// stopInOrder stops units, each one as soon as those that need it are gone, so all that are independent at
// once. others are units that are not stopped but may stand between two that are. Failures do not hold up
// the rest.
func stopInOrder(items []stopItem, others []component.Unit) error {
	units := others
	for _, it := range items {
		units = append(units, it.unit)
	}
	before := dependants(units)
	gone := map[string]chan struct{}{}
	for _, it := range items {
		gone[it.unit.Name] = make(chan struct{})
	}
	failed := make([]error, len(items))
	var wg sync.WaitGroup
	for i, it := range items {
		wg.Go(func() {
			defer close(gone[it.unit.Name])
			for name := range before[it.unit.Name] {
				if ch, ok := gone[name]; ok {
					<-ch
				}
			}
			failed[i] = it.stop()
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// dependants lifts the needs of components to units: for each unit those that need it, directly or not.
// Units that need each other, as groups may, are not among each other's.
func dependants(units []component.Unit) map[string]map[string]bool {
	home := map[string]string{}
	for _, u := range units {
		for _, c := range u.Components {
			home[c.Name] = u.Name
		}
	}
	needs := map[string]map[string]bool{}
	for _, u := range units {
		for _, c := range u.Components {
			for _, n := range c.Needs {
				if to, ok := home[n.Component]; ok && to != u.Name {
					if needs[u.Name] == nil {
						needs[u.Name] = map[string]bool{}
					}
					needs[u.Name][to] = true
				}
			}
		}
	}
	reach := map[string]map[string]bool{}
	for _, u := range units {
		seen := map[string]bool{}
		var visit func(string)
		visit = func(name string) {
			for to := range needs[name] {
				if !seen[to] {
					seen[to] = true
					visit(to)
				}
			}
		}
		visit(u.Name)
		reach[u.Name] = seen
	}
	deps := map[string]map[string]bool{}
	for from, tos := range reach {
		for to := range tos {
			if reach[to][from] {
				continue
			}
			if deps[to] == nil {
				deps[to] = map[string]bool{}
			}
			deps[to][from] = true
		}
	}
	return deps
}

// restartDelay is how long to wait after so many failures in a row. The jitter keeps units that failed for
// one reason from coming back in step.
func restartDelay(failures int) time.Duration {
	if failures <= 1 {
		return firstDelay
	}
	d := maxDelay
	if shift := failures - 2; shift < 7 {
		d = min(baseDelay<<shift, maxDelay)
	}
	return time.Duration(float64(d) * (0.8 + 0.2*rand.Float64()))
}

// stableAfter is how long a unit has to be ready for its earlier failures to be forgiven.
func stableAfter(delay time.Duration) time.Duration {
	return min(max(10*delay, minStable), maxStable)
}
