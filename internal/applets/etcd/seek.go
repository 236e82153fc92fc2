package etcd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.uber.org/zap"

	"k1s.io/k1s/internal/etcdcare"
)

// seeker finds members that are not at the address the cluster's state has for them. Only a majority can change the state, so when a
// majority of the servers has moved, nobody could tell anybody where he is. It is enough that one of two members finds the
// other: what they say to each other goes both ways over the connections of one of them. Then there is a majority, and each writes its
// new address into the state.
//
// Nothing that is agreed upon is touched: an address is where this process connects to. Who answers there shows a certificate of
// etcd's own authority that is for this address and names the node, and etcd itself refuses messages for another member.
type seeker struct {
	// hosts are names or addresses of servers, as the user has told.
	hosts []string
	// lookup finds addresses of a node by its name.
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Members that are not connected are looked for at once, then less and less often. How long one may take to answer.
const (
	seekFirst  = 300 * time.Millisecond
	seekSlowly = 10 * time.Second
	seekTime   = 2 * time.Second
)

func lookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// run ends with ctx, before the member does.
func (s seeker) run(ctx context.Context, e *embed.Etcd) {
	log := e.GetLogger()
	to, err := transportOf(e.Server)
	if err != nil {
		log.Error("members that have moved are not looked for", zap.Error(err))
		return
	}
	moved := map[types.ID]bool{}  // those that are reached where the state does not say
	told := map[types.ID]string{} // where each was found last
	for pause := seekFirst; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, seekSlowly)
		for _, m := range e.Server.Cluster().Members() {
			if m.ID == e.Server.MemberID() || m.Name == "" || !to.ActiveSince(m.ID).IsZero() || ctx.Err() != nil {
				continue
			}
			conf, err := e.Config().PeerTLSInfo.ClientConfig() // each time: certificates are renewed
			if err != nil {
				log.Warn("members that have moved are not looked for", zap.Error(err))
				break
			}
			at := s.find(ctx, conf, *m)
			if at == "" {
				at = heard(ctx, conf, *m, connected(e, to, told))
			}
			known := slices.Contains(m.PeerURLs, at)
			if at == "" || known && !moved[m.ID] {
				continue
			}
			if !known && !moved[m.ID] {
				log.Warn("a member is not where the cluster knows it to be", zap.String("member", m.Name), zap.Strings("was", m.PeerURLs), zap.String("is", at))
			}
			// Again as long as it is not connected: etcd may be repeating older changes of the state, and with them older addresses.
			to.UpdatePeer(m.ID, []string{at})
			moved[m.ID] = !known
			if told[m.ID] != at {
				told[m.ID], pause = at, seekFirst // a member that answers there and is never connected is asked less and less often
			}
		}
	}
}

// find is the URL at which a member answers, "" for none.
func (s seeker) find(ctx context.Context, conf *tls.Config, m membership.Member) string {
	port := ""
	for _, raw := range m.PeerURLs {
		u, err := url.Parse(raw)
		if err != nil {
			continue
		}
		port = u.Port()
		if at, err := netip.ParseAddr(u.Hostname()); err == nil && answers(ctx, conf, netAddr(at, port), m.Name) == nil {
			return raw
		}
	}
	if port == "" {
		return ""
	}
	tried := map[netip.Addr]bool{}
	// Whether the name is the node's, or has something behind it, is not known for sure.
	for _, host := range append(slices.Compact([]string{etcdcare.NodeOf(m.Name), m.Name}), s.hosts...) {
		ips, err := s.resolve(ctx, host)
		if err != nil {
			continue // most machines know of no other's name
		}
		for _, ip := range ips {
			if ip = ip.Unmap(); tried[ip] {
				continue
			}
			tried[ip] = true
			if answers(ctx, conf, netAddr(ip, port), m.Name) == nil {
				return (&url.URL{Scheme: "https", Host: netAddr(ip, port)}).String()
			}
		}
	}
	return ""
}

// connected are the URLs of members this one is connected with.
func connected(e *embed.Etcd, to rafthttp.Transporter, told map[types.ID]string) []string {
	var out []string
	for _, m := range e.Server.Cluster().Members() {
		if m.ID == e.Server.MemberID() || to.ActiveSince(m.ID).IsZero() {
			continue
		}
		if at := told[m.ID]; at != "" {
			out = append(out, at)
		}
		out = append(out, m.PeerURLs...)
	}
	return out
}

// heard is the URL at which a member answers that others know of, "" for none. Where one leads who nobody was told of, this member is
// connected with those that follow and not with the one that tells what is agreed upon: those that follow know from the state where that is.
func heard(ctx context.Context, conf *tls.Config, m membership.Member, others []string) string {
	for _, other := range others {
		all, err := membersAt(ctx, conf, other)
		if err != nil {
			continue // it was connected a moment ago
		}
		for _, now := range all {
			if now.ID != m.ID {
				continue
			}
			for _, raw := range now.PeerURLs {
				u, err := url.Parse(raw)
				if err == nil && !slices.Contains(m.PeerURLs, raw) && answers(ctx, conf, u.Host, m.Name) == nil {
					return raw
				}
			}
		}
	}
	return ""
}

// membersAt asks a member for the members as its state has them (/members, etcd's server/etcdserver/api/etcdhttp/peer.go).
func membersAt(ctx context.Context, conf *tls.Config, peerURL string) ([]membership.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, seekTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peerURL+"/members", nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	var all []membership.Member
	return all, json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&all)
}

func netAddr(ip netip.Addr, port string) string { return net.JoinHostPort(ip.String(), port) }

func (s seeker) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, seekTime)
	defer cancel()
	return s.lookup(ctx, host)
}

// answers tells whether a member does at an address.
func answers(ctx context.Context, conf *tls.Config, addr, member string) error {
	ctx, cancel := context.WithTimeout(ctx, seekTime)
	defer cancel()
	c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	node := c.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
	if node != member && node != etcdcare.NodeOf(member) {
		return fmt.Errorf("%s is %s", addr, node)
	}
	return nil
}

// transportOf is what a member reaches the others with. etcd updates it when the state changes; there is no other way in.
func transportOf(s *etcdserver.EtcdServer) (rafthttp.Transporter, error) {
	v := reflect.ValueOf(s).Elem()
	for _, field := range []string{"r", "raftNodeConfig", "transport"} { // etcdserver.raftNodeConfig, v3.6
		if v = v.FieldByName(field); !v.IsValid() {
			return nil, errors.New("this version of etcd keeps its connections elsewhere")
		}
	}
	t, ok := reflect.NewAt(v.Type(), v.Addr().UnsafePointer()).Elem().Interface().(rafthttp.Transporter)
	if !ok {
		return nil, errors.New("this version of etcd has another kind of connections")
	}
	return t, nil
}
