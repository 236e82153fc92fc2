package kubeconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
)

// MergeOptions say how an entry is added.
type MergeOptions struct {
	// SetCurrent makes it the current context.
	SetCurrent bool
}

// The three lists of a file, and the field each entry has besides its name.
var lists = [...]struct{ list, field string }{{"clusters", "cluster"}, {"contexts", "context"}, {"users", "user"}}

// Merge adds c to files[0], or brings the entry it has there up to date. Everything else in the file
// stays as it is, with its comments and unknown fields. An entry of that name that is not ours, in any of
// the files, is an error of kind errs.Exists and nothing is written. kubectl's lock is respected; ctx
// bounds the wait for it. changed tells that the file was written.
func Merge(ctx context.Context, files []string, c Config, o MergeOptions) (changed bool, err error) {
	if len(files) == 0 {
		return false, errs.Hint(errors.New("merging a kubeconfig: there is no home directory"), "set the variable KUBECONFIG to a file")
	}
	for _, name := range files[1:] {
		d, err := open(name)
		if err != nil {
			return false, err
		}
		if line, foreign := d.foreign(c); foreign {
			return false, taken(c.Name, name, line)
		}
	}
	return edit(ctx, files[0], func(d *document) error {
		if line, foreign := d.foreign(c); foreign {
			return taken(c.Name, files[0], line)
		}
		return d.set(c, o)
	})
}

func taken(name, path string, line int) error {
	return errs.Hint(errs.New(errs.Exists, "%s:%d: there is an entry %q already, which k1s did not make", path, line, name),
		"choose another name with --name, or remove that entry")
}

// Remove takes our entry of that name out of every file that has it. Entries that are not ours stay. If
// it was the current context, the one before it becomes current again. Nothing to remove is success.
func Remove(ctx context.Context, files []string, name string) (removed bool, err error) {
	var failed []error
	for _, f := range files {
		// A file without our mark need not even be well-formed or writable.
		raw, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !bytes.Contains(raw, []byte(originName))) {
			continue
		}
		changed, err := edit(ctx, f, func(d *document) error { d.remove(name); return nil })
		removed = removed || changed
		failed = append(failed, err)
	}
	return removed, errors.Join(failed...)
}

// document is a kubeconfig file as nodes, so that what we do not know survives.
type document struct {
	path string
	raw  []byte
	doc  yaml.Node
	root *yaml.Node // the mapping
}

func open(path string) (*document, error) {
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading kubeconfig: %w", err)
	}
	d := &document{path: path, raw: raw}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	switch err := dec.Decode(&d.doc); {
	case errors.Is(err, io.EOF): // empty, or only comments: those are kept by hand, see save
	case err != nil:
		return nil, parseError(path, err)
	default:
		var second yaml.Node
		if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
			if err != nil {
				return nil, parseError(path, err)
			}
			return nil, badFile(path, strconv.Itoa(second.Line), "a second document begins; kubectl would not see it")
		}
	}
	if d.doc.Kind == 0 || isNull(d.doc.Content[0]) {
		d.root = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		set(d.root, "apiVersion", scalar("v1"))
		set(d.root, "kind", scalar("Config"))
		d.doc = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{d.root}}
		return d, nil
	}
	d.root = d.doc.Content[0]
	if d.root.Kind != yaml.MappingNode {
		return nil, badFile(path, strconv.Itoa(d.root.Line), "this is not a kubeconfig: a mapping is expected")
	}
	return d, d.check()
}

// check refuses what kubectl would refuse, before we build on it.
func (d *document) check() error {
	for _, l := range lists {
		list := get(d.root, l.list)
		if list == nil || isNull(list) {
			continue
		}
		if list.Kind != yaml.SequenceNode {
			return badFile(d.path, strconv.Itoa(list.Line), l.list+" is not a list")
		}
		seen := map[string]int{}
		for _, e := range list.Content {
			e = follow(e)
			name := get(e, "name")
			if e.Kind != yaml.MappingNode || name == nil || name.Kind != yaml.ScalarNode {
				return badFile(d.path, strconv.Itoa(e.Line), "this entry of "+l.list+" has no name")
			}
			if first, ok := seen[name.Value]; ok {
				return badFile(d.path, strconv.Itoa(e.Line), fmt.Sprintf("%s has a second entry %q (the first is on line %d)", l.list, name.Value, first))
			}
			seen[name.Value] = e.Line
		}
	}
	return nil
}

