// Package report is what the virtual machine tells the harness: one JSON object a line.
package report

import (
	"encoding/json"
	"io"
	"time"
)

// Port is the name of the virtio port the lines go through.
const Port = "k1s.report"

// Result is the outcome of one check.
type Result struct {
	Check   string        `json:"check"`
	Took    time.Duration `json:"took"`
	Output  string        `json:"output,omitempty"`  // what shows it
	Failure string        `json:"failure,omitempty"` // why it is not so; "" is success
	Detail  string        `json:"detail,omitempty"`  // logs and the like, for failures
	// Last is set on the line after which nothing follows: all checks have been made. It is no check itself.
	Last bool `json:"last,omitempty"`
}

// Write writes one line.
func Write(w io.Writer, r Result) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// Read calls each for every line until the stream ends.
func Read(r io.Reader, each func(Result)) error {
	dec := json.NewDecoder(r)
	for {
		var result Result
		switch err := dec.Decode(&result); err {
		case nil:
			each(result)
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}
