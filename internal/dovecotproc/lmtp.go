package dovecotproc

import (
	"context"
	"fmt"
	"net"
	"net/textproto"
	"time"
)

// deliverTimeout bounds a delivery whose context has no deadline.
const deliverTimeout = 30 * time.Second

// Deliver delivers a message (header and text, lines ending in \n or \r\n) by LMTP to one
// user, who need not have existed before; user+folder@domain means a folder of the user's, likewise. It returns when
// Dovecot has taken it, which is after the push notification.
func (s *Server) Deliver(ctx context.Context, to, message string) error {
	ctx, cancel := context.WithTimeout(ctx, deliverTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.lmtpAddr)
	if err != nil {
		return fmt.Errorf("lmtp: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	c := textproto.NewConn(conn)
	defer c.Close()
	if _, _, err := c.ReadResponse(220); err != nil {
		return fmt.Errorf("lmtp: greeting: %w", err)
	}
	// RFC 2033, section 4: LHLO, and after DATA one answer for each recipient.
	for _, step := range []struct {
		command string
		code    int
	}{
		{"LHLO localhost", 250}, {"MAIL FROM:<sender@example.org>", 250}, {"RCPT TO:<" + to + ">", 250}, {"DATA", 354},
	} {
		if err := c.PrintfLine("%s", step.command); err != nil {
			return fmt.Errorf("lmtp: %s: %w", step.command, err)
		}
		if _, _, err := c.ReadResponse(step.code); err != nil {
			return fmt.Errorf("lmtp: %s: %w", step.command, err)
		}
	}
	w := c.DotWriter()
	if _, err := w.Write([]byte(message)); err != nil {
		return fmt.Errorf("lmtp: message: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("lmtp: message: %w", err)
	}
	if _, _, err := c.ReadResponse(250); err != nil {
		return fmt.Errorf("lmtp: delivery: %w", err)
	}
	_ = c.PrintfLine("QUIT") // delivered; how the talk ends does not matter
	return nil
}

// Message returns a small message for Deliver.
func Message(from, to, subject, text string) string {
	return fmt.Sprintf("From: %s\nTo: %s\nSubject: %s\nDate: %s\nMessage-ID: <%d@example.org>\n\n%s\n",
		from, to, subject, time.Now().Format(time.RFC1123Z), time.Now().UnixNano(), text)
}
