package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// setText gives v what a flag, a variable or a default says. Lists and maps take several texts, each
// may hold several elements with commas between; a list is replaced, a map is added to, and an empty
// text empties both. The error has no path in it and may carry a hint.
func setText(v reflect.Value, texts []string, enum string) error {
	last := ""
	if len(texts) > 0 {
		last = texts[len(texts)-1]
	}
	switch v.Kind() {
	case reflect.String:
		if enum != "" {
			if err := checkEnum(last, strings.Split(enum, ",")); err != nil {
				return err
			}
		}
		v.SetString(last)
	case reflect.Bool:
		b, err := parseBool(last)
		if err != nil {
			return err
		}
		v.SetBool(b)
	case reflect.Int:
		n, err := strconv.Atoi(last)
		if err != nil {
			return fmt.Errorf("is %q, and must be a whole decimal number", shorten(last))
		}
		v.SetInt(int64(n))
	case reflect.Slice:
		list := reflect.Zero(v.Type())
		for _, e := range elements(texts) {
			list = reflect.Append(list, reflect.ValueOf(e))
		}
		v.Set(list)
	case reflect.Map:
		return setMapText(v, texts)
	default:
		return fmt.Errorf("cannot be set from text")
	}
	return nil
}

func setMapText(v reflect.Value, texts []string) error {
	list := elements(texts)
	if len(list) == 0 {
		v.SetZero()
		return nil
	}
	merged := reflect.MakeMap(v.Type())
	for it := v.MapRange(); it.Next(); {
		merged.SetMapIndex(it.Key(), it.Value())
	}
	for _, e := range list {
		key, value, ok := strings.Cut(e, "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is not key=value", shorten(e))
		}
		elem := reflect.New(v.Type().Elem()).Elem()
		if err := setText(elem, []string{value}, ""); err != nil {
			return fmt.Errorf("%s %w", shorten(key), err)
		}
		merged.SetMapIndex(reflect.ValueOf(key), elem)
	}
	v.Set(merged)
	return nil
}

// elements splits at commas and drops what is empty.
func elements(texts []string) []string {
	var list []string
	for _, t := range texts {
		for _, e := range strings.Split(t, ",") {
			if e = strings.TrimSpace(e); e != "" {
				list = append(list, e)
			}
		}
	}
	return list
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off":
		return false, nil
	}
	return false, fmt.Errorf("is %q, and must be true or false", shorten(s))
}

func checkEnum(value string, allowed []string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	err := fmt.Errorf("is %q, and must be %s", shorten(value), oneOf(allowed))
	if near := nearest(value, allowed); near != "" {
		return errs.Hint(err, "did you mean %q?", near)
	}
	return err
}

// oneOf is "a, b or c".
func oneOf(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:len(list)-1], ", ") + " or " + list[len(list)-1]
}

func hintOf(err error) string {
	hint, _ := errs.HintOf(err)
	return hint
}
