package daemon

import (
	"context"
	"time"
)

const (
	// lookAtJumps is how often the machine's clock is compared with one that nobody sets.
	lookAtJumps = 10 * time.Second
	// jump is what makes a difference: less is over before anybody sees it.
	jump = time.Minute
)

// jumped is by how much the wall clock was set while a clock that nobody sets has gone on; 0 for what is no jump. A machine that was suspended has
// one forward.
func jumped(wall, steady time.Duration) time.Duration {
	if by := wall - steady; by <= -jump || by >= jump {
		return by.Round(time.Second)
	}
	return 0
}

// watchClock looks whether somebody sets the machine's clock. When it goes back, the kubelet is started again: it keeps the pods' tokens in memory until
// they end, and those that were issued while the clock was ahead are not valid before that time has come, so pods would be refused for as long.
// Forward needs nothing: what has ended is issued anew by whoever uses it, certificates by lookDue. read is the wall clock, and a steady one.
func (d *Daemon) watchClock(ctx context.Context, read func() (wall time.Time, steady time.Duration), restart func(component string) error) {
	tick := time.NewTicker(lookAtJumps)
	defer tick.Stop()
	wall, steady := read()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		nowWall, nowSteady := read()
		by := jumped(nowWall.Round(0).Sub(wall.Round(0)), nowSteady-steady)
		wall, steady = nowWall, nowSteady
		switch {
		case by == 0:
		case by > 0:
			d.log.Warn("the clock was set forward, or the machine was suspended", "by", by)
		default:
			d.log.Warn("the clock was set back; the kubelet starts again, for the tokens it has given to pods are of a time to come", "by", -by)
			if err := restart("kubelet"); err != nil {
				d.log.Error("the kubelet is not started again", "err", err)
			}
		}
	}
}

// clocks are the machine's: time.Since goes by the one that nobody sets.
func (d *Daemon) clocks() (time.Time, time.Duration) { return time.Now(), time.Since(d.started) }
