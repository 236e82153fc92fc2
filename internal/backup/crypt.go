package backup

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"strings"

	"filippo.io/age"

	"k1s.io/k1s/internal/errs"
)

// Passphrase opens an archive. It shows itself nowhere.
type Passphrase string

// String hides it.
func (Passphrase) String() string { return "[redacted]" }

// GoString hides it.
func (Passphrase) GoString() string { return "[redacted]" }

// workFactor of scrypt: 2 to the power of it times 1 KiB of memory. It is age's own; an archive that asks for more is refused.
const workFactor = 18

// minPassphrase is the least length: somebody who has the file can try as many as he likes.
const minPassphrase = 12

// ageBegin is how an encrypted archive begins.
const ageBegin = "age-encryption.org/v1\n"

// Lock is what an archive is encrypted with: a passphrase, or the public keys of those who may read it. The zero Lock: with nothing.
type Lock struct {
	Passphrase Passphrase
	// Recipients are keys as age-keygen prints them, age1….
	Recipients []string

	work int // less than workFactor, in tests; 0 is that
}

// None tells that nothing is to be encrypted.
func (l Lock) None() bool { return l.Passphrase == "" && len(l.Recipients) == 0 }

func (l Lock) recipients() ([]age.Recipient, error) {
	if l.Passphrase != "" && len(l.Recipients) > 0 {
		return nil, errs.New(errs.Usage, "an archive is encrypted with a passphrase or for recipients, not with both")
	}
	if l.Passphrase != "" {
		if len(l.Passphrase) < minPassphrase {
			return nil, errs.New(errs.Invalid, "the passphrase has %d characters, and at least %d are needed: who has the archive can try as many as he likes", len(l.Passphrase), minPassphrase)
		}
		r, err := age.NewScryptRecipient(string(l.Passphrase))
		if err != nil {
			return nil, err
		}
		r.SetWorkFactor(cmp.Or(l.work, workFactor))
		return []age.Recipient{r}, nil
	}
	var out []age.Recipient
	for _, s := range l.Recipients {
		r, err := age.ParseX25519Recipient(s)
		if err != nil {
			return nil, errs.Hint(errs.New(errs.Invalid, "%.80q is no recipient: %w", s, err), "it is the public key that age-keygen prints, age1…")
		}
		out = append(out, r)
	}
	return out, nil
}

// Check tells whether it can be used.
func (l Lock) Check() error {
	_, err := l.recipients()
	return err
}

// ParseRecipients reads a file of public keys, one a line, with comments behind #.
func ParseRecipients(b []byte) []string {
	var out []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	return out
}

// Key is what opens an encrypted archive. The zero Key opens those that are not.
type Key struct {
	Passphrase Passphrase
	// Identities is the content of a file of private keys, as age-keygen writes it.
	Identities []byte
}

// None tells that there is no key.
func (k Key) None() bool { return k.Passphrase == "" && len(k.Identities) == 0 }

func (k Key) identities() ([]age.Identity, error) {
	var out []age.Identity
	if len(k.Identities) > 0 {
		ids, err := age.ParseIdentities(bytes.NewReader(k.Identities))
		if err != nil { // it may quote the key
			return nil, errs.Hint(errs.New(errs.Invalid, "the file of identities has no private key of age in it"), "it has lines AGE-SECRET-KEY-1…, as age-keygen writes them")
		}
		out = append(out, ids...)
	}
	if k.Passphrase != "" {
		id, err := age.NewScryptIdentity(string(k.Passphrase))
		if err != nil {
			return nil, err
		}
		id.SetMaxWorkFactor(workFactor)
		out = append(out, id)
	}
	return out, nil
}

// decrypt is r in the clear, and whether it was not.
func decrypt(r *bufio.Reader, k Key) (io.Reader, bool, error) {
	begin, err := r.Peek(len(ageBegin))
	if string(begin) != ageBegin {
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, false, err
		}
		return r, false, nil
	}
	if k.None() {
		return nil, true, errs.Hint(errs.New(errs.Denied, "the archive is encrypted"), "name what opens it: --passphrase-file FILE, --identity-file FILE, or K1S_BACKUP_PASSPHRASE")
	}
	ids, err := k.identities()
	if err != nil {
		return nil, true, err
	}
	clear, err := age.Decrypt(r, ids...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none) && k.Passphrase != "" && len(k.Identities) == 0:
		return nil, true, errs.New(errs.Denied, "the passphrase is wrong, or the archive was encrypted for recipients")
	case errors.As(err, &none):
		return nil, true, errs.New(errs.Denied, "the archive was encrypted for others, or with a passphrase")
	case err != nil:
		return nil, true, errs.New(errs.Invalid, "the archive is damaged: its beginning, which says for whom it is encrypted, cannot be read")
	}
	return clear, true, nil
}
