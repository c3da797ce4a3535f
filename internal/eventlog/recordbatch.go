package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/segmentio/kafka-go/compress"
)

// The record batch, message format 2: https://kafka.apache.org/documentation/#recordbatch. All integers are big
// endian; varints are zigzag.
const (
	batchHeaderBytes = 61
	batchPrefixBytes = 12 // base offset and length, which the length does not count
	batchMagic       = 2

	attrCompression = 0x07
	attrControl     = 0x20

	// maxInflatedBytes bounds what a compressed batch may unpack to.
	maxInflatedBytes = 64 << 20
)

var (
	errBatch   = errors.New("a record batch is malformed")
	errFormat  = errors.New("a record batch has a message format before 2: the topic needs message.format.version 0.11 or later")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Header is a header of a record.
type Header struct {
	Key   string
	Value []byte
}

// Record is what Append takes. Its bytes are copied before Append returns.
type Record struct {
	Key     string // the account, which decides the partition
	Value   []byte
	Headers []Header
}

// Message is a record as Read hands it on.
type Message struct {
	Offset  int64
	Time    time.Time // set by the publisher
	Key     []byte
	Value   []byte
	Headers []Header // without the beacon's
	Beacon  *Beacon  // not nil for a beacon, which is no event
}

// appendRecordBody appends the part of a record that does not depend on its place in a batch.
func appendRecordBody(dst []byte, r *Record) []byte {
	if r.Key == "" {
		dst = binary.AppendVarint(dst, -1)
	} else {
		dst = binary.AppendVarint(dst, int64(len(r.Key)))
		dst = append(dst, r.Key...)
	}
	dst = binary.AppendVarint(dst, int64(len(r.Value)))
	dst = append(dst, r.Value...)
	dst = binary.AppendVarint(dst, int64(len(r.Headers)))
	for _, h := range r.Headers {
		dst = binary.AppendVarint(dst, int64(len(h.Key)))
		dst = append(dst, h.Key...)
		dst = binary.AppendVarint(dst, int64(len(h.Value)))
		dst = append(dst, h.Value...)
	}
	return dst
}

// bodyBytes returns the length of appendRecordBody's result, at most.
func bodyBytes(r *Record) int {
	n := 3*binary.MaxVarintLen32 + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += 2*binary.MaxVarintLen32 + len(h.Key) + len(h.Value)
	}
	return n
}

// batchEncoder builds one record batch at the end of a buffer.
type batchEncoder struct {
	start     int // of the batch in the buffer
	count     int32
	firstTime int64
	maxTime   int64
}

// begin appends an empty header.
func (e *batchEncoder) begin(dst []byte) []byte {
	*e = batchEncoder{start: len(dst)}
	return append(dst, make([]byte, batchHeaderBytes)...)
}

// add appends a record with the given body and time in milliseconds.
func (e *batchEncoder) add(dst, body []byte, ms int64) []byte {
	if e.count == 0 {
		e.firstTime, e.maxTime = ms, ms
	}
	e.maxTime = max(e.maxTime, ms)
	delta, place := ms-e.firstTime, int64(e.count)
	dst = binary.AppendVarint(dst, int64(1+varintBytes(delta)+varintBytes(place)+len(body)))
	dst = append(dst, 0) // attributes
	dst = binary.AppendVarint(dst, delta)
	dst = binary.AppendVarint(dst, place)
	e.count++
	return append(dst, body...)
}

// finish fills in the header and returns the size of the batch.
func (e *batchEncoder) finish(buf []byte) int {
	b, be := buf[e.start:], binary.BigEndian
	be.PutUint64(b[0:], 0) // base offset: the broker's
	be.PutUint32(b[8:], uint32(len(b)-batchPrefixBytes))
	be.PutUint32(b[12:], 0xffffffff) // leader epoch: the broker's
	b[16] = batchMagic
	be.PutUint16(b[21:], 0) // attributes: no compression, time by the publisher
	be.PutUint32(b[23:], uint32(e.count-1))
	be.PutUint64(b[27:], uint64(e.firstTime))
	be.PutUint64(b[35:], uint64(e.maxTime))
	be.PutUint64(b[43:], 0xffffffffffffffff) // no producer id
	be.PutUint16(b[51:], 0xffff)
	be.PutUint32(b[53:], 0xffffffff)
	be.PutUint32(b[57:], uint32(e.count))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return len(b)
}

func varintBytes(v int64) int {
	u := uint64(v<<1) ^ uint64(v>>63)
	n := 1
	for u >= 0x80 {
		u >>= 7
		n++
	}
	return n
}

