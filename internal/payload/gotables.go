package payload

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
)

// Every Go program carries tables that tell the function, file and line of each address. They are more than
// a third of it, and half of what it is when compressed, because zstd finds little in them as they
// are: numbers that nearly always are a little larger than another one before. FilterGoFuncs and FilterGoLines
// rewrite two of these tables so that equal things are equal bytes and stand side by side. Measured for
// k1s-kube, in MB at zstd level 12 (2026-11): functions 6.7 → 3.9, addresses to lines 8.4 → 7.4.
//
// The form of the tables is that of the Go linker since 1.20 (runtime/symtab.go). The packer verifies what it
// filtered, and packs as it is what it does not recognise; so another form costs size and nothing else.
const (
	// FilterGoFuncs is for the table of functions: the index by address, and the records it points to.
	FilterGoFuncs = "go-funcs"
	// FilterGoLines is for the table of what changes at which address: line, stack depth and so on.
	FilterGoLines = "go-lines"
)

// Region is a part of a program's file.
type Region struct {
	From, To int64
	Filter   string // made for it, or ""
	Kind     string // regions of one kind have much in common, in whatever program they are
}

// Kinds of regions beside those that are called like their filters.
const (
	KindNames = "names" // of functions and source files
	KindRest  = "rest"
)

// Regions divides a program, in the order of its file and without gaps. What is no program has no regions, and one
// that is built in ways unknown here has fewer.
func Regions(program []byte) []Region {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return nil
	}
	var found []Region
	if text := contents(f, ".text", program); len(text) > 0 && f.Machine == elf.EM_X86_64 {
		at := int64(f.Section(".text").Offset)
		found = append(found, Region{at, at + int64(len(text)), FilterX86, FilterX86})
	}
	if tables := contents(f, ".gopclntab", program); f.ByteOrder == binary.LittleEndian {
		for _, r := range goTables(tables) {
			at := int64(f.Section(".gopclntab").Offset)
			found = append(found, Region{at + r.From, at + r.To, r.Filter, r.Kind})
		}
	}
	slices.SortFunc(found, func(a, b Region) int { return cmp.Compare(a.From, b.From) })
	var all []Region
	at := int64(0)
	rest := func(to int64) {
		if at < to {
			all = append(all, Region{at, to, "", KindRest})
		}
	}
	for _, r := range found {
		if r.From < at { // sections one over the other: no linker makes that
			return nil
		}
		rest(r.From)
		all = append(all, r)
		at = r.To
	}
	rest(int64(len(program)))
	return all
}

// contents is a section as it stands in the file.
func contents(f *elf.File, name string, program []byte) []byte {
	s := f.Section(name)
	if s == nil || s.Type != elf.SHT_PROGBITS || s.FileSize > uint64(len(program)) || s.Offset > uint64(len(program))-s.FileSize {
		return nil
	}
	return program[s.Offset : s.Offset+s.FileSize]
}

// goTables finds the tables in the section, whose header says where they begin.
func goTables(b []byte) []Region {
	const magic, words = 0xfffffff1, 8
	if len(b) < 8+words*8 || le.Uint32(b) != magic || b[7] != 4 && b[7] != 8 {
		return nil
	}
	word := func(i int) uint64 {
		if b[7] == 4 {
			return uint64(le.Uint32(b[8+4*i:]))
		}
		return le.Uint64(b[8+8*i:])
	}
	lines, funcs := word(6), word(7)
	if lines == 0 || lines >= funcs || funcs >= uint64(len(b)) {
		return nil
	}
	all := []Region{{0, int64(lines), "", KindNames}, {int64(lines), int64(funcs), FilterGoLines, FilterGoLines}}
	if n, err := funcsLength(b[funcs:]); err == nil {
		all = append(all, Region{int64(funcs), int64(funcs) + int64(n), FilterGoFuncs, FilterGoFuncs})
	}
	return all
}

var le = binary.LittleEndian

var errForm = errors.New("the table has another form than expected")

// A record of a function is fixed words, then offsets of tables, then offsets of data. Two of the words tell
// how many of these there are.
const (
	fixedWords = 11
	wordTables = 7  // number of tables
	wordData   = 10 // function kind, flags, 0, number of data: a byte each
	maxExtra   = 64 // of each; far more than there are
)

// Columns: the fixed words, then each table's offsets, then each datum's.
const (
	columns    = fixedWords + 2*maxExtra
	tables     = fixedWords
	data       = fixedWords + maxExtra
	noData     = 1<<32 - 1 // in place of an offset
	escape     = 1 << 31
	nearby     = 1 << 16
	headerSize = 3 * 4
)

func extras(tableCount, dataWord uint32) (nt, nd int, err error) {
	nt, nd = int(tableCount), int(dataWord>>24)
	if tableCount > maxExtra || nd > maxExtra {
		return 0, 0, errForm
	}
	return nt, nd, nil
}

