package cluster

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// Selector chooses nodes of a cluster, those that are there and those that will be added. Its terms are separated
// by commas: "all", "servers", "agents", or the name of a node ("agent-1"). "" chooses all. ParseSelector reads what
// users write.
type Selector string

// The words of a Selector.
const (
	allNodes   = "all"
	allServers = "servers"
	allAgents  = "agents"
)

// ParseSelector reads a Selector. Besides its own words it knows those of k3d: "server", "agent:*", "agent:0,1", "server:0".
func ParseSelector(text string) (Selector, error) {
	var terms []string
	role := Role("") // of ROLE:N, which numbers may follow
	for term := range strings.SplitSeq(text, ",") {
		name, number, counted := strings.Cut(term, ":")
		if !counted {
			if _, err := strconv.Atoi(term); err == nil && role != "" {
				name, number, counted = string(role), term, true
			}
		}
		if role = ""; counted && (name == string(Server) || name == string(Agent)) && number != "*" {
			role = Role(name)
		}
		t, err := selectorTerm(name, number, counted)
		if err != nil {
			return "", errs.Hint(errs.New(errs.Usage, "%q chooses no nodes: %w", text, err),
				"write all, servers, agents, or names of nodes such as server-0 or agent-0,agent-1")
		}
		if t == allNodes {
			return "", nil
		}
		if !slices.Contains(terms, t) {
			terms = append(terms, t)
		}
	}
	return Selector(strings.Join(terms, ",")), nil
}

func selectorTerm(name, number string, counted bool) (string, error) {
	plural := map[string]string{string(Server): allServers, string(Agent): allAgents}
	switch {
	case counted && plural[name] != "" && number == "*":
		return plural[name], nil
	case counted && plural[name] != "":
		return nodeTerm(name, number)
	case counted:
		return "", fmt.Errorf("%q is no role of a node", name)
	case name == allNodes || name == allServers || name == allAgents:
		return name, nil
	case plural[name] != "":
		return plural[name], nil
	}
	if role, number, ok := strings.Cut(name, "-"); ok && plural[role] != "" {
		return nodeTerm(role, number)
	}
	return "", fmt.Errorf("%q is not the name of a node", name)
}

func nodeTerm(role, number string) (string, error) {
	n, err := strconv.Atoi(number)
	if err != nil || strconv.Itoa(n) != number {
		return "", fmt.Errorf("%q is no number of a node", number)
	}
	node := NodeSpec{Role: Role(role), Index: n}
	return node.Name(), ValidateNode(node)
}

// Matches tells whether a node is one of those chosen.
func (s Selector) Matches(role Role, index int) bool {
	if s == "" {
		return true
	}
	for term := range strings.SplitSeq(string(s), ",") {
		if term == string(role)+"s" || term == NodeName(role, index) {
			return true
		}
	}
	return false
}

// String is what users read.
func (s Selector) String() string {
	if s == "" {
		return allNodes
	}
	return string(s)
}

// suffix is how the selector ends what it belongs to.
func (s Selector) suffix() string {
	if s == "" {
		return ""
	}
	return "@" + string(s)
}

// CutSelector takes a selector off the end of TEXT[@NODES]. Where an @ may be part of the text (a password, an address),
// loose, what does not read as a selector is left where it is.
func CutSelector(text string, loose bool) (string, Selector, error) {
	i := strings.LastIndexByte(text, '@')
	if i < 0 {
		return text, "", nil
	}
	on, err := ParseSelector(text[i+1:])
	if err != nil && loose {
		return text, "", nil
	}
	return text[:i], on, err
}
