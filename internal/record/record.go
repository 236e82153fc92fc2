// Package record turns what k1s keeps of its own undertakings (a move, a rotation, an upgrade) into bytes and back. It touches no disk, so that
// the pure packages can use it.
package record

import (
	"encoding/json"
	"fmt"
)

// Compact is v in one line, for a database. v must be plain data: what JSON cannot say is a fault of the program, and panics.
func Compact(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// Indented is v as a file keeps it, to be read by people too. v must be plain data: what JSON cannot say is a fault of the program, and panics.
func Indented(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err)
	}
	return append(b, '\n')
}

// Read is what Compact or Indented wrote. Fields that T does not have are left out, as a later version may have written them.
func Read[T any](b []byte) (T, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		var none T
		return none, fmt.Errorf("it is not what k1s wrote: %w", err)
	}
	return v, nil
}
