package tunnel

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// stream is a server's end of one connection through a tunnel. Each direction is a pipe, so that deadlines work as on
// any connection: TLS relies on them when it closes.
type stream struct {
	up      upward
	down    net.Conn // what arrives is read here
	arrived net.Conn // the other end of down
	local   net.Addr
	remote  address
	cancel  context.CancelCauseFunc
	closing sync.Once

	mu     sync.Mutex // guards what follows
	over   bool       // nothing arrives any more
	err    error      // why that is, other than by its end
	linger *time.Timer
}

// upward is the pipe of what is sent.
type upward struct{ in, out net.Conn }

// address is that of a target, as text: it may mean something on the node only.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func newStream(local net.Addr, remote string, cancel context.CancelCauseFunc) *stream {
	s := &stream{local: local, remote: address(remote), cancel: cancel}
	s.up.in, s.up.out = net.Pipe()
	s.down, s.arrived = net.Pipe()
	return s
}

// body is what HTTP/2 reads what is to be sent from, and closes when the peer does not want more.
func (u upward) body() io.ReadCloser { return u.out }

// receive passes on what arrives until its end, and ends the stream.
func (s *stream) receive(body io.ReadCloser, b *buffers) {
	err := b.copy(s.arrived, body)
	s.mu.Lock()
	s.over, s.err = true, err
	if s.linger != nil {
		s.linger.Stop()
	}
	s.mu.Unlock()
	_ = body.Close()
	s.abort()
}

// abort ends both pipes.
func (s *stream) abort() {
	_ = s.arrived.Close()
	_ = s.up.out.Close()
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.down.Read(b)
	if err == io.EOF {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			err = s.err
		}
	}
	return n, err
}

func (s *stream) Write(b []byte) (int, error) { return s.up.in.Write(b) }

// CloseWrite tells the target that nothing more comes.
func (s *stream) CloseWrite() error { return s.up.in.Close() }

// Close ends the connection as TCP does: what has been written arrives, and what comes is not wanted. A target that does not end its
// side as well is given up after a while.
func (s *stream) Close() error {
	s.closing.Do(func() {
		_ = s.up.in.Close()
		_ = s.down.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.over {
			s.linger = time.AfterFunc(lingerLimit, func() { s.cancel(net.ErrClosed) })
		}
	})
	return nil
}

func (s *stream) LocalAddr() net.Addr                { return s.local }
func (s *stream) RemoteAddr() net.Addr               { return s.remote }
func (s *stream) SetReadDeadline(t time.Time) error  { return s.down.SetReadDeadline(t) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.up.in.SetWriteDeadline(t) }
func (s *stream) SetDeadline(t time.Time) error {
	if err := s.down.SetReadDeadline(t); err != nil {
		return err
	}
	return s.up.in.SetWriteDeadline(t)
}
