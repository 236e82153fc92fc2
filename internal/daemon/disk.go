package daemon

import (
	"context"
	"slices"
	"time"

	"k1s.io/k1s/internal/health"
)

// diskEvery is the pause between two looks at the data directory's file system; a look is one system call.
const diskEvery = 10 * time.Second

// diskCodes are what platform.DiskProblems may find.
var diskCodes = []health.Code{health.DiskLow, health.InodesLow, health.DataDirFS}

// watchDisk keeps true what is said about the data directory's file system, which look tells: it may fill up, and have room
// again, while the node runs. Then SQLite refuses to write and the API does, which goes on by itself afterwards.
func (d *Daemon) watchDisk(ctx context.Context, look func(dir string) []health.Problem) {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		for _, p := range d.board.Report("disk", look(d.o.Paths.Data)) {
			d.log.Warn("disk", "problem", p.Text)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// aboutDisk tells that watchDisk says it again.
func aboutDisk(p health.Problem) bool { return slices.Contains(diskCodes, p.Code) }
