// Package etcdcare is the program that does what keeping an embedded etcd takes etcd's libraries or S3 for, as an applet: it
// takes snapshots, lists and removes them, here and in S3, and makes data directories from them. What is to be done
// comes from the daemon, see package internal/etcdcare, which also decides.
package etcdcare

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
)

// Run does one Job of standard input. It takes no arguments.
func Run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return errs.New(errs.Usage, "etcd-care takes no arguments: its job comes from standard input")
	}
	return run(ctx, os.Stdin, os.Stdout)
}

var errNoInput = errors.New("k1s ended, or gave up")

// maxJob is more than any job has.
const maxJob = 4 << 20

func run(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxJob)
	if !lines.Scan() {
		return errs.New(errs.Usage, "there is no job on standard input")
	}
	var job etcdcare.Job
	if json.Unmarshal(lines.Bytes(), &job) != nil {
		return errs.New(errs.Usage, "the job cannot be read") // the error may quote it, and it may hold a password
	}
	go func() { // ends with its input, which is that of the process
		for lines.Scan() {
		}
		cancel(errNoInput)
	}()
	answer, err := do(ctx, job)
	if cause := context.Cause(ctx); err != nil && cause != nil && errors.Is(cause, errNoInput) {
		return cause
	}
	if err != nil {
		w := errs.ToWire(err)
		answer.Error = &w
	}
	return json.NewEncoder(out).Encode(answer)
}

func do(ctx context.Context, j etcdcare.Job) (etcdcare.Answer, error) {
	switch j.Do {
	case etcdcare.Save:
		return save(ctx, j)
	case etcdcare.List:
		return list(ctx, j)
	case etcdcare.Remove:
		return remove(ctx, j)
	case etcdcare.Look:
		return look(ctx, j)
	case etcdcare.Stage:
		return stage(ctx, j)
	case etcdcare.Advance:
		return advance(j)
	}
	return etcdcare.Answer{}, errs.New(errs.Usage, "there is nothing to do that is called %q", j.Do)
}

// readMeta reads what is known of a snapshot. An error of kind errs.NotFound means that nothing is.
func readMeta(file string) (etcdcare.Snapshot, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return etcdcare.Snapshot{}, errs.As(errs.NotFound, err)
	}
	var s etcdcare.Snapshot
	if err == nil {
		err = unmarshalMeta(b, &s)
	}
	return s, err
}

func unmarshalMeta(b []byte, s *etcdcare.Snapshot) error {
	if err := json.Unmarshal(b, s); err != nil {
		return fmt.Errorf("what is known of it cannot be read: %w", err)
	}
	return nil
}

// remove removes snapshots, and what is known of them last, so that one that is half removed is named as such.
func remove(ctx context.Context, j etcdcare.Job) (etcdcare.Answer, error) {
	var (
		out    etcdcare.Answer
		failed []error
		far    *bucket
	)
	for _, where := range j.Where {
		var err error
		switch key, inS3 := cutS3(where); {
		case inS3:
			if far == nil {
				if far, err = openBucket(j.S3); err != nil {
					return out, err
				}
			}
			err = far.remove(ctx, key)
		default:
			err = removeFiles(where)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("removing %s: %w", where, err))
			continue
		}
		out.Entries = append(out.Entries, etcdcare.Entry{Where: where})
	}
	return out, errors.Join(failed...)
}

// removeFiles removes a snapshot of this machine, finished or not, or an archived data directory.
func removeFiles(where string) error {
	if st, err := os.Stat(where); err == nil && st.IsDir() {
		return os.RemoveAll(where)
	}
	base := cutEnds(where)
	var failed []error
	for _, end := range []string{etcdcare.FileEnd, etcdcare.FileEnd + etcdcare.PartEnd, etcdcare.MetaEnd} {
		if err := os.Remove(base + end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	if err := durable.SyncDir(filepath.Dir(where)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
