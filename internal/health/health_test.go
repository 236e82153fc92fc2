package health

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

var update = flag.Bool("update", false, "write golden files")

func TestThePageOfCodesIsUpToDate(t *testing.T) {
	golden := filepath.Join("..", "..", "docs", "health-codes.md")
	if *update {
		if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(Page()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != Page() {
		t.Error("docs/health-codes.md differs from the registry; run: go test ./internal/health -update")
	}
}

func TestEveryCodeIsRegisteredOnceWithARemedy(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[Code]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || fmt.Sprint(spec.Type) != "Code" {
			return true
		}
		v, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		declared[Code(v)] = true
		return true
	})
	if len(declared) < 30 {
		t.Fatalf("found only %d constants", len(declared))
	}
	seen := map[Code]bool{}
	for _, d := range Codes() {
		if seen[d.Code] {
			t.Errorf("%s is registered twice", d.Code)
		}
		seen[d.Code] = true
		if d.Meaning == "" || d.Remedy == "" || d.Severity.rank() < 0 || strings.Contains(d.Meaning+d.Remedy, "|") {
			t.Errorf("%s: unfit entry %+v", d.Code, d)
		}
	}
	if !reflect.DeepEqual(seen, declared) {
		t.Errorf("registered %v, declared %v", seen, declared)
	}
}

type clockError struct{}

func (clockError) Error() string      { return "it is 1970" }
func (clockError) HealthCode() string { return string(Clock) }

func TestAnErrorChoosesItsCodeAndRemedy(t *testing.T) {
	got := FromError(errs.Hint(fmt.Errorf("making certificates: %w", clockError{}), "buy a watch"), CheckFailed, "pki")
	want := Problem{Code: Clock, Severity: Error, Component: "pki", Text: "making certificates: it is 1970", Remedy: "buy a watch"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := FromError(os.ErrPermission, CheckFailed, ""); got.Code != CheckFailed || got.Remedy == "" {
		t.Errorf("got %+v", got)
	}
}

func TestOnlyErrorsBlock(t *testing.T) {
	soft := []Problem{New(CgroupV1, "hybrid"), New(Swap, "on")}
	if err := BlockingError(soft); err != nil {
		t.Errorf("got %v", err)
	}
	one := BlockingError(append(soft, New(PortInUse, "port 1 is in use").Fix("free it")))
	if hint, _ := errs.HintOf(one); one.Error() != "port 1 is in use" || hint != "free it" {
		t.Errorf("got %q, hint %q", one, hint)
	}
	two := BlockingError([]Problem{New(PortInUse, "port 1"), New(MemoryLow, "tiny").As(Error)})
	if want := "2 problems are in the way:\n  memory-low: tiny\n"; !strings.HasPrefix(two.Error(), want) || !strings.Contains(two.Error(), "port 1") {
		t.Errorf("got %q", two)
	}
}

func TestTheBoardKeepsSinceWhenAProblemStays(t *testing.T) {
	clock := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	start := clock
	b := NewBoard(func() time.Time { return clock })

	if fresh := b.Report("disk", []Problem{New(DiskLow, "1.9 GB free")}); len(fresh) != 1 {
		t.Fatalf("fresh: %v", fresh)
	}
	clock = clock.Add(time.Minute)
	b.Report("net", []Problem{New(PortInUse, "port 1"), New(PortInUse, "port 2")})
	if fresh := b.Report("disk", []Problem{New(DiskLow, "1.8 GB free")}); len(fresh) != 0 {
		t.Fatalf("fresh: %v", fresh)
	}
	type row struct {
		text  string
		since time.Time
	}
	rows := func() (out []row) {
		for _, p := range b.List() {
			out = append(out, row{p.Text, p.Since})
		}
		return out
	}
	want := []row{{"port 1", clock}, {"port 2", clock}, {"1.8 GB free", start}}
	if got := rows(); !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	b.Report("net", nil)
	b.Report("disk", nil)
	clock = clock.Add(time.Minute)
	b.Report("disk", []Problem{New(DiskLow, "1 GB free")})
	if got, want := rows(), []row{{"1 GB free", clock}}; !reflect.DeepEqual(got, want) {
		t.Fatalf("gone and come back: got %v, want %v", got, want)
	}
}
