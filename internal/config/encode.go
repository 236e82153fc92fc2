package config

import (
	"bytes"
	"fmt"
	"reflect"
	"sort"

	"go.yaml.in/yaml/v3"
)

// YAML writes cfg as a file that Load reads back. With origins each value that the user can set has a
// comment that tells where it comes from; nil for none.
func YAML(cfg Config, origins Origins) ([]byte, error) {
	root, err := encode(reflect.ValueOf(cfg), "", origins)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return nil, fmt.Errorf("writing the configuration as YAML: %w", err)
	}
	return b.Bytes(), enc.Close()
}

func encode(v reflect.Value, path string, origins Origins) (*yaml.Node, error) {
	switch v.Kind() {
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range v.NumField() {
			sf := v.Type().Field(i)
			if omitEmpty(sf) && (v.Field(i).IsZero() || v.Field(i).Kind() == reflect.Slice && v.Field(i).Len() == 0) {
				continue
			}
			at := jsonName(sf)
			if path != "" {
				at = path + "." + at
			}
			if err := addEntry(n, jsonName(sf), v.Field(i), at, origins); err != nil {
				return nil, err
			}
		}
		return n, nil
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, k := range keys {
			if err := addEntry(n, k.String(), v.MapIndex(k), keyPath(path, k.String()), origins); err != nil {
				return nil, err
			}
		}
		return n, nil
	case reflect.Interface:
		if v.IsNil() {
			return scalarNode(nil)
		}
		return encode(v.Elem(), path, origins)
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			item, err := encode(v.Index(i), indexPath(path, i), origins)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
		return n, nil
	default:
		return scalarNode(v.Interface())
	}
}

func addEntry(n *yaml.Node, name string, v reflect.Value, path string, origins Origins) error {
	key, err := scalarNode(name)
	if err != nil {
		return err
	}
	value, err := encode(v, path, origins)
	if err != nil {
		return err
	}
	if origins != nil && path != "apiVersion" && path != "kind" {
		switch {
		case value.Kind == yaml.ScalarNode:
			value.LineComment = origins.Of(path).String()
		case value.Kind == yaml.SequenceNode: // a comment on the list itself would go below it
			key.LineComment = origins.Of(path).String()
		}
	}
	n.Content = append(n.Content, key, value)
	return nil
}

func scalarNode(v any) (*yaml.Node, error) {
	n := &yaml.Node{}
	if err := n.Encode(v); err != nil {
		return nil, fmt.Errorf("writing the configuration as YAML: %w", err)
	}
	return n, nil
}
