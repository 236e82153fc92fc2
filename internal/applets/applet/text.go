package applet

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// span is a range of addresses, end excluded.
type span struct{ begin, end uintptr }

// programText finds in the text of /proc/PID/smaps the mappings of program that hold nothing but what
// its file holds: not writable, and no page of them was ever written (relocations are).
func programText(smaps io.Reader, program string) ([]span, error) {
	var spans []span
	var current *span // the mapping the lines belong to, if it may be one
	lines := bufio.NewScanner(smaps)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 2 && strings.HasSuffix(fields[0], ":"): // an attribute
			if current != nil && fields[0] == "Anonymous:" && fields[1] == "0" {
				spans = append(spans, *current)
			}
		case len(fields) >= 5: // addresses permissions offset device inode [path]
			current = nil
			_, path, _ := strings.Cut(lines.Text(), "/")
			if strings.Contains(fields[1], "w") || "/"+path != program {
				continue
			}
			s, err := parseSpan(fields[0])
			if err != nil {
				return nil, err
			}
			current = &s
		}
	}
	return spans, lines.Err()
}

func parseSpan(text string) (span, error) {
	begin, end, _ := strings.Cut(text, "-")
	b, err1 := strconv.ParseUint(begin, 16, strconv.IntSize)
	e, err2 := strconv.ParseUint(end, 16, strconv.IntSize)
	if err1 != nil || err2 != nil || b >= e {
		return span{}, fmt.Errorf("reading a memory map: %q is no range of addresses", text)
	}
	return span{uintptr(b), uintptr(e)}, nil
}
