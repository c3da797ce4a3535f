package eventlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func encodeBatch(ms int64, recs ...Record) []byte {
	var e batchEncoder
	b := e.begin(nil)
	for i := range recs {
		b = e.add(b, appendRecordBody(nil, &recs[i]), ms+int64(i))
	}
	e.finish(b)
	return b
}

var someRecords = []Record{
	{Key: "alice@example.com", Value: []byte(`{"id":"1"}`)},
	{Value: []byte(`{"epoch":"12345","partitions":16,"after":6}`), Headers: []Header{{Key: BeaconHeader, Value: []byte("1")}}},
	{Key: "bob@example.com", Value: nil, Headers: []Header{{Key: "trace", Value: []byte("abc")}}},
}

// The bytes of a batch are what other Kafka clients read.
func TestBatchGolden(t *testing.T) {
	got := hex.Dump(encodeBatch(1_700_000_000_000, someRecords...))
	path := filepath.Join("testdata", "batch.hex")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
}

// kafka-go reads what is encoded here.
func TestBatchReadByLibrary(t *testing.T) {
	batch := encodeBatch(1_700_000_000_000, someRecords...)
	var set protocol.RecordSet
	framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(batch))), batch...)
	if _, err := set.ReadFrom(bytes.NewReader(framed)); err != nil {
		t.Fatal(err)
	}
	for i, want := range someRecords {
		r, err := set.Records.ReadRecord()
		if err != nil {
			t.Fatal(err)
		}
		key, _ := protocol.ReadAll(r.Key)
		value, _ := protocol.ReadAll(r.Value)
		if string(key) != want.Key || !bytes.Equal(value, want.Value) || len(r.Headers) != len(want.Headers) || r.Offset != int64(i) {
			t.Fatalf("record %d: got %q %q %v", i, key, value, r.Headers)
		}
	}
}

func setBase(b []byte, base int64) []byte {
	binary.BigEndian.PutUint64(b, uint64(base))
	return b
}

func TestBatchDecode(t *testing.T) {
	raw := setBase(encodeBatch(1_700_000_000_000, someRecords...), 7)
	all := []Message{
		{Offset: 7, Time: time.UnixMilli(1_700_000_000_000), Key: []byte("alice@example.com"), Value: []byte(`{"id":"1"}`)},
		{Offset: 8, Time: time.UnixMilli(1_700_000_000_001), Value: someRecords[1].Value, Beacon: &Beacon{Epoch: 12345, Partitions: 16, After: 6}},
		{Offset: 9, Time: time.UnixMilli(1_700_000_000_002), Key: []byte("bob@example.com"), Value: []byte{}, Headers: []Header{{"trace", []byte("abc")}}},
	}
	for from, want := range map[int64][]Message{0: all, 7: all, 8: all[1:], 9: all[2:]} {
		got, base, next, rest, err := decodeBatch(nil, raw, from)
		if err != nil || base != 7 || next != 10 || len(rest) != 0 {
			t.Fatalf("from %d: base %d, next %d, rest %d, err %v", from, base, next, len(rest), err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("from %d: got %+v\nwant %+v", from, got, want)
		}
	}
}

// changeBatch applies f to a batch and makes its checksum right again.
func changeBatch(b []byte, f func([]byte) []byte) []byte {
	b = f(bytes.Clone(b))
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-batchPrefixBytes))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}

func TestBatchCompressed(t *testing.T) {
	plain := encodeBatch(1000, someRecords...)
	want, _, _, _, err := decodeBatch(nil, plain, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, codec := range []compress.Compression{compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			raw := changeBatch(plain, func(b []byte) []byte {
				var packed bytes.Buffer
				w := codec.Codec().NewWriter(&packed)
				_, _ = w.Write(b[batchHeaderBytes:])
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				b[22] = byte(codec)
				return append(b[:batchHeaderBytes], packed.Bytes()...)
			})
			got, _, next, _, err := decodeBatch(nil, raw, 0)
			if err != nil || next != 3 || !reflect.DeepEqual(got, want) {
				t.Fatalf("got %+v, next %d, err %v", got, next, err)
			}
		})
	}
}