// entry returns the entry of that name and its body, or nil.
func (d *document) entry(list, field, name string) (entry, body *yaml.Node) {
	l := get(d.root, list)
	if l == nil {
		return nil, nil
	}
	for _, e := range l.Content {
		e = follow(e)
		if n := get(e, "name"); n != nil && n.Value == name {
			return e, get(e, field)
		}
	}
	return nil, nil
}

// foreign tells whether an entry of c's name is somebody else's: it has no mark of ours, and its
// cluster does not have c's authority either (a file written by Build and moved there by hand).
func (d *document) foreign(c Config) (line int, yes bool) {
	sameCA := false
	if _, body := d.entry("clusters", "cluster", c.Name); body != nil && len(c.CA) > 0 {
		var cl clusterBody
		if body.Decode(&cl) == nil {
			ca, err := data(cl.CAData, cl.CA, filepath.Dir(d.path))
			sameCA = err == nil && bytes.Equal(bytes.TrimSpace(ca), bytes.TrimSpace(c.CA))
		}
	}
	for _, l := range lists {
		entry, body := d.entry(l.list, l.field, c.Name)
		if entry != nil && !sameCA && mark(body) == nil {
			return entry.Line, true
		}
	}
	return 0, false
}

// mark returns our extension of an entry's body, nil if it has none.
func mark(body *yaml.Node) *origin {
	if body == nil {
		return nil
	}
	exts := get(body, "extensions")
	if exts == nil {
		return nil
	}
	for _, e := range exts.Content {
		var x extension
		if n := get(follow(e), "name"); n != nil && n.Value == originName && follow(e).Decode(&x) == nil {
			return &x.Extension
		}
	}
	return nil
}

func (d *document) set(c Config, o MergeOptions) error {
	ours := origin{Cluster: c.Name}
	_, old := d.entry("contexts", "context", c.Name)
	if m := mark(old); m != nil {
		ours.Previous = m.Previous
	}
	current := get(d.root, "current-context")
	if o.SetCurrent {
		if current != nil && current.Value != c.Name {
			ours.Previous = current.Value
		}
		set(d.root, "current-context", scalar(c.Name))
	} else if current == nil {
		set(d.root, "current-context", scalar("")) // kubectl writes it so too
	}
	f, err := c.file([]extension{{originName, ours}})
	if err != nil {
		return err
	}
	if c.Namespace == "" && old != nil { // chosen by the user with kubectl config set-context
		if ns := get(old, "namespace"); ns != nil {
			f.Contexts[0].Context.Namespace = ns.Value
		}
	}
	for i, e := range []any{f.Clusters[0], f.Contexts[0], f.Users[0]} {
		var n yaml.Node
		if err := n.Encode(e); err != nil {
			return fmt.Errorf("encoding a kubeconfig: %w", err)
		}
		d.put(lists[i].list, c.Name, &n)
	}
	return nil
}

func (d *document) put(list, name string, n *yaml.Node) {
	l := get(d.root, list)
	if l == nil || isNull(l) {
		l = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		set(d.root, list, l)
	}
	if len(l.Content) == 0 {
		l.Style = 0 // "[]" is what kubectl writes for an empty list; an entry inside looks bad
	}
	for i, e := range l.Content {
		if en := get(follow(e), "name"); en != nil && en.Value == name {
			n.HeadComment, n.LineComment, n.FootComment = e.HeadComment, e.LineComment, e.FootComment
			l.Content[i] = n
			return
		}
	}
	l.Content = append(l.Content, n)
}

