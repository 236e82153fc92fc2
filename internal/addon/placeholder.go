package addon

import (
	"encoding/json"
	"fmt"
	"strings"
)

// The placeholders of an add-on, all there are:
//
//	{{ .Name }}                          the value of a parameter
//	{{ quote .Name }}                    the value as one YAML (and JSON) string
//	{{ if .Name }} … {{ else }} … {{ end }}   what is between, if the value is true or not empty; may be nested
//	{{ if not .Name }}                   the opposite
//
// A dash inside ({{- or -}}) removes the white space on that side. The syntax is a part of text/template,
// whose use would keep every exported method of the whole program in it (1.8 MB of 13, 2026-11).

// fragment is literal text, a value, or a condition with two branches.
type fragment struct {
	text string

	param string // if not empty: a value or a condition
	quote bool

	condition, negated bool
	yes, no            []fragment
}

// placeholders reads one text from front to back.
type placeholders struct {
	file, text string
	at         int             // offset in text
	line       int             // of at, from 1
	known      map[string]bool // parameters
	trim       bool            // white space from at on is to be removed
}

// parsePlaceholders reads text, which begins at the given line of file. Every parameter it names must
// be known. Errors tell file and line.
func parsePlaceholders(file, text string, line int, known map[string]bool) ([]fragment, error) {
	p := &placeholders{file: file, text: text, line: line, known: known}
	all, end, err := p.fragments()
	if err == nil && end != "" {
		err = p.errorf("{{ %s }} without {{ if }}", end)
	}
	return all, err
}

// fragments reads up to "else", "end", which it returns, or the end of the text.
func (p *placeholders) fragments() (all []fragment, end string, err error) {
	for {
		literal, action, found, err := p.next()
		if err != nil {
			return nil, "", err
		}
		if literal != "" {
			all = append(all, fragment{text: literal})
		}
		if !found {
			return all, "", nil
		}
		words := strings.Fields(action)
		switch {
		case len(words) == 1 && (words[0] == "else" || words[0] == "end"):
			return all, words[0], nil
		case len(words) > 1 && words[0] == "if":
			f, err := p.conditional(words[1:])
			if err != nil {
				return nil, "", err
			}
			all = append(all, f)
		default:
			f := fragment{quote: len(words) == 2 && words[0] == "quote"}
			if f.quote {
				words = words[1:]
			}
			if f.param, err = p.parameter(words); err != nil {
				return nil, "", err
			}
			all = append(all, f)
		}
	}
}

// conditional reads what follows "{{ if words }}" up to and with its end.
func (p *placeholders) conditional(words []string) (fragment, error) {
	f := fragment{condition: true, negated: len(words) == 2 && words[0] == "not"}
	begin := p.line
	if f.negated {
		words = words[1:]
	}
	var err error
	if f.param, err = p.parameter(words); err != nil {
		return f, err
	}
	end := ""
	if f.yes, end, err = p.fragments(); err == nil && end == "else" {
		f.no, end, err = p.fragments()
	}
	switch {
	case err != nil:
		return f, err
	case end == "":
		return f, fmt.Errorf("%s:%d: {{ if .%s }} has no {{ end }}", p.file, begin, f.param)
	case end == "else":
		return f, p.errorf("a second {{ else }} for one {{ if }}")
	}
	return f, nil
}

// next takes the text up to the next placeholder, and what is inside that.
func (p *placeholders) next() (literal, action string, found bool, err error) {
	const space = " \t\r\n"
	rest := p.text[p.at:]
	literal, inside, found := strings.Cut(rest, "{{")
	p.advance(len(literal))
	if p.trim {
		literal = strings.TrimLeft(literal, space)
	}
	p.trim = false
	if !found {
		return literal, "", false, nil
	}
	action, _, closed := strings.Cut(inside, "}}")
	if i := strings.Index(action, "\n"); !closed || i >= 0 {
		return "", "", false, p.errorf("{{ without }} on the same line")
	}
	p.advance(len("{{") + len(action) + len("}}"))
	if a, ok := strings.CutPrefix(action, "-"); ok {
		action, literal = a, strings.TrimRight(literal, space)
	}
	action, p.trim = strings.CutSuffix(action, "-")
	return literal, strings.TrimSpace(action), true, nil
}

func (p *placeholders) advance(n int) {
	p.line += strings.Count(p.text[p.at:p.at+n], "\n")
	p.at += n
}

// parameter expects exactly one word, the name of a parameter with a dot in front.
func (p *placeholders) parameter(words []string) (string, error) {
	name := ""
	if len(words) == 1 {
		name, _ = strings.CutPrefix(words[0], ".")
	}
	if name == "" || "."+name != words[0] {
		return "", p.errorf("{{ %s }} is not understood; there are .Name, quote .Name, if .Name, if not .Name, else and end", strings.Join(words, " "))
	}
	if !p.known[name] {
		return "", p.errorf("there is no parameter %q", name)
	}
	return name, nil
}

func (p *placeholders) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", p.file, p.line, fmt.Sprintf(format, args...))
}

// fill writes the fragments with the values: strings and bools, one for every parameter.
func fill(b *strings.Builder, all []fragment, values map[string]any) {
	for _, f := range all {
		v := values[f.param]
		switch {
		case f.param == "":
			b.WriteString(f.text)
		case f.condition:
			branch := f.yes
			if (v == false || v == "") != f.negated {
				branch = f.no
			}
			fill(b, branch, values)
		case f.quote:
			b.WriteString(quote(v))
		default:
			fmt.Fprint(b, v)
		}
	}
}

// quote makes any value one YAML and JSON string.
func quote(v any) string {
	b, _ := json.Marshal(fmt.Sprint(v)) // there is no string it could not write
	return string(b)
}
