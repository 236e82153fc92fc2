package addonmanager

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// conflict is a field that somebody else has set to another value.
type conflict struct {
	field   string // as the server writes it: .spec.template.spec.containers[name="a"].image
	manager string
}

// conflicts reads them out of the server's refusal; nil when err is something else.
func conflicts(err error) []conflict {
	var status apierrors.APIStatus
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	var out []conflict
	for _, c := range status.Status().Details.Causes {
		if c.Type != metav1.CauseTypeFieldManagerConflict {
			continue
		}
		// conflict with "kubectl-edit" using apps/v1
		_, manager, _ := strings.Cut(c.Message, `"`)
		manager, _, _ = strings.Cut(manager, `"`)
		out = append(out, conflict{c.Field, manager})
	}
	return out
}

// without returns a copy of obj in which the field a path leads to is left out, and whether it was there. A
// key may contain dots, which the path does not tell apart from its own, so the object leads the way.
func without(obj any, path string) (any, bool) {
	switch v := obj.(type) {
	case map[string]any:
		rest, ok := strings.CutPrefix(path, ".")
		if !ok {
			return obj, false
		}
		for key, child := range v {
			tail, ok := strings.CutPrefix(rest, key)
			if !ok {
				continue
			}
			if tail == "" {
				return clone(v, key, nil), true
			}
			if tail[0] != '.' && tail[0] != '[' {
				continue
			}
			if c, ok := without(child, tail); ok {
				return clone(v, key, c), true
			}
		}
	case []any:
		for i, item := range v {
			tail, ok := cutItem(path, i, item)
			if !ok {
				continue
			}
			if tail == "" {
				return slices.Delete(slices.Clone(v), i, i+1), true
			}
			if c, ok := without(item, tail); ok {
				out := slices.Clone(v)
				out[i] = c
				return out, true
			}
		}
	}
	return obj, false
}

func clone(m map[string]any, key string, value any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	delete(out, key)
	if value != nil {
		out[key] = value
	}
	return out
}

// cutItem cuts the path element of a list's item off: [3], [="value"], or [key="value",other=1]. A key
// may be one the server has filled in with its default; it is not held against an item.
func cutItem(path string, index int, item any) (string, bool) {
	rest, ok := strings.CutPrefix(path, "[")
	if !ok {
		return "", false
	}
	if tail, ok := strings.CutPrefix(rest, fmt.Sprintf("%d]", index)); ok {
		return tail, true
	}
	if scalar, ok := strings.CutPrefix(rest, "="); ok {
		return strings.CutPrefix(scalar, literal(item)+"]")
	}
	m, ok := item.(map[string]any)
	if !ok {
		return "", false
	}
	matched := false
	for {
		key, value, ok := strings.Cut(rest, "=")
		if !ok {
			return "", false
		}
		tail := skipLiteral(value)
		if have, there := m[key]; there {
			if literal(have) != value[:len(value)-len(tail)] {
				return "", false
			}
			matched = true
		}
		if end, ok := strings.CutPrefix(tail, "]"); ok {
			return end, matched
		}
		if rest, ok = strings.CutPrefix(tail, ","); !ok {
			return "", false
		}
	}
}

// literal is a value as it stands in a path.
func literal(v any) string {
	if s, ok := v.(string); ok {
		return strconv.Quote(s)
	}
	return fmt.Sprint(v)
}

// skipLiteral returns what follows the scalar s begins with.
func skipLiteral(s string) string {
	if !strings.HasPrefix(s, `"`) {
		return strings.TrimLeft(s, "-+.0123456789abcdefghijklmnopqrstuvwxyzE")
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[i+1:]
		}
	}
	return ""
}
