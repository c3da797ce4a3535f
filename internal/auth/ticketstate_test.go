package auth

import (
	"errors"
	"testing"
	"time"
)

// A ticket used at a notifier stays used at the process that takes it over, whether that one knows the key already or not.
func TestTicketState(t *testing.T) {
	s, keys := newTickets(t)
	now := time.Now()
	id, _ := s.Key()
	used, other, fresh := sign(t, s, ticketAccess, now), sign(t, s, ticketAccess, now), sign(t, s, ticketAccess, now)
	if _, err := keys.Verify(used, "n1", now); err != nil {
		t.Fatal(err)
	}
	state, err := keys.State()
	if err != nil || len(state) != 1 {
		t.Fatalf("%d keys, %v", len(state), err)
	}
	for _, known := range []bool{false, true} {
		next := &TicketKeys{}
		if known {
			if err := next.Add(s.Key()); err != nil {
				t.Fatal(err)
			}
			if _, err := next.Verify(other, "n1", now); err != nil {
				t.Fatal(err)
			}
		}
		if err := next.Restore(state[id]); err != nil {
			t.Fatal(err)
		}
		if _, err := next.Verify(used, "n1", now); !errors.Is(err, ErrUsed) {
			t.Errorf("known %v: the used one: %v", known, err)
		}
		if _, err := next.Verify(other, "n1", now); errors.Is(err, ErrUsed) != known {
			t.Errorf("known %v: the other one: %v", known, err)
		}
		if _, err := next.Verify(fresh, "n1", now); err != nil {
			t.Errorf("known %v: the fresh one: %v", known, err)
		}
	}
}

func TestTicketStateRefusals(t *testing.T) {
	keys := &TicketKeys{}
	for _, bad := range []string{``, `{`, `{"id":"x","public":"AAAA"}`, `{"id":"","public":null}`} {
		if keys.Restore([]byte(bad)) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if state, err := keys.State(); err != nil || len(state) != 0 {
		t.Errorf("%d keys, %v", len(state), err)
	}
}
