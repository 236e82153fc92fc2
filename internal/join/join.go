// Package join is how a machine becomes a node of a cluster: what it sends to a server and gets back, who may, and
// both ends of the conversation. The servers' end is a handler below Prefix on the Kubernetes API's port; it decides
// over a Store, and knows no files and no API server. The other end is Client. docs/adr/0022-joining.md says why it is so.
package join

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/token"
)

// Prefix is where the servers' end is found on the API's port.
const Prefix = "/k1s/v1/"

// The paths below it.
const (
	pathCA   = Prefix + "ca"   // GET: the cluster's CA and those before it, PEM, for anybody: they are public, and the token tells which is right
	pathNode = Prefix + "node" // POST: Request in, Welcome out; certificates for a node, or the cluster's keys for a server
	// POST: MemberRequest in, Membership out; a server's part in the cluster's datastore
	pathMember = Prefix + "member"
	// POST: KeysRequest in, Keys out; the keys of Secrets, for a server that has come late for them
	pathKeys = Prefix + "keys"
	// POST: MoveRequest in, MoveAnswer out; how servers move together to another datastore
	pathMove = Prefix + "move"
	// POST: AuthoritiesRequest in, Authorities out; how far a server is with the replacement of the cluster's authorities, and
	// the keys of the new ones
	pathAuthorities = Prefix + "authorities"
	// POST: UpgradeRequest in, UpgradeAnswer out; how far a node is while the cluster is upgraded, and what it is to do
	pathUpgrade = Prefix + "upgrade"
	// POST: ProgramRequest in, the program out
	pathProgram = Prefix + "program"
)

// ServerName is the name servers are known by in TLS: in the certificate of every API server and of nothing else,
// whatever address a node reaches them at.
const ServerName = "kubernetes"

// signatureHeader carries the signature of the body by the node's identity key: ASN.1 ECDSA over SHA-256, base64.
const signatureHeader = "K1s-Signature"

// maxBody bounds a request and an answer: a handful of certificates.
const maxBody = 256 << 10

// Request asks for certificates for a node. The first one of a node carries a token; later ones are known by the
// identity key alone, whatever has become of the token and of the certificates. A server asks for the cluster's keys
// instead, and issues its certificates with them; that always takes a token.
type Request struct {
	Role token.Role `json:"role"`
	Node string     `json:"node"`
	IP   netip.Addr `json:"ip"`
	// Identity is the public half of the node's identity key: SubjectPublicKeyInfo, DER.
	Identity []byte `json:"identity"`
	// CSRs by name of the certificate, see pki.JoinedLeaves; DER, PKCS #10.
	CSRs map[string][]byte `json:"csrs"`
	// Trusts are the pins (see package token) of the CAs the machine trusts; none before the first time.
	Trusts []string `json:"trusts,omitempty"`
	// Issuer is the pin of the CA of the certificates it has, with which it asks; "" before the first time.
	Issuer string `json:"issuer,omitempty"`
	// Seal is the X25519 key, made for this request, that the cluster's keys are to be sealed for; servers only.
	Seal []byte `json:"seal,omitempty"`
	// Settings are those a server has been told itself, see config.Chosen: it is not given the keys where the cluster's are others.
	Settings map[string]json.RawMessage `json:"settings,omitempty"`
	// K1s and Kubernetes are the versions of the node's programs.
	K1s        string `json:"k1s"`
	Kubernetes string `json:"kubernetes"`
}

// Welcome is what a node needs to be one.
type Welcome struct {
	// CA is what to trust as the cluster's CA, the one that signs first. It is PEM, and so are Certificates, by name.
	CA           []byte            `json:"ca"`
	Certificates map[string][]byte `json:"certificates"`
	// Settings are those all nodes have to agree about, see config.Shared.
	Settings map[string]json.RawMessage `json:"settings"`
	// Servers are the cluster's API servers, as host:port.
	Servers []string `json:"servers"`
	// Envelope has the cluster's keys in it, for a server that asked for them.
	Envelope *Envelope `json:"envelope,omitempty"`
}

// MemberRequest is how a server that has the cluster's keys becomes part of its datastore. It is signed with the
// identity key, and has the same answer when it is sent again.
type MemberRequest struct {
	Node     string `json:"node"`
	Identity []byte `json:"identity"`
	Member   Member `json:"member"`
	// Promote asks for a vote, for a member that has caught up.
	Promote bool `json:"promote,omitempty"`
}

