package platform

import (
	"context"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
)

// CheckInput is what the checks measure the machine against.
type CheckInput struct {
	Facts  component.Facts
	Config config.Config
	Paths  paths.Paths
	// NFT is the payload's nft program. Without it only the presence of nf_tables is checked, not what it
	// can do, and foreign firewalls are not seen.
	NFT string
	// IgnorePIDs are our own processes that may run already, when the daemon starts again.
	IgnorePIDs []int
	// Adopting says that components of ours run already, so mounts, links and routes are theirs. A data
	// directory with certificates in it says the same.
	Adopting bool
	// Users are those that processes of ours are to run as, nil for root alone.
	Users []CheckUser
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// CheckUser is a user that a process is to run as.
type CheckUser struct {
	component.User
	// Files are what others have written for its components, by component.
	Files map[string][]string
}

func (in CheckInput) now() time.Time {
	if in.Now == nil {
		return time.Now()
	}
	return in.Now()
}

// Check looks at one aspect of the machine. It changes nothing, but for temporary files in the data
// directory and in namespaces of its own.
type Check struct {
	Name    string // "ports"
	Summary string // what is looked at, for people
	// Worker says that it only matters where pods run.
	Worker bool
	// Run returns what is wrong; several problems may come from one check. It ends soon after ctx.
	Run func(ctx context.Context, in CheckInput) []health.Problem
}

// RunChecks runs the checks that matter for in, all at once, and returns what is wrong, worst first. It
// belongs before the first certificate is made: from then on what is on the machine counts as ours.
func RunChecks(ctx context.Context, checks []Check, in CheckInput) []health.Problem {
	results := make([][]health.Problem, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		if c.Worker && !in.Config.Spec.Worker() {
			continue
		}
		wg.Go(func() { results[i] = c.Run(ctx, in) })
	}
	wg.Wait()
	var all []health.Problem
	for _, r := range results {
		all = append(all, r...)
	}
	health.Sort(all)
	return all
}

// failed is the problem of a check that could not look.
func failed(what string, err error) []health.Problem {
	return []health.Problem{health.New(health.CheckFailed, "%s could not be checked: %v", what, err)}
}
