package link

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "write the golden file anew")

// TestGoldenBytes holds the bytes of one message of each kind: nodes of two versions talk to each
// other during an upgrade, so a field's number and type never change.
func TestGoldenBytes(t *testing.T) {
	at := &Offset{Epoch: 0x19aa3f5c2b4, Offset: 48211}
	owned := &OwnedPartition{Partition: 12, Generation: 7, Head: at}
	record := &Record{Offset: 48211, Account: "alice@example.com", Event: []byte(`{"id":"a"}`)}
	up := func(body isFromNotifier_Body) proto.Message { return &FromNotifier{Body: body} }
	down := func(body isFromBus_Body) proto.Message { return &FromBus{Body: body} }
	var got strings.Builder
	for _, m := range []struct {
		name    string
		message proto.Message
	}{
		{"hello", up(&FromNotifier_Hello{&Hello{Node: "n1", Instance: "i", PublicUrl: "ws://n1/v1/ws", Version: "v1", Zone: "z", Capacity: 9, Weight: 1}})},
		{"load", up(&FromNotifier_Load{&Load{Connections: 1, AcceptsPerSecond: 2, CpuCores: 3, MemoryBytes: 4, EventsPerSecond: 5, BacklogBytes: 6, FreeAcceptsPerSecond: 7, Draining: true, Custom: 9, Subscriptions: 10, TicketConnections: 11, BusNodes: 12}})},
		{"subscribe", up(&FromNotifier_Subscribe{&Subscribe{Request: 1, Partition: 12, Generation: 7, Accounts: []string{"a", "b"}, After: at}})},
		{"unsubscribe", up(&FromNotifier_Unsubscribe{&Unsubscribe{Partition: 12, Accounts: []string{"a"}}})},
		{"resume", up(&FromNotifier_Resume{&Resume{Items: []*ResumeItem{{Request: 2, Partition: 12, Generation: 7, Account: "a", Mailboxes: []string{"INBOX"}, Since: at}}}})},
		{"welcome", down(&FromBus_Welcome{&Welcome{Node: "b1", Partitions: 16, TicketKeys: []*TicketKey{{Id: "k", PublicKey: []byte{1, 2}}}, WindowMs: 600000}})},
		{"owned", down(&FromBus_Owned{&Owned{Partitions: []*OwnedPartition{owned}}})},
		{"deliveries", down(&FromBus_Deliveries{&Deliveries{Partitions: []*PartitionRecords{{Partition: 12, Generation: 7, Epoch: 1, Upto: 48211, Records: []*Record{record}}}}})},
		{"subscribed", down(&FromBus_Subscribed{&Subscribed{Request: 1, Partition: 12, Generation: 7, Head: at, CatchUp: CatchUp_CATCH_UP_RESYNC, SpreadMs: 1500}})},
		{"resumed", down(&FromBus_Resumed{&Resumed{Request: 2, Partition: 12, Generation: 7, Head: at, CatchUp: CatchUp_CATCH_UP_REPLAY, Records: []*Record{record}}})},
		{"positions", down(&FromBus_Positions{&Positions{Partitions: []*OwnedPartition{owned}}})},
		{"drain", down(&FromBus_Drain{&Drain{OverMs: 30000, Reason: "drain"}})},
		{"move", down(&FromBus_Move{&Move{Connections: 5, PerSecond: 2, Targets: []*MoveTarget{{Url: "ws://n2/v1/ws", Connections: 5}}, Nodes: []*MoveNode{{Name: "n2", Weight: 2}}}})},
	} {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.message)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s %s\n", m.name, hex.EncodeToString(b))
		back := m.message.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(b, back); err != nil || !proto.Equal(back, m.message) {
			t.Errorf("%s came back as %s, %v", m.name, prototext.Format(back), err)
		}
	}
	const path = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%swant\n%s", &got, want)
	}
}
