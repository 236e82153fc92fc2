package errs

// Wire is an error as it is told to a client of one of our own interfaces, as JSON.
type Wire struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	Kind  int    `json:"kind"`
}

// ToWire is what a client is told. The log of an error is a file of ours, so it stays here.
func ToWire(err error) Wire {
	hint, _ := HintOf(err)
	return Wire{Error: err.Error(), Hint: hint, Kind: int(KindOf(err))}
}

// Err is the error at the other end; nil where nothing was said.
func (w Wire) Err() error {
	if w.Error == "" {
		return nil
	}
	err := New(Kind(w.Kind), "%s", w.Error)
	if w.Hint != "" {
		err = Hint(err, "%s", w.Hint)
	}
	return err
}
