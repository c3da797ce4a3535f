package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

var place = Position{Epoch: 0x19aa3f5c2b4, Partition: 12, Offset: 48211}

func TestServerFramesGolden(t *testing.T) {
	const account = Account(`al"ice@example.com`)
	const at = `"account":"al\"ice@example.com","position":"19aa3f5c2b4.12.48211"`
	for _, tc := range []struct {
		got   []byte
		want  string
		frame ServerFrame
	}{
		{AppendSubscribed(nil, 1, account, place, Fresh, 0), `{"type":"subscribed","id":1,` + at + `,"catchUp":"fresh"}`,
			ServerFrame{Type: FrameSubscribed, ID: 1, Account: account, Position: place, CatchUp: Fresh}},
		{AppendSubscribed(nil, MaxFrameID, account, place, Resync, 1500), `{"type":"subscribed","id":9007199254740991,` + at + `,"catchUp":"resync","afterMs":1500}`,
			ServerFrame{Type: FrameSubscribed, ID: MaxFrameID, Account: account, Position: place, CatchUp: Resync, AfterMs: 1500}},
		{AppendEvent(nil, account, place, []byte(`{"id":"a"}`)), `{"type":"event",` + at + `,"event":{"id":"a"}}`,
			ServerFrame{Type: FrameEvent, Account: account, Position: place, Event: json.RawMessage(`{"id":"a"}`)}},
		{AppendMissed(nil, account, place, MissedSlow, 0), `{"type":"missed",` + at + `,"reason":"slow"}`,
			ServerFrame{Type: FrameMissed, Account: account, Position: place, Reason: "slow"}},
		{AppendMissed(nil, account, place, MissedWindow, 20), `{"type":"missed",` + at + `,"reason":"window","afterMs":20}`,
			ServerFrame{Type: FrameMissed, Account: account, Position: place, Reason: "window", AfterMs: 20}},
		{AppendReconnect(nil, 1830, ReconnectDrain, ""), `{"type":"reconnect","afterMs":1830,"reason":"drain"}`,
			ServerFrame{Type: FrameReconnect, AfterMs: 1830, Reason: "drain"}},
		{AppendReconnect(nil, 0, ReconnectRebalance, "wss://n2/v1/ws"), `{"type":"reconnect","afterMs":0,"reason":"rebalance","url":"wss://n2/v1/ws"}`,
			ServerFrame{Type: FrameReconnect, Reason: "rebalance", URL: "wss://n2/v1/ws"}},
		{AppendPong(nil, 3), `{"type":"pong","id":3}`, ServerFrame{Type: FramePong, ID: 3}},
		{AppendUnsubscribed(nil, 2), `{"type":"unsubscribed","id":2}`, ServerFrame{Type: FrameUnsubscribed, ID: 2}},
		{AppendError(nil, 1, true, CodeForbidden, "no\n"), `{"type":"error","id":1,"code":"forbidden","message":"no\n"}`,
			ServerFrame{Type: FrameErr, ID: 1, Code: CodeForbidden, Message: "no\n"}},
		{AppendError(nil, 0, false, CodeBadRequest, "x"), `{"type":"error","code":"badRequest","message":"x"}`,
			ServerFrame{Type: FrameErr, Code: CodeBadRequest, Message: "x"}},
	} {
		if string(tc.got) != tc.want {
			t.Errorf("got  %s\nwant %s", tc.got, tc.want)
		}
		frame, err := DecodeServerFrame(tc.got)
		if err != nil || fmt.Sprint(frame) != fmt.Sprint(tc.frame) {
			t.Errorf("%s is read as %+v, %v", tc.got, frame, err)
		}
	}
}

