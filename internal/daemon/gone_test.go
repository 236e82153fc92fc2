package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/encryption"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/restore"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/token"
)

func TestWhoIsBehindAMemberThatIsGone(t *testing.T) {
	server := func(name string, last byte) join.Binding {
		return join.Binding{Node: name, Role: token.Server, IP: netip.AddrFrom4([4]byte{10, 0, 0, last})}
	}
	members := []etcdcare.Member{
		{ID: 1, Name: "server-0", Self: true, Healthy: true}, {ID: 2, Name: "server-1-0123abcd", Healthy: true}, {ID: 3, Name: "server-2-89abcdef"},
	}
	bindings := []join.Binding{server("server-0", 1), server("server-1", 2), server("server-2", 3), {Node: "agent-0", Role: token.Agent}}
	nodes := []join.Node{{Name: "server-0", Ready: true}, {Name: "server-1", Ready: true}, {Name: "server-2"}, {Name: "agent-0", Ready: true}}
	for name, c := range map[string]struct {
		id       uint64
		members  []etcdcare.Member
		bindings []join.Binding
		nodes    []join.Node
		want     string
		says     string
	}{
		"a server":                     {3, members, bindings, nodes, "server-2", ""},
		"a server that is no worker":   {3, members, bindings, nil, "server-2", ""},
		"its node is Ready":            {3, members, bindings, []join.Node{{Name: "server-2", Ready: true}}, "", "the machine is there"},
		"nobody's":                     {3, members, bindings[:2], nodes, "", "nobody knows whose"},
		"an agent's, by its name":      {3, members, append(bindings[:2:2], join.Binding{Node: "server-2", Role: token.Agent}), nodes, "", "nobody knows whose"},
		"this server's":                {1, members, bindings, nodes, "", "this server's own"},
		"another one is joining":       {3, members, append(bindings[:4:4], server("server-3", 4)), nodes, "", "server-3 is no member"},
		"one was removed half":         {3, []etcdcare.Member{members[0], members[2]}, bindings, nodes, "", "server-1 is no member of etcd"},
		"two members have one's name":  {3, append(members[:3:3], etcdcare.Member{ID: 4, Name: "server-2-00000000"}), bindings, nodes, "", "2 members of etcd can be server server-2"},
		"a node is named like another": {4, append(members[:3:3], etcdcare.Member{ID: 4, Name: "server-2-0000ffff"}), append(bindings[:4:4], server("server-2-0000ffff", 5)), nil, "server-2-0000ffff", ""},
	} {
		b, err := serverGone("server-0", c.members, c.id, c.bindings, c.nodes)
		if b.Node != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q, %v, want %q %q", name, b.Node, err, c.want, c.says)
		}
	}
}

func TestNobodyIsRemovedWhileSomethingElseIsUnderWay(t *testing.T) {
	for want, change := range map[string]func(*Daemon){
		"":            func(*Daemon) {},
		"is stopping": func(d *Daemon) { d.stopped = &control.StopRequest{} },
		"is being moved": func(d *Daemon) {
			d.moving.state.Phase = migration.Copying
		},
		"is being restored": func(d *Daemon) { d.care.restore.Phase = restore.Staging },
		"is being replaced": func(d *Daemon) { d.rotating.state.Stage = rotation.Overlapping },
		"encryption of Secrets": func(d *Daemon) {
			d.secrets.state.Change = &encryption.Change{}
		},
	} {
		d := &Daemon{}
		change(d)
		if got := d.underWay(); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestADaemonTellsOfAMemberThatIsAwayAndThenRemovesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{started: time.Now()}
		in := component.Input{Config: config.Default()}
		f := etcdcare.Facts{ID: 1, Leader: 1, Term: 2, Members: []etcdcare.Member{
			{ID: 1, Name: "server-0", Self: true, Healthy: true, Leader: true}, {ID: 2, Name: "server-1-0123abcd", Healthy: true}, {ID: 3, Name: "server-2-89abcdef"},
		}}
		var stays error
		look := func(f etcdcare.Facts, span time.Duration) (problems []health.Problem, gone uint64) {
			for began := time.Now(); ; time.Sleep(lookEvery) {
				if problems, gone = d.awayMembers(in, f, func(uint64) error { return stays }); gone != 0 || time.Since(began) >= span {
					return problems, gone
				}
			}
		}
		says := func(problems []health.Problem, gone uint64, want string) {
			t.Helper()
			if gone != 0 || len(problems) != 1 || !strings.Contains(fmt.Sprint(problems), want) {
				t.Errorf("%d, %v, want %q", gone, problems, want)
			}
		}
		p, gone := look(f, 10*time.Hour)
		says(p, gone, "server-2 has not been seen for 10h")
		in.Config.Spec.Etcd.RemoveDeadAfter = "12h"
		p, gone = look(f, 0)
		says(p, gone, "it will be removed in 2h")
		p, gone = look(f, time.Hour)
		says(p, gone, "it will be removed in 1h")
		follows := f
		follows.Leader = 2
		p, gone = look(follows, 10*time.Hour)
		says(p, gone, "server-1 leads, and removes it")
		p, gone = look(f, 11*time.Hour)
		says(p, gone, "it will be removed in 1h")
		d.moving.state.Phase = migration.Copying
		p, gone = look(f, time.Hour)
		says(p, gone, "it is not removed by itself: the datastore is being moved")
		d.moving.state.Phase = ""
		p, gone = look(f, 0)
		says(p, gone, "it will be removed in 10m") // what it was before the datastore was moved does not count
		p, gone = look(f, 5*time.Minute)
		says(p, gone, "it will be removed in 5m")
		stays = errors.New("node server-2 is Ready")
		p, gone = look(f, time.Hour)
		says(p, gone, "it is not removed by itself: node server-2 is Ready")
		stays = nil // it is rebooted
		p, gone = look(f, lookEvery)
		says(p, gone, "it will be removed in 10m")
		look(f, 10*time.Minute-2*lookEvery)
		time.Sleep(lookEvery)
		if p, gone := look(f, 0); gone != 3 || len(p) != 1 || !strings.Contains(p[0].Text, "it is being removed") {
			t.Errorf("%d, %v", gone, p)
		}
		d.upkeep.unmoved = "node server-2 is Ready"
		if p, gone := look(f, 0); gone != 3 || len(p) != 1 || !strings.Contains(p[0].Text, "it is not removed by itself: node server-2 is Ready") {
			t.Errorf("%d, %v", gone, p)
		}
		f.Members[2].Healthy = true
		if p, gone := look(f, 20*time.Hour); gone != 0 || len(p) != 0 {
			t.Errorf("%d, %v", gone, p)
		}
	})
}
