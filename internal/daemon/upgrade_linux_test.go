package daemon

import (
	"os"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/upgrade"
)

func TestTheProgramThatIsTriedLeavesTheUpgradeToItsGuard(t *testing.T) {
	p, s := upgradable(t)
	s.Guard = upgrade.Process(platform.Identify(os.Getppid()))
	if err := keepUpgrade(p, s); err != nil {
		t.Fatal(err)
	}
	d := startedAfter(t, p)
	if kept, err := LastUpgrade(p); err != nil || kept.Phase != upgrade.Trying || !d.upgrading.Active() {
		t.Errorf("%+v, %v", kept, err)
	}
	holdsProgram(t, s.Staged(), "new")
	if busy := d.underWay(); !strings.Contains(busy, "being tried") {
		t.Errorf("%q is under way", busy)
	}
}

func TestAnUpgradeHasAGuardAsLongAsThatRuns(t *testing.T) {
	own := upgrade.Process(platform.Identify(os.Getpid()))
	if !Guarded(upgrade.State{Guard: own}) {
		t.Error("this process is not seen")
	}
	another, elsewhere := own, own
	another.Start++
	elsewhere.PID, elsewhere.Namespace = 1<<22, "pid:[1]"
	if Guarded(upgrade.State{Guard: another}) {
		t.Error("another process of that number counts")
	}
	if !Guarded(upgrade.State{Guard: elsewhere}) {
		t.Error("what cannot be seen from here is taken for gone")
	}
}

func TestAProgramThatWasReplacedByHandIsNotUpgraded(t *testing.T) {
	_, s := upgradable(t)
	d := &Daemon{o: Options{Executable: s.File}}
	if _, err := d.ownProgram(); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "was replaced or removed since k1s was started") {
		t.Error(err)
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d.o.Executable = own // which carries nothing
	if _, err := d.ownProgram(); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "does not run what") {
		t.Error(err)
	}
}