// TestClientFrames reads a table of frames and what the decoder says of each.
func TestClientFrames(t *testing.T) {
	table, err := os.ReadFile("testdata/client_frames.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	cases := 0
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(line, "\t") {
			continue
		}
		got.WriteString(line)
		text := strings.TrimSuffix(line, "\n")
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		cases++
		frame, err := DecodeClientFrame([]byte(text))
		var problem *FrameError
		switch {
		case errors.As(err, &problem):
			fmt.Fprintf(&got, "\terror")
			if problem.HasID {
				fmt.Fprintf(&got, " id=%d", problem.ID)
			}
			fmt.Fprintf(&got, ": %s\n", problem)
		case err != nil:
			t.Errorf("%s: error %T", text, err)
		default:
			fmt.Fprintf(&got, "\t%s id=%d", frame.Type, frame.ID)
			if frame.Account != "" {
				fmt.Fprintf(&got, " account=%q mailboxes=%q", frame.Account, frame.Mailboxes)
			}
			if frame.Since != nil {
				fmt.Fprintf(&got, " since=%v", frame.Since)
			}
			if frame.SinceInvalid {
				fmt.Fprintf(&got, " since=invalid")
			}
			got.WriteByte('\n')
		}
	}
	if cases < 25 {
		t.Errorf("only %d cases were read", cases)
	}
	compareGolden(t, "testdata/client_frames.txt", got.Bytes())
}

func TestClientFrameMailboxLimit(t *testing.T) {
	frame := func(n int) []byte {
		return []byte(`{"type":"subscribe","id":1,"account":"a","mailboxes":["` + strings.Repeat(`x","`, n-1) + `x"]}`)
	}
	if f, err := DecodeClientFrame(frame(MaxSubscribeMailboxes)); err != nil || len(f.Mailboxes) != MaxSubscribeMailboxes {
		t.Error(len(f.Mailboxes), err)
	}
	if _, err := DecodeClientFrame(frame(MaxSubscribeMailboxes + 1)); err == nil {
		t.Error("one more is accepted")
	}
}

func FuzzDecodeClientFrame(f *testing.F) {
	f.Add([]byte(`{"type":"subscribe","id":1,"account":"alice@example.com","mailboxes":["INBOX"],"since":"19aa3f5c2b4.12.48211"}`))
	f.Add([]byte(`{"type":"ping","id":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := DecodeClientFrame(b)
		if err != nil {
			return
		}
		if frame.Type != FramePing && frame.Account.Validate() != nil {
			t.Fatalf("%s: account %q", b, frame.Account)
		}
		if frame.ID > MaxFrameID || len(frame.Mailboxes) > MaxSubscribeMailboxes {
			t.Fatalf("%s: %+v", b, frame)
		}
	})
}

func FuzzDecodeServerFrame(f *testing.F) {
	f.Add(AppendSubscribed(nil, 1, "alice@example.com", place, Resync, 1500))
	f.Add(AppendEvent(nil, "alice@example.com", place, []byte(fullEventJSON)))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := DecodeServerFrame(b)
		if err != nil {
			return
		}
		if frame.Type == "" {
			t.Fatalf("%s: no type", b)
		}
		if !IsObject(frame.Event) {
			return
		}
		// What a client heard, a server could have said.
		again := AppendEvent(nil, frame.Account, frame.Position, frame.Event)
		back, err := DecodeServerFrame(again)
		if err != nil {
			t.Fatalf("%s became %s: %v", b, again, err)
		}
		if back.Type != FrameEvent || back.Account != frame.Account || back.Position != frame.Position || !bytes.Equal(back.Event, frame.Event) {
			t.Fatalf("%s became %s: %+v", b, again, back)
		}
	})
}

func BenchmarkAppendEventFrame(b *testing.B) {
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendEvent(buf[:0], "alice@example.com", place, []byte(fullEventJSON))
	}
}

func BenchmarkDecodeClientFrame(b *testing.B) {
	frame := []byte(`{"type":"subscribe","id":1,"account":"alice@example.com","mailboxes":["INBOX"],"since":"19aa3f5c2b4.12.48211"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeClientFrame(frame); err != nil {
			b.Fatal(err)
		}
	}
}