// spanBatches returns how many bytes of raw are whole batches, and the offset after the last of them. A fetch may end
// in a part of a batch.
func spanBatches(raw []byte) (n int, next int64, err error) {
	for len(raw)-n >= batchHeaderBytes {
		b := raw[n:]
		size := batchPrefixBytes + int(int32(binary.BigEndian.Uint32(b[8:])))
		switch {
		case b[16] != batchMagic:
			return n, next, errFormat
		case size < batchHeaderBytes:
			return n, next, errBatch
		case size > len(b):
			return n, next, nil
		}
		next = int64(binary.BigEndian.Uint64(b)) + int64(int32(binary.BigEndian.Uint32(b[23:]))) + 1
		n += size
	}
	return n, next, nil
}

// decodeBatch appends the records of the batch at the start of raw to dst, leaving out those before from. The
// messages point into raw. It returns the offsets that the batch covers, and what follows it.
func decodeBatch(dst []Message, raw []byte, from int64) (msgs []Message, base, next int64, rest []byte, err error) {
	size := batchPrefixBytes + int(int32(binary.BigEndian.Uint32(raw[8:])))
	b, rest := raw[:size], raw[size:]
	be := binary.BigEndian
	base = int64(be.Uint64(b))
	next = base + int64(int32(be.Uint32(b[23:]))) + 1
	if crc := be.Uint32(b[17:]); crc != crc32.Checksum(b[21:], castagnoli) {
		return dst, base, next, rest, fmt.Errorf("%w: its checksum is wrong", errBatch)
	}
	attributes := be.Uint16(b[21:])
	if attributes&attrControl != 0 {
		return dst, base, next, rest, nil
	}
	records := b[batchHeaderBytes:]
	if codec := attributes & attrCompression; codec != 0 {
		if records, err = inflate(compress.Compression(codec), records); err != nil {
			return dst, base, next, rest, err
		}
	}
	firstTime, count := int64(be.Uint64(b[27:])), int32(be.Uint32(b[57:]))
	r := recordReader{b: records}
	for range count {
		var m Message
		if !r.record(&m, base, firstTime) {
			return dst, base, next, rest, errBatch
		}
		if m.Offset >= from {
			dst = append(dst, m)
		}
	}
	return dst, base, next, rest, nil
}

func inflate(codec compress.Compression, b []byte) ([]byte, error) {
	c := codec.Codec()
	if c == nil {
		return nil, fmt.Errorf("%w: compression %d is unknown", errBatch, codec)
	}
	r := c.NewReader(bytes.NewReader(b))
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, maxInflatedBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errBatch, c.Name(), err)
	}
	if len(out) > maxInflatedBytes {
		return nil, fmt.Errorf("%w: it unpacks to more than %d bytes", errBatch, maxInflatedBytes)
	}
	return out, nil
}

// recordReader reads records one after the other; every method reports false at the first malformed byte.
type recordReader struct{ b []byte }

func (r *recordReader) varint() (int64, bool) {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		return 0, false
	}
	r.b = r.b[n:]
	return v, true
}

// bytes reads a length and as many bytes; nil for the length -1.
func (r *recordReader) bytes() ([]byte, bool) {
	n, ok := r.varint()
	switch {
	case !ok || n < -1 || n > int64(len(r.b)):
		return nil, false
	case n == -1:
		return nil, true
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v, true
}

func (r *recordReader) record(m *Message, base, firstTime int64) bool {
	size, ok := r.varint()
	if !ok || size < 1 || size > int64(len(r.b)) {
		return false
	}
	in := recordReader{b: r.b[1:size]} // without the attributes
	r.b = r.b[size:]
	ms, ok1 := in.varint()
	place, ok2 := in.varint()
	key, ok3 := in.bytes()
	value, ok4 := in.bytes()
	headers, ok5 := in.varint()
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || headers < 0 || headers > int64(len(in.b)) {
		return false
	}
	m.Offset, m.Time, m.Key, m.Value = base+place, time.UnixMilli(firstTime+ms), key, value
	for range headers {
		name, ok1 := in.bytes()
		v, ok2 := in.bytes()
		if !ok1 || !ok2 {
			return false
		}
		if string(name) == BeaconHeader {
			if m.Beacon = decodeBeacon(value); m.Beacon == nil {
				m.Beacon = &Beacon{} // still no event
			}
			continue
		}
		m.Headers = append(m.Headers, Header{Key: string(name), Value: v})
	}
	return true
}
