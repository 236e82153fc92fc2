// Package claim is how a database of others is kept to one cluster: a key in it says whose it is, from before anything
// else is written. It decides what the key means and what is told about it; who reads and writes it is
// internal/applets/claim. Two first servers on one database, and a URL that leads to the database of another cluster,
// are both found by it.
package claim

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/token"
)

// Key is where the claim stands, for a cluster below a root such as /registry. It is outside of that, so no API server sees
// it and no migration copies it.
func Key(root string) string { return "/k1s.io/cluster" + root }

// PublishedKey is where upstream publishes the CA of a cluster that is older than its claim, or none of k1s: a ConfigMap.
func PublishedKey(root string) string { return root + "/configmaps/kube-system/kube-root-ca.crt" }

// Claim is who has a database.
type Claim struct {
	// Pins are the SHA-256 of the public keys of the cluster's CAs, as tokens have them, the present one first.
	Pins []string `json:"pins"`
	// Server is the one that was first, at Since.
	Server string    `json:"server"`
	Since  time.Time `json:"since"`
}

// Of is the claim of a server whose CA file this is, PEM. While one CA takes the place of another there are two in it.
func Of(caFile []byte, server string, now time.Time) (Claim, error) {
	c := Claim{Server: server, Since: now.UTC().Truncate(time.Second)}
	for rest := caFile; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return c, fmt.Errorf("reading the cluster's CA: %w", err)
		}
		c.Pins = append(c.Pins, token.Pin(cert))
	}
	if len(c.Pins) == 0 {
		return c, errs.New(errs.Invalid, "reading the cluster's CA: there is no certificate in its file")
	}
	return c, nil
}

// Marshal is a claim as it is kept.
func (c Claim) Marshal() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // plain data
	}
	return b
}

// Foreign says that the database belongs to somebody else.
type Foreign struct {
	// By is who has it; the zero Claim where that is not known.
	By Claim
}

func (f *Foreign) Error() string {
	if f.By.Server == "" {
		return "the database has the state of another cluster in it"
	}
	return fmt.Sprintf("the database belongs to another cluster, which %s has founded on %s", f.By.Server, f.By.Since.UTC().Format(time.DateTime+" UTC"))
}

// Deed is what follows from what stands in a database.
type Deed string

// The deeds.
const (
	Create Deed = "create" // nobody has it
	Leave  Deed = "leave"  // it is ours
	Update Deed = "update" // it is ours, and names a CA that is not the present one
)

// Decide compares what stands at Key with ours; found is nil for nothing. published is what stands at PublishedKey, asked for
// only where nothing is found; ourCA is the file with our CAs. Errors are *Foreign, or say that the claim cannot be read.
func Decide(found, published, ourCA []byte, ours Claim) (Deed, Claim, error) {
	if found == nil {
		if published != nil && !holdsAny(published, ourCA) {
			return "", ours, &Foreign{}
		}
		return Create, ours, nil
	}
	var theirs Claim
	if err := json.Unmarshal(found, &theirs); err != nil || len(theirs.Pins) == 0 {
		return "", theirs, errs.New(errs.Invalid, "the database says whose it is in a way that cannot be read (%.60q)", found)
	}
	if !slices.ContainsFunc(theirs.Pins, func(p string) bool { return slices.Contains(ours.Pins, p) }) {
		return "", theirs, &Foreign{By: theirs}
	}
	// One that starts with the CAs of before does not take the new one out again.
	if slices.ContainsFunc(ours.Pins, func(p string) bool { return !slices.Contains(theirs.Pins, p) }) {
		theirs.Pins = append(slices.Clone(ours.Pins), slices.DeleteFunc(slices.Clone(theirs.Pins), func(p string) bool { return slices.Contains(ours.Pins, p) })...)
		return Update, theirs, nil
	}
	return Leave, theirs, nil
}

// holdsAny tells that an object has one of our certificates in it: its encoding keeps text as it is.
func holdsAny(object, ourCA []byte) bool {
	for rest := ourCA; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		if strings.Contains(string(object), strings.TrimSpace(string(pem.EncodeToMemory(block)))) {
			return true
		}
	}
}

// Report is what the API server tells the daemon, in a file.
type Report struct {
	// Ours: the database is this cluster's.
	Ours bool `json:"ours"`
	// Foreign is whose it is else; an empty Claim for somebody of whom nothing is known.
	Foreign *Claim `json:"foreign,omitempty"`
}
