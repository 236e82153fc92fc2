package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSpreadKeepsQuantiles(t *testing.T) {
	var many numbers
	for i := range 10_001 {
		many = append(many, float64((i*7919)%10_001)) // every number from 0 to 10,000, in disorder
	}
	few := many.spread(1000)
	if len(few) != 1000 || few[0] != 0 || few[999] != 10_000 {
		t.Fatalf("%d values from %v to %v", len(few), few[0], few[len(few)-1])
	}
	for _, q := range []float64{0.5, 0.95, 0.99, 1} {
		if got, want := few.quantile(q), many.quantile(q); got < want-20 || got > want+20 {
			t.Errorf("quantile %v: %v, and %v of all", q, got, want)
		}
	}
	if got := (numbers{3, 1, 2}).spread(3); !slices.Equal(got, numbers{1, 2, 3}) {
		t.Errorf("few values: %v", got)
	}
}

func TestThe95thPercentileIsNotToldOfAFew(t *testing.T) {
	of := func(n int) string {
		r := results{Samples: map[string][]float64{}}
		for i := range n {
			r.Samples["k1s "+sampleFailOver] = append(r.Samples["k1s "+sampleFailOver], float64(i+1))
		}
		for i, row := range r.rows() {
			if strings.HasPrefix(row.name, "the server that leads is killed") {
				p95 := r.rows()[i+1]
				return fmt.Sprint(numbers(p95.of(k1s)).quantile(p95.at))
			}
		}
		return "there is no such row"
	}
	for n, want := range map[int]string{3: "0", 19: "0", 21: "20"} {
		if got := of(n); got != want {
			t.Errorf("of %d kills: %s, want %s", n, got, want)
		}
	}
}

func TestRatioOfWhatIsNotKnownIsEmpty(t *testing.T) {
	for _, c := range []struct {
		a, b float64
		want string
	}{{2, 5, "2.50×"}, {0, 5, ""}, {5, 0, ""}} {
		if got := ratio(c.a, c.b); got != c.want {
			t.Errorf("ratio(%v, %v) = %q, want %q", c.a, c.b, got, c.want)
		}
	}
}

func TestLocalAddrsAreThoseOfTheNamespaceItself(t *testing.T) {
	// A pod: its own address beside the route to its gateway, in two tables as kernels with policy routing show them.
	table := `  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.42.0.0/24 2 0 2
        |-- 10.42.0.0
           /24 universe UNICAST
        |-- 10.42.0.1
           /32 link UNICAST
        |-- 10.42.0.7
           /32 host LOCAL
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
`
	got := localAddrs("Main:\n" + table + "Local:\n" + table)
	want := []netip.Addr{netip.MustParseAddr("10.42.0.7"), netip.MustParseAddr("127.0.0.1")}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestStatCPUCountsChildren(t *testing.T) {
	rest := " S 1 2 3 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 9 0 12345 1000 50"
	for _, name := range []string{"k1s-kube", "a) S (b"} {
		got, ok := statCPU("4711 (" + name + ")" + rest + "\n")
		if want := 1100 * time.Millisecond; !ok || got != want {
			t.Errorf("%q: %v %v, want %v", name, got, ok, want)
		}
	}
	for _, stat := range []string{"", "4711 (x) S 1 2"} {
		if got, ok := statCPU(stat); ok {
			t.Errorf("%q: %v", stat, got)
		}
	}
}

func TestPoliciesHaveTheFirstAndTheLastOfEachCount(t *testing.T) {
	there := 0
	names, ports := map[string]bool{}, map[string]bool{}
	for _, count := range policyCounts {
		list := policiesUpTo(there, count)
		if len(list) != count-there {
			t.Fatalf("%d policies to get from %d to %d", len(list), there, count)
		}
		for _, p := range list {
			names[fmt.Sprint(p["metadata"])] = true
			ports[fmt.Sprint(p["spec"])] = true
		}
		if last := fmt.Sprint(list[len(list)-1]["spec"]); !strings.Contains(last, "role:client") || !strings.Contains(last, fmt.Sprint("port:", lastPort+count)) {
			t.Errorf("the last of %d: %s", count, last)
		}
		there = count
	}
	if len(names) != there || len(ports) != there {
		t.Errorf("%d names and %d different policies of %d", len(names), len(ports), there)
	}
	if first := fmt.Sprint(policiesUpTo(0, 10)[0]["spec"]); !strings.Contains(first, "access:yes") || !strings.Contains(first, fmt.Sprint("port:", accessPort)) {
		t.Errorf("the first: %s", first)
	}
}

func TestTablesAreLeftOutWhereNothingWasMeasured(t *testing.T) {
	var w strings.Builder
	r := results{Samples: map[string][]float64{}}
	r.writesTable(&w)
	r.networkTable(&w)
	r.policiesTable(&w)
	if w.Len() > 0 {
		t.Errorf("%s", w.String())
	}
}

func TestTablesShowWhatWasMeasured(t *testing.T) {
	r := results{Samples: map[string][]float64{
		storeSQLite.sample(8, writesRate):                {1500},
		storeSQLite.sample(8, writesTook):                {0.004, 0.005, 0.030},
		storeBaseline.sample(8, writesRate):              {3000},
		storeEtcd.watchSample():                          {0.002, 0.003},
		networkSample("vxlan", wayNodes, streamRate):     {20},
		networkSample("vxlan", wayNodes, roundTripTook):  {0.000020},
		networkSample("vxlan", wayAcross, streamRate):    {5},
		networkSample("vxlan", wayAcross, roundTripTook): {0.000050, 0.000060, 0.000300},
		policySample(100, policyLast):                    {0.05},
		policySample(100, policyLetIn):                   {0.010, 0.012, 0.040},
		policySample(100, policyShut):                    {0.011},
		policySample(100, policyChange):                  {0.02},
	}}
	for _, c := range []struct {
		table func(*strings.Builder)
		want  []string
	}{
		{r.writesTable, []string{
			"| 8 writers, writes a second | 1500 | – | 3000 | 0.50× |",
			"| … latency, median | 5.00 ms | – | – |  |", "| … p99 | 30.0 ms | – | – |  |",
			"| request to the event at a watch, median | – | 2.50 ms | – |  |",
		}},
		{r.networkTable, []string{
			"| vxlan, node to node | 20.0 Gbit/s | 1.00× | 20.0 µs | 1.00× | 20.0 µs |",
			"| vxlan, pod to pod, across nodes | 5.00 Gbit/s | 0.25× | 60.0 µs | 3.00× | 300 µs |",
		}},
		{r.policiesTable, []string{"| 100 | 50.0 ms | 12.0 ms | 40.0 ms | 11.0 ms | 11.0 ms | 20.0 ms |", "| 10 | – | – | – | – | – | – |"}},
	} {
		var w strings.Builder
		c.table(&w)
		for _, line := range c.want {
			if !strings.Contains(w.String(), line+"\n") {
				t.Errorf("%q is not in\n%s", line, w.String())
			}
		}
	}
}