// Member is a server as a member of the embedded etcd.
type Member struct {
	Name    string `json:"name"`
	PeerURL string `json:"peerURL"`
}

// KeysRequest asks another server for the keys of Secrets. It is signed with the identity key of a server that is known.
type KeysRequest struct {
	Node     string `json:"node"`
	Identity []byte `json:"identity"`
	// Seal is the X25519 key, made for this request, that the keys are to be sealed for.
	Seal []byte `json:"seal"`
}

// Keys are the keys of Secrets on their way.
type Keys struct {
	Envelope Envelope `json:"envelope"`
}

// AuthoritiesRequest asks another server how far it is with the replacement of the cluster's authorities. It is signed with the
// identity key of a server that is known.
type AuthoritiesRequest struct {
	Node     string `json:"node"`
	Identity []byte `json:"identity"`
	// Seal is the X25519 key, made for this request, that the keys of the new authorities are to be sealed for; none where they
	// are not asked for.
	Seal []byte `json:"seal,omitempty"`
}

// Authorities is what a server tells of itself while the cluster's authorities are replaced.
type Authorities struct {
	// Node is the server: its API may be at another address than the one it is known by.
	Node string `json:"node"`
	// State is the stage it keeps, see rotation.State.Marshal; there is no key in it.
	State json.RawMessage `json:"state"`
	// Runs is the stage its control plane was started with and works in, see rotation.State.Epoch; "" while it does not.
	Runs string `json:"runs,omitempty"`
	// Ready tells that the control plane works.
	Ready bool `json:"ready,omitempty"`
	// Moving tells that it is going over to another stage in this moment.
	Moving bool `json:"moving,omitempty"`
	// Holds is the pin of the new CA whose key it has, with those of the other new authorities; "" for none.
	Holds string `json:"holds,omitempty"`
	// Trusts are the pins of the CAs it trusts, the one that signs first.
	Trusts []string `json:"trusts,omitempty"`
	// Keys are the pins of the private keys that it signs with, by the name of the authority.
	Keys map[string]string `json:"keys,omitempty"`
	// Envelope has the keys of the new authorities in it, where they were asked for.
	Envelope *Envelope `json:"envelope,omitempty"`
}

// Membership is how to start as a member.
type Membership struct {
	// Engine is what the datastore is by now.
	Engine config.Engine `json:"engine"`
	// InitialCluster are all members with this one, as etcd wants them: NAME=URL,…
	InitialCluster string `json:"initialCluster,omitempty"`
}

