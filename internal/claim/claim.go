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
	"k1s.io/k1s/internal/record"
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

// Ours is what a server knows of its own cluster's CAs.
type Ours struct {
	// Claim has the pins of those the cluster trusts now.
	Claim
	// had are the pins of all that the cluster ever had: who took a database in the name of one of them was this cluster.
	had []string
}

// Of is what a server claims whose CA file this is, PEM; while one CA takes the place of another there are two in it. had
// are those the cluster had before, PEM too, in any order and with others among them that vouch for its CAs.
func Of(caFile, had []byte, server string, now time.Time) (Ours, error) {
	o := Ours{Claim: Claim{Server: server, Since: now.UTC().Truncate(time.Second)}}
	present, err := certificates(caFile)
	if err != nil {
		return o, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	if len(present) == 0 {
		return o, errs.New(errs.Invalid, "reading the cluster's CA: there is no certificate in its file")
	}
	for _, c := range present {
		o.Pins = append(o.Pins, token.Pin(c))
	}
	before, err := certificates(had)
	if err != nil {
		return o, fmt.Errorf("reading the CAs the cluster had: %w", err)
	}
	o.had = slices.Clone(o.Pins)
	for _, c := range before {
		o.had = append(o.had, token.Pin(c))
	}
	return o, nil
}

// certificates are those in a PEM file.
func certificates(file []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := file; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
}

// was tells that the cluster has or had a CA with this pin.
func (o Ours) was(pin string) bool { return slices.Contains(o.had, pin) }

// Marshal is a claim as it is kept.
func (c Claim) Marshal() []byte {
	return record.Compact(c)
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
// only where nothing is found. Errors are *Foreign, or say that the claim cannot be read.
func Decide(found, published []byte, ours Ours) (Deed, Claim, error) {
	if found == nil {
		if strange, _ := strangers(published, ours); strange {
			return "", ours.Claim, &Foreign{}
		}
		return Create, ours.Claim, nil
	}
	var theirs Claim
	if err := json.Unmarshal(found, &theirs); err != nil || len(theirs.Pins) == 0 {
		return "", theirs, errs.New(errs.Invalid, "the database says whose it is in a way that cannot be read (%.60q)", found)
	}
	// It may be of a time before the CA was replaced: a database that was put back, or that was left for another one.
	if !slices.ContainsFunc(theirs.Pins, ours.was) {
		return "", theirs, &Foreign{By: theirs}
	}
	// One that starts with the CAs of before does not take the new one out again.
	if slices.ContainsFunc(ours.Pins, func(p string) bool { return !slices.Contains(theirs.Pins, p) }) {
		theirs.Pins = append(slices.Clone(ours.Pins), slices.DeleteFunc(slices.Clone(theirs.Pins), func(p string) bool { return slices.Contains(ours.Pins, p) })...)
		return Update, theirs, nil
	}
	return Leave, theirs, nil
}

// Unsure tells that the database has a cluster's state in it of which cannot be said whose it is, and that has no claim.
func Unsure(found, published []byte, ours Ours) bool {
	if found != nil || published == nil {
		return false
	}
	_, known := strangers(published, ours)
	return !known
}

// strangers tells that the CAs in a stored ConfigMap can be read, and none of them was ever ours. known is false where none
// can be read, as in one that is encrypted: that says nothing.
func strangers(object []byte, ours Ours) (strange, known bool) {
	// Protocol buffers keep text as it is; JSON has the ends of its lines as two letters.
	text := strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\/`, "/", `\u002b`, "+", `\u002B`, "+").Replace(string(object))
	for {
		_, rest, ok := strings.Cut(text, pemBegin)
		if !ok {
			return known, known
		}
		text = rest
		block, _ := pem.Decode([]byte(pemBegin + rest))
		if block == nil {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue
		}
		known = true
		if ours.was(token.Pin(cert)) {
			return false, true
		}
	}
}

const pemBegin = "-----BEGIN CERTIFICATE-----"

// Report is what the API server tells the daemon, in a file.
type Report struct {
	// Ours: the database is this cluster's.
	Ours bool `json:"ours"`
	// Of identifies the database, as Input.Datastore does: the daemon may have been told of another one meanwhile.
	Of string `json:"of,omitempty"`
	// Foreign is whose it is else; an empty Claim for somebody of whom nothing is known.
	Foreign *Claim `json:"foreign,omitempty"`
	// Half is the key by which only half of a backup is in the database: nothing is served from it, and whose it is does not matter yet.
	Half string `json:"half,omitempty"`
	// Left is where the state is by now, or is going, where the database was left for another one: nothing is served from it.
	Left string `json:"left,omitempty"`
}
