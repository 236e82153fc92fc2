package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/unitlog"
)

// copierName is the applet, and the name of its log.
const copierName = "datastore-copy"

// copierProcess is the program that copies. It ends with its input, so also with us.
type copierProcess struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	events chan migration.Event
	read   chan error // of what it tells, told once
	log    string
	ended  bool
	marked bool // the target, with the move's ID
}

func startCopier(ctx context.Context, in component.Input, j migration.Job) (*copierProcess, error) {
	c := &copierProcess{
		// Not CommandContext: it is asked to end by the end of its input, and closes databases then.
		cmd:    exec.Command(path.Join(in.Payload, components.Program), copierName),
		events: make(chan migration.Event), read: make(chan error, 1), log: in.Paths.Log(copierName),
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	line, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path.Dir(c.log), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600) // one that asks may write to it beside one that copies
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	c.cmd.Stderr = log
	c.cmd.Env = append(os.Environ(), "PATH="+in.Payload+":"+os.Getenv("PATH"))
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the program that copies: %w", err)
	}
	go c.listen(out)
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		c.kill()
		return nil, fmt.Errorf("telling the program that copies what to do: %w", err)
	}
	return c, nil
}

// listen passes on what it tells; it ends with the process, whose output somebody has to read to the end.
func (c *copierProcess) listen(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20) // a result has a row for each kind of objects
	var err error
	for err == nil && lines.Scan() {
		var e migration.Event
		if err = json.Unmarshal(lines.Bytes(), &e); err == nil {
			c.events <- e
		}
	}
	c.read <- errors.Join(err, lines.Err())
	close(c.events)
}

// until reads events until one is found; what else it tells is progress. The end of the program is an error, with what
// it said last.
func (c *copierProcess) until(ctx context.Context, progress func(migration.Progress), found func(migration.Event) bool) (migration.Event, error) {
	for {
		select {
		case <-ctx.Done():
			return migration.Event{}, context.Cause(ctx)
		case e, ok := <-c.events:
			if !ok {
				return e, c.failure(errors.Join(<-c.read, c.end()))
			}
			if e.Progress != nil && progress != nil {
				progress(*e.Progress)
			}
			c.marked = c.marked || e.Marked
			if found(e) {
				return e, nil
			}
		}
	}
}

// finish tells it that nobody uses the source any more.
func (c *copierProcess) finish() error {
	if _, err := io.WriteString(c.in, migration.Finish+"\n"); err != nil {
		return c.failure(fmt.Errorf("telling the program that copies to finish: %w", err))
	}
	return nil
}

// wait is for its end after its result.
func (c *copierProcess) wait() error {
	for range c.events { // to the end
	}
	if err := errors.Join(<-c.read, c.end()); err != nil {
		return c.failure(err)
	}
	return nil
}

func (c *copierProcess) end() error {
	c.ended = true
	return errors.Join(c.in.Close(), c.cmd.Wait())
}

// kill ends it, whatever it does.
func (c *copierProcess) kill() {
	if c.ended {
		return
	}
	_ = c.cmd.Process.Kill() // it may have ended
	for range c.events {
	}
	_ = c.end()
}

// failure says what it said: its last error and hint.
func (c *copierProcess) failure(err error) error {
	return programError("copying the datastore", copierName, err, c.log)
}

// programError is the error of an applet of ours that ended early: its last one and its hint, as they stand in its log.
func programError(doing, applet string, err error, log string) error {
	said, hint := "", ""
	if lines, terr := unitlog.Tail(log, 20); terr == nil {
		for _, line := range lines {
			if text, ok := strings.CutPrefix(line, "error: "); ok {
				said = strings.TrimPrefix(text, applet+": ")
			}
			if text, ok := strings.CutPrefix(line, "hint:  "); ok {
				hint = text
			}
		}
	}
	if said == "" {
		if err == nil {
			err = errors.New("it ended without a result")
		}
		return errs.WithLog(fmt.Errorf("%s: %w", doing, err), log)
	}
	if hint == "" {
		return errs.WithLog(errs.New(errs.Failure, "%s", said), log)
	}
	return errs.WithLog(errs.Hint(errs.New(errs.Failure, "%s", said), "%s", hint), log)
}