// Address reads where a server is: a URL, or a host with or without a port. The answer is host:port.
func Address(server string) (string, error) {
	bad := func(why string) (string, error) {
		return "", errs.Hint(errs.New(errs.Invalid, "%q cannot be the address of a server: %s", server, why), "write it as https://HOST:6443")
	}
	s := strings.TrimSpace(server)
	if s == "" {
		return bad("it is empty")
	}
	if !strings.Contains(s, "://") {
		if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
			s = "[" + s + "]"
		}
		s = "https://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return bad("it is no URL")
	case u.Scheme != "https":
		return bad("it has to be https")
	case u.User != nil:
		return bad("a token is given in another way than in the URL")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "":
		return bad("there is something behind the port")
	case u.Hostname() == "":
		return bad("there is no host in it")
	}
	port := u.Port()
	if port == "" {
		port = "6443"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return bad("its port is none")
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// sign is the value of signatureHeader.
func sign(identity crypto.Signer, path string, body []byte) (string, error) {
	sum := digest(path, body)
	sig, err := identity.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("signing the request to join: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}

// signedBy checks it against the public key of the request itself.
func signedBy(identity []byte, path string, body []byte, header string) error {
	bad := func(why string) error {
		return errs.New(errs.Invalid, "the request is not signed by the node's identity key: %s", why)
	}
	pub, err := x509.ParsePKIXPublicKey(identity)
	if err != nil {
		return bad("it has none that can be read")
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return bad(fmt.Sprintf("it has a %T", pub))
	}
	sig, err := base64.StdEncoding.DecodeString(header)
	if err != nil || len(sig) == 0 {
		return bad("there is no signature")
	}
	if sum := digest(path, body); !ecdsa.VerifyASN1(key, sum[:], sig) {
		return bad("the signature is wrong")
	}
	return nil
}

// digest is of this use and this path only, so that a signature given for something else is none here.
func digest(path string, body []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("k1s request v1\x00"+path+"\x00"), body...))
}

// Binding is what the cluster keeps of a node that joined: whose name it is.
type Binding struct {
	Node string
	Role token.Role
	// Identity is the SHA-256 of the node's public identity key, base64url.
	Identity string
	IP       netip.Addr
	Since    time.Time
	// Until is when the last certificate ends that was issued to it. Before that it may speak as the node.
	Until time.Time
	// Token is the ID of the token it came with.
	Token string
	// Trusts are the pins of the CAs it has said it trusts, separated by spaces, Issuer that of the CA of its certificates.
	// Both are empty where that is not known.
	Trusts string
	Issuer string
	// Leaving is since when it is being removed, by the clock of whoever has begun with it; zero where it is not.
	Leaving time.Time
	// Version is the store's, of what was read.
	Version string
}

// stays is an error, which passes, while the node is being removed. What is refused then is not lost: the removal may be given up.
func (b Binding) stays() error {
	if b.Leaving.IsZero() {
		return nil
	}
	return errs.New(errs.NotRunning, "%s is being removed from the cluster; its name is free when that is done", b.Node)
}

// OwnBinding is what a server that was the first of its cluster keeps of itself, nil where that is kept already.
func OwnBinding(node string, ip netip.Addr, identity crypto.Signer, all []Binding, now time.Time) (*Binding, error) {
	pub, err := x509.MarshalPKIXPublicKey(identity.Public())
	if err != nil {
		return nil, fmt.Errorf("keeping whose name %s is: %w", node, err)
	}
	b := Binding{Node: node, Role: token.Server, Identity: fingerprint(pub), IP: ip.Unmap().WithZone(""), Since: now.UTC().Truncate(time.Second), Until: endless}
	if old := (claims{bindings: all}).binding(node); old != nil {
		if old.Identity == b.Identity && old.IP == b.IP && old.Role == b.Role {
			return nil, nil
		}
		b.Version, b.Token, b.Leaving = old.Version, old.Token, old.Leaving
	}
	return &b, nil
}

func fingerprint(identity []byte) string {
	sum := sha256.Sum256(identity)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Node is a node as the API has it.
type Node struct {
	Name      string
	Addresses []netip.Addr
	Ready     bool
}

// settleIn is how long a node that joined may take to register itself, with its address.
const settleIn = 10 * time.Minute

// claims are who has which name and address. They are all there is to decide by.
type claims struct {
	bindings []Binding
	nodes    []Node
}

func (c claims) binding(node string) *Binding {
	for i := range c.bindings {
		if c.bindings[i].Node == node {
			return &c.bindings[i]
		}
	}
	return nil
}

func (c claims) node(name string) *Node {
	for i := range c.nodes {
		if c.nodes[i].Name == name {
			return &c.nodes[i]
		}
	}
	return nil
}

// name decides whether the machine with an identity may be the node; known tells that it has been let in before and
// needs no token. A name goes to another machine only when nobody can speak as the node any more: it was removed (k1s
// node remove), or its last certificate has ended and there is no such node. Errors are of kind errs.Denied.
func (c claims) name(node, identity string, role token.Role, now time.Time) (known bool, err error) {
	b := c.binding(node)
	switch {
	case b != nil && b.Identity == identity && b.Role != role:
		return false, errs.Hint(errs.New(errs.Denied, "this machine is a node of the cluster already, as %s", b.Role),
			"to change what it is: run k1s reset on it and k1s node remove %s on a server, then join again", node)
	case b != nil && b.Identity == identity:
		return true, nil
	case b == nil && c.node(node) == nil:
		return false, nil
	case b != nil && c.node(node) == nil && now.After(b.Until):
		return false, nil
	}
	return false, errs.Hint(errs.New(errs.Denied, "the name %s belongs to another machine of this cluster", node),
		"give this machine another name (--node-name); if it takes the place of the other one, which is gone, run on a server: k1s node remove %s", node)
}

// address decides whether a node may have an address: not while another one is there with it, because servers know
// kubelets by their addresses.
func (c claims) address(node string, ip netip.Addr, now time.Time) error {
	taken := func(by string) error {
		return errs.Hint(errs.New(errs.Denied, "the address %s is that of node %s, which is there", ip, by),
			"set spec.node.ip (--node-ip); if that node is gone, run on a server: k1s node remove %s", by)
	}
	for _, n := range c.nodes {
		if n.Name != node && n.Ready && slices.Contains(n.Addresses, ip) {
			return taken(n.Name)
		}
	}
	for _, b := range c.bindings {
		// Servers are reached at their addresses by everybody, also by those who think that one is away for a moment.
		settling := c.node(b.Node) == nil && now.Sub(b.Since) < settleIn
		if b.Node != node && b.IP == ip && (settling || b.Role == token.Server) {
			return taken(b.Node)
		}
	}
	return nil
}

// A node's name is a DNS subdomain (RFC 1123), as the API wants it.
var nodeNameRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)

// maxNodeName leaves room for a prefix within the 253 characters of a name in the API.
const maxNodeName = 240

// check finds what is wrong with a request by itself, and brings its address into the form in which addresses are
// compared. reserved are the names and addresses in certificates of servers, with which a node could pass for one; domain
// is that of the cluster.
func (r *Request) check(reserved []string, private []netip.Prefix, domain string) error {
	bad := func(format string, a ...any) error {
		return errs.New(errs.Invalid, "this machine cannot join: "+format, a...)
	}
	r.IP = r.IP.Unmap().WithZone("")
	switch {
	case len(r.Node) > maxNodeName || !nodeNameRE.MatchString(r.Node):
		return errs.Hint(bad("%q cannot be the name of a node", shorten(r.Node)), "set spec.node.name (--node-name)")
	case !r.IP.IsValid() || r.IP.IsUnspecified() || r.IP.IsLoopback() || r.IP.IsMulticast() || r.IP.IsLinkLocalUnicast() || r.IP == broadcast:
		return errs.Hint(bad("%s is no address at which servers can reach it", r.IP), "set spec.node.ip (--node-ip)")
	case strings.HasSuffix(r.Node, ".svc") || strings.HasSuffix(r.Node, "."+domain):
		return errs.Hint(bad("the name %s is one of the cluster's services", r.Node), "set spec.node.name (--node-name)")
	}
	for _, n := range reserved {
		if rest, wild := strings.CutPrefix(n, "*."); strings.EqualFold(n, r.Node) || wild && strings.HasSuffix(r.Node, "."+strings.ToLower(rest)) {
			return errs.Hint(bad("the name %s is that of a server, or of the API itself", r.Node), "set spec.node.name (--node-name)")
		}
		if a, err := netip.ParseAddr(n); err == nil && a.Unmap().WithZone("") == r.IP {
			return errs.Hint(bad("the address %s is that of a server, or of the API itself", r.IP), "set spec.node.ip (--node-ip)")
		}
	}
	for _, p := range private {
		if p.Contains(r.IP) {
			return errs.Hint(bad("the address %s is one of the cluster's pods or services (%s)", r.IP, p), "set spec.node.ip (--node-ip)")
		}
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// shorten keeps what a stranger sends from filling logs.
func shorten(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// Skew tells whether a kubelet may join an API server of another version: the same minor version or up to three older
// ones, as upstream's version skew policy says (https://kubernetes.io/releases/version-skew-policy/).
func Skew(kubelet, server string) error {
	k, kerr := minor(kubelet)
	s, serr := minor(server)
	switch {
	case kerr != nil || serr != nil:
		return errs.New(errs.Invalid, "the versions of Kubernetes %q and %q cannot be compared", shorten(kubelet), server)
	case k > s:
		return errs.Hint(errs.New(errs.Denied, "this machine has Kubernetes %s, which is newer than the servers' %s", shorten(kubelet), server), "upgrade the servers first, or use the k1s they have")
	case s-k > 3:
		return errs.Hint(errs.New(errs.Denied, "this machine has Kubernetes %s, which is too old for the servers' %s", shorten(kubelet), server), "use the k1s the servers have")
	}
	return nil
}

// sameMinor tells whether servers may run beside each other: a new one has the version the others have. Upgrades go from
// one to the next while all of them are members.
func sameMinor(joining, server string) error {
	j, jerr := minor(joining)
	s, serr := minor(server)
	if jerr != nil || serr != nil || j != s {
		return errs.Hint(errs.New(errs.Denied, "this machine has Kubernetes %s and the cluster's servers %s; a server joins with the same minor version", shorten(joining), server),
			"use the k1s the servers have, and upgrade afterwards")
	}
	return nil
}

func minor(version string) (int, error) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 || parts[0] != "1" {
		return 0, fmt.Errorf("%q is no version", version)
	}
	return strconv.Atoi(parts[1])
}