func TestBatchBad(t *testing.T) {
	good := encodeBatch(1000, someRecords...)
	tests := []struct {
		name string
		raw  []byte
		want string
	}{
		{"flipped bit", func() []byte { b := bytes.Clone(good); b[70] ^= 1; return b }(), "checksum is wrong"},
		{"too many records", changeBatch(good, func(b []byte) []byte { b[60] = 200; return b }), "malformed"},
		{"unknown compression", changeBatch(good, func(b []byte) []byte { b[22] = 7; return b }), "compression 7 is unknown"},
		{"not compressed", changeBatch(good, func(b []byte) []byte { b[22] = 1; return b }), "gzip"},
		{"record beyond the end", changeBatch(good, func(b []byte) []byte { b[61] = 0xfe; b[62] = 0x7f; return b }), "malformed"},
		{"bomb", changeBatch(good, func(b []byte) []byte {
			var packed bytes.Buffer
			w := compress.Zstd.Codec().NewWriter(&packed)
			_, _ = w.Write(make([]byte, maxInflatedBytes+2))
			_ = w.Close()
			b[22] = byte(compress.Zstd)
			return append(b[:batchHeaderBytes], packed.Bytes()...)
		}), "unpacks to more than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, _, _, err := decodeBatch(nil, tt.raw, 0)
			wantError(t, err, tt.want)
		})
	}
}

// A control batch, which ends a transaction, takes an offset and holds no event.
func TestBatchControl(t *testing.T) {
	raw := changeBatch(encodeBatch(1000, someRecords[0]), func(b []byte) []byte { b[22] = attrControl; return b })
	got, _, next, _, err := decodeBatch(nil, raw, 0)
	if err != nil || len(got) != 0 || next != 1 {
		t.Fatalf("got %v, next %d, err %v", got, next, err)
	}
}

func TestSpanBatches(t *testing.T) {
	one, two := setBase(encodeBatch(1, someRecords...), 0), setBase(encodeBatch(1, someRecords[0]), 3)
	both := append(bytes.Clone(one), two...)
	old := bytes.Clone(one)
	old[16] = 1
	short := bytes.Clone(one)
	binary.BigEndian.PutUint32(short[8:], 3)
	tests := []struct {
		name string
		raw  []byte
		n    int
		next int64
		err  error
	}{
		{"none", nil, 0, 0, nil},
		{"part of one", one[:len(one)-1], 0, 0, nil},
		{"part of a header", one[:20], 0, 0, nil},
		{"one", one, len(one), 3, nil},
		{"one and a part", both[:len(both)-1], len(one), 3, nil},
		{"two", both, len(both), 4, nil},
		{"old format", old, 0, 0, errFormat},
		{"length below the header's", short, 0, 0, errBatch},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, next, err := spanBatches(tt.raw)
			if n != tt.n || next != tt.next || !errors.Is(err, tt.err) {
				t.Fatalf("got %d, %d, %v", n, next, err)
			}
		})
	}
}

func FuzzBatches(f *testing.F) {
	f.Add(encodeBatch(1, someRecords...))
	f.Add(append(encodeBatch(1, someRecords[0]), encodeBatch(1, someRecords[1:]...)...))
	f.Add(changeBatch(encodeBatch(1, someRecords...), func(b []byte) []byte { b[22] = 1; return b }))
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, _, err := spanBatches(raw)
		if n > len(raw) {
			t.Fatalf("%d of %d bytes", n, len(raw))
		}
		for raw = raw[:n]; len(raw) > 0 && err == nil; {
			// Get past the checksum, which a fuzzer does not hit.
			size := batchPrefixBytes + int(int32(binary.BigEndian.Uint32(raw[8:])))
			binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:size], castagnoli))
			_, _, _, raw, err = decodeBatch(nil, raw, 0)
		}
	})
}

func FuzzBeacon(f *testing.F) {
	f.Add([]byte(`{"epoch":"12345","partitions":16,"after":6}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		if b := decodeBeacon(value); b != nil && b.Epoch == 0 {
			t.Fatal("a beacon without an epoch")
		}
	})
}

func TestRecordTooLarge(t *testing.T) {
	_, l := startEmbedded(t, EmbeddedConfig{})
	_, err := l.Append(testContext(t, time.Second), Record{Key: "a", Value: []byte("x")}, Record{Key: "a", Value: make([]byte, maxRecordBytes)})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "record 1") {
		t.Fatalf("got %v", err)
	}
}