// layout reads the beginning of the table of functions: how many there are, and what records are aligned to.
// The index has two words a function, and one at the end; the second word tells where the records begin.
func layout(b []byte) (n, align int, err error) {
	if len(b) < 12 {
		return 0, 0, errForm
	}
	first := int(le.Uint32(b[4:]))
	n, align = (first-4)/8, 4
	if first%8 == 0 {
		align = 8
	}
	if n < 1 || n > len(b)/8 || first != roundUp(8*n+4, align) {
		return 0, 0, errForm
	}
	return n, align, nil
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// funcsLength is how long the table is that b begins with.
func funcsLength(b []byte) (int, error) {
	n, align, err := layout(b)
	if err != nil {
		return 0, err
	}
	at := roundUp(8*n+4, align)
	end := at
	for range n {
		if at+4*fixedWords > len(b) {
			return 0, errForm
		}
		nt, nd, err := extras(le.Uint32(b[at+4*wordTables:]), le.Uint32(b[at+4*wordData:]))
		if err != nil {
			return 0, err
		}
		end = at + 4*(fixedWords+nt+nd)
		at = roundUp(end, align)
	}
	if end > len(b) {
		return 0, errForm
	}
	return end, nil
}

// predictor turns the words of records into differences from what is expected of them, or back. Encoder and
// decoder call it in the same order and so expect the same.
type predictor struct {
	last [columns]uint32
	high uint32 // the highest offset of a table so far
}

// encode is one-to-one for every state: no content is lost, whatever it is.
func (p *predictor) encode(column int, v uint32) uint32 {
	d := v - p.last[column]
	switch {
	case isTable(column):
		// An offset is that of an old table, then it occurs often as it is, or just behind the newest. What is
		// near the newest changes places with the numbers from escape on.
		c := v
		if near := v - p.high - 1; near < nearby {
			c = escape + near
		} else if v-escape < nearby {
			c = p.high + 1 + (v - escape)
		}
		p.see(v)
		return c
	case column >= data:
		none := noData - p.last[column]
		switch d {
		case none:
			return escape
		case escape:
			d = none
		}
		if v != noData {
			p.last[column] = v
		}
		return d
	case isDifference(column):
		p.last[column] = v
		return d
	}
	return v
}

// decode undoes encode.
func (p *predictor) decode(column int, c uint32) uint32 {
	switch {
	case isTable(column):
		v := c
		if far := c - escape; far < nearby {
			v = p.high + 1 + far
		} else if near := c - p.high - 1; near < nearby {
			v = escape + near
		}
		p.see(v)
		return v
	case column >= data:
		none := noData - p.last[column]
		switch c {
		case escape:
			c = none
		case none:
			c = escape
		}
		v := c + p.last[column]
		if v != noData {
			p.last[column] = v
		}
		return v
	case isDifference(column):
		v := c + p.last[column]
		p.last[column] = v
		return v
	}
	return c
}

// see keeps high where the numbers that change places do not overlap.
func (p *predictor) see(v uint32) {
	if v > p.high && v-p.high <= nearby && v < escape-nearby {
		p.high = v
	}
}

// isTable: where stack depth, file and line of the function's addresses are, and more of the kind.
func isTable(column int) bool { return column >= 4 && column <= 6 || column >= tables && column < data }

// isDifference: address, name, compilation unit, first line.
func isDifference(column int) bool { return column <= 1 || column == 8 || column == 9 }

// doFuncs rewrites the table of functions as columns of its records' words, each column as its lowest bytes,
// its second ones, and so on. The index is left out: it follows from the records.
func doFuncs(b []byte) ([]byte, error) {
	n, align, err := layout(b)
	if err != nil {
		return nil, err
	}
	var cols [columns][]uint32
	var p predictor
	at := roundUp(8*n+4, align)
	end := 8*n + 4
	for i := range n {
		if at+4*fixedWords > len(b) || int(le.Uint32(b[8*i+4:])) != at || !zero(b[end:at]) || le.Uint32(b[8*i:]) != le.Uint32(b[at:]) {
			return nil, errForm
		}
		record := b[at:]
		nt, nd, err := extras(le.Uint32(record[4*wordTables:]), le.Uint32(record[4*wordData:]))
		if err != nil {
			return nil, err
		}
		if 4*(fixedWords+nt+nd) > len(record) {
			return nil, errForm
		}
		for k := range fixedWords + nt + nd {
			c := column(k, nt)
			cols[c] = append(cols[c], p.encode(c, le.Uint32(record[4*k:])))
		}
		end = at + 4*(fixedWords+nt+nd)
		at = roundUp(end, align)
	}
	if end != len(b) {
		return nil, errForm
	}
	out := make([]byte, headerSize, len(b))
	le.PutUint32(out[0:], uint32(n))
	le.PutUint32(out[4:], uint32(align))
	le.PutUint32(out[8:], le.Uint32(b[8*n:])) // the address behind the last function
	for _, c := range columnOrder() {
		for shift := 0; shift < 32; shift += 8 {
			for _, v := range cols[c] {
				out = append(out, byte(v>>shift))
			}
		}
	}
	return out, nil
}

func zero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// column is where word k of a record with nt tables belongs.
func column(k, nt int) int {
	if k >= fixedWords+nt {
		return data + k - fixedWords - nt
	}
	return k
}

// columnOrder begins with the two that tell how long the others are.
func columnOrder() []int {
	order := []int{wordTables, wordData}
	for c := range columns {
		if c != wordTables && c != wordData {
			order = append(order, c)
		}
	}
	return order
}

// undoFuncs undoes doFuncs; size is how long the result must be.
func undoFuncs(b []byte, size int) ([]byte, error) {
	if len(b) < headerSize {
		return nil, errForm
	}
	n, align := int(le.Uint32(b)), int(le.Uint32(b[4:]))
	if n < 1 || n > len(b)/(4*fixedWords) || align != 4 && align != 8 || 8*n > size {
		return nil, errForm
	}
	last, rest := b[8:12], b[headerSize:]
	// A column's planes stand one after the other; word i has a byte in each.
	var planes [columns][4][]byte
	take := func(c, n int) error {
		if 4*n > len(rest) {
			return errForm
		}
		for k := range 4 {
			planes[c][k], rest = rest[:n], rest[n:]
		}
		return nil
	}
	word := func(c, i int) uint32 {
		p := &planes[c]
		return uint32(p[0][i]) | uint32(p[1][i])<<8 | uint32(p[2][i])<<16 | uint32(p[3][i])<<24
	}
	order := columnOrder()
	lengths := [columns]int{}
	for c := range fixedWords {
		lengths[c] = n
	}
	for _, c := range order[:2] {
		if err := take(c, n); err != nil {
			return nil, err
		}
	}
	for i := range n {
		nt, nd, err := extras(word(wordTables, i), word(wordData, i))
		if err != nil {
			return nil, err
		}
		for k := range nt {
			lengths[tables+k]++
		}
		for k := range nd {
			lengths[data+k]++
		}
	}
	for _, c := range order[2:] {
		if err := take(c, lengths[c]); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, errForm
	}

	out := make([]byte, size)
	at := roundUp(8*n+4, align)
	end := at
	var p predictor
	var next [columns]int // in each column
	for i := range n {
		nt, nd, err := extras(word(wordTables, i), word(wordData, i))
		if err != nil {
			return nil, err
		}
		end = at + 4*(fixedWords+nt+nd)
		if end > size {
			return nil, errForm
		}
		record := out[at:end]
		for k := range fixedWords + nt + nd {
			c := column(k, nt)
			le.PutUint32(record[4*k:], p.decode(c, word(c, next[c])))
			next[c]++
		}
		copy(out[8*i:], record[:4])
		le.PutUint32(out[8*i+4:], uint32(at))
		at = roundUp(end, align)
	}
	if end != size {
		return nil, errForm
	}
	copy(out[8*n:], last)
	return out, nil
}

// doLines takes the table apart into what changes by how much, and after how many bytes of code. Both are
// numbers of one or more bytes, of which all but the last have the highest bit set. They alternate;
// a change of 0 that is not the first ends a function's part and has no second number.
func doLines(b []byte) []byte {
	changes := make([]byte, 0, len(b))
	var distances []byte
	first := true
	for at := 1; at < len(b); {
		n := number(b[at:])
		changes = append(changes, b[at:at+n]...)
		ends := !first && b[at] == 0
		first = ends
		at += n
		if ends || at == len(b) {
			continue
		}
		n = number(b[at:])
		distances = append(distances, b[at:at+n]...)
		at += n
	}
	out := make([]byte, 4, 5+len(b))
	le.PutUint32(out, uint32(len(changes)))
	out = append(out, b[:min(1, len(b))]...) // belongs to no function
	return append(append(out, changes...), distances...)
}

// number is how long the number is that b begins with.
func number(b []byte) int {
	for i, c := range b {
		if c < 0x80 {
			return i + 1
		}
	}
	return len(b)
}

// undoLines undoes doLines.
func undoLines(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, errForm
	}
	n, b := int(le.Uint32(b)), b[4:]
	if len(b) == 0 && n == 0 {
		return nil, nil
	}
	if n >= len(b) {
		return nil, errForm
	}
	out := make([]byte, 1, len(b))
	out[0] = b[0]
	changes, distances := b[1:1+n], b[1+n:]
	first := true
	c, d := 0, 0
	for c < len(changes) {
		ends := !first && changes[c] == 0
		first = ends
		for { // to the end of the number; as in number, written out because there are millions
			v := changes[c]
			out = append(out, v)
			c++
			if v < 0x80 || c == len(changes) {
				break
			}
		}
		if ends {
			continue
		}
		for d < len(distances) {
			v := distances[d]
			out = append(out, v)
			d++
			if v < 0x80 {
				break
			}
		}
	}
	if d < len(distances) {
		return nil, errForm
	}
	return out, nil
}