func (d *document) remove(name string) {
	previous := ""
	gone := false
	for _, l := range lists {
		_, body := d.entry(l.list, l.field, name)
		m := mark(body)
		if m == nil {
			continue
		}
		if l.list == "contexts" {
			previous, gone = m.Previous, true
		}
		list := get(d.root, l.list)
		list.Content = slices.DeleteFunc(list.Content, func(e *yaml.Node) bool {
			n := get(follow(e), "name")
			return n != nil && n.Value == name
		})
		if len(list.Content) == 0 {
			list.Style = yaml.FlowStyle
		}
	}
	if cur := get(d.root, "current-context"); gone && cur != nil && cur.Value == name {
		if e, _ := d.entry("contexts", "context", previous); e == nil {
			previous = ""
		}
		set(d.root, "current-context", scalar(previous))
	}
}

// encode renders the document; comments of a file that had nothing else are put in front.
func (d *document) encode() ([]byte, error) {
	b, err := encode(&d.doc)
	if err == nil && d.doc.Line == 0 && len(bytes.TrimSpace(d.raw)) > 0 {
		b = append(append(bytes.TrimRight(d.raw, "\n"), '\n'), b...)
	}
	return b, err
}

// edit changes a file under kubectl's lock and replaces it atomically, keeping its mode and owner and
// what a symbolic link points to.
func edit(ctx context.Context, path string, change func(*document) error) (changed bool, err error) {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return false, cannotWrite(path, err)
		}
		if err := likeParent(dir, dir); err != nil {
			return false, cannotWrite(path, err)
		}
	}
	unlock, err := lock(ctx, path)
	if err != nil {
		return false, err
	}
	defer func() {
		if e := unlock(); err == nil {
			err = e
		}
	}()

	d, err := open(path)
	if err != nil {
		return false, err
	}
	before, err := d.encode()
	if err != nil {
		return false, err
	}
	if err := change(d); err != nil {
		return false, err
	}
	after, err := d.encode()
	if err != nil {
		return false, err
	}
	if bytes.Equal(before, after) && d.raw != nil {
		return false, nil // not even reformatted
	}
	return true, replace(path, after)
}

// replace puts data where path, or the end of the chain of links it is, points to.
func replace(path string, data []byte) error {
	target, err := resolve(path)
	if err != nil {
		return cannotWrite(path, err)
	}
	mode := fs.FileMode(0o600)
	st, err := os.Stat(target)
	switch {
	case err == nil && st.Mode().Perm()&0o200 == 0:
		// A rename would go through all the same, but somebody meant it.
		return cannotWrite(path, errors.New("it is marked read-only"))
	case err == nil:
		mode = st.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return cannotWrite(path, err)
	}
	staged, err := durable.Stage(target, data, mode)
	if err != nil {
		return cannotWrite(path, err)
	}
	if st != nil {
		err = likeFile(staged.Temp(), st)
	} else {
		err = likeParent(staged.Temp(), target)
	}
	if err != nil {
		return errors.Join(cannotWrite(path, err), staged.Discard())
	}
	if err := staged.Commit(); err != nil {
		return cannotWrite(path, err)
	}
	return durable.SyncDir(filepath.Dir(target))
}

func cannotWrite(path string, err error) error {
	return errs.Hint(fmt.Errorf("writing kubeconfig %q: %w", path, err),
		"set the variable KUBECONFIG to a file that can be written, or use: k1s kubeconfig print")
}

// resolve follows links, also one that points to nothing yet.
func resolve(path string) (string, error) {
	for range 40 {
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil // not a link, or not there
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", errors.New("too many symbolic links")
}

// Small helpers over nodes.

func follow(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func get(m *yaml.Node, key string) *yaml.Node {
	if m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return follow(m.Content[i+1])
		}
	}
	return nil
}

func set(m *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1] = value
			return
		}
	}
	m.Content = append(m.Content, scalar(key), value)
}

func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if s == "" {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}
