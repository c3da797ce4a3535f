package bus

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mailbell/mailbell/bus/routing"
)

// The hot messages of the link are written straight to a link's queue, in the
// encoding of link.proto, without the generated structs in between. A message in
// protocol buffers is the concatenation of its fields, so Deliveries of several
// partitions, or several batches, are simply joined. TestWire holds this file to the generated code.

// Fields of link.proto.
const (
	fromBusDeliveries = 3
	fromBusResumed    = 5
	fromBusPositions  = 6

	// Both Deliveries and Positions have one repeated field, with this number.
	repeatedPartitions = 1
)

// maxPart bounds the records of one PartitionRecords, so that what is sent at once stays far below
// gRPC's limit of 4 MiB for a message.
const maxPart = 256 << 10

func sizeUint(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func appendUint(dst []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), v)
}

// appendHead begins a field that holds size bytes.
func appendHead(dst []byte, field protowire.Number, size int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.BytesType), uint64(size))
}

func sizeBytes(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

// sizeRecord is the size of a Record.
func sizeRecord(r *routing.Record) int {
	n := sizeUint(1, uint64(r.Offset)) + sizeBytes(2, len(r.Account))
	if len(r.Event) > 0 {
		n += sizeBytes(3, len(r.Event))
	}
	return n
}

func appendRecord(dst []byte, field protowire.Number, r *routing.Record) []byte {
	dst = appendHead(dst, field, sizeRecord(r))
	dst = appendUint(dst, 1, uint64(r.Offset))
	dst = append(appendHead(dst, 2, len(r.Account)), r.Account...)
	if len(r.Event) > 0 {
		dst = append(appendHead(dst, 3, len(r.Event)), r.Event...)
	}
	return dst
}

// records are those of one PartitionRecords, which with its head is size bytes.
type partRecords struct {
	partition  int32
	generation uint64
	epoch      uint64
	upTo       int64
	request    uint64 // that the records are a replay for; 0: they are live
	records    []routing.Record
	inner      int // bytes after the head
}

// nextPart takes records from o, at most maxPart bytes but at least one, and returns how many are left.
func nextPart(partition int32, o *routing.Output, from int) (part partRecords, next int) {
	part = partRecords{partition: partition, generation: o.Generation, epoch: o.Head.Epoch, upTo: o.Head.Offset, request: o.Request}
	bytes := 0
	for next = from; next < len(o.Records); next++ {
		n := sizeBytes(5, sizeRecord(&o.Records[next]))
		if next > from && bytes+n > maxPart {
			part.upTo = o.Records[next-1].Offset
			break
		}
		bytes += n
	}
	part.records = o.Records[from:next]
	part.inner = bytes + sizeUint(1, uint64(part.partition)) + sizeUint(2, part.generation) + sizeUint(3, part.epoch) + sizeUint(4, uint64(part.upTo)) + sizeUint(6, part.request)
	return part, next
}

func (p *partRecords) size() int { return sizeBytes(repeatedPartitions, p.inner) }

func (p *partRecords) append(dst []byte) []byte {
	dst = appendHead(dst, repeatedPartitions, p.inner)
	dst = appendUint(dst, 1, uint64(p.partition))
	dst = appendUint(dst, 2, p.generation)
	dst = appendUint(dst, 3, p.epoch)
	dst = appendUint(dst, 4, uint64(p.upTo))
	for i := range p.records {
		dst = appendRecord(dst, 5, &p.records[i])
	}
	return appendUint(dst, 6, p.request)
}

// sizeOffset is the size of an Offset.
func sizeOffset(at routing.Position) int {
	return sizeUint(1, at.Epoch) + sizeUint(2, uint64(at.Offset))
}

func appendOffset(dst []byte, field protowire.Number, at routing.Position) []byte {
	dst = appendHead(dst, field, sizeOffset(at))
	return appendUint(appendUint(dst, 1, at.Epoch), 2, uint64(at.Offset))
}

// sizeOwned is the size of an OwnedPartition with its head, as it stands in Positions.
func sizeOwned(partition int32, o *routing.Output) int {
	return sizeBytes(repeatedPartitions, innerOwned(partition, o))
}

func innerOwned(partition int32, o *routing.Output) int {
	return sizeUint(1, uint64(partition)) + sizeUint(2, o.Generation) + sizeBytes(3, sizeOffset(o.Head))
}

func appendOwned(dst []byte, partition int32, o *routing.Output) []byte {
	dst = appendHead(dst, repeatedPartitions, innerOwned(partition, o))
	dst = appendUint(dst, 1, uint64(partition))
	dst = appendUint(dst, 2, o.Generation)
	return appendOffset(dst, 3, o.Head)
}

// sizeAnswer is the size of what Subscribed and Resumed have in common, and the records of Resumed.
func sizeResumed(partition int32, o *routing.Output) int {
	n := sizeUint(1, o.Request) + sizeUint(2, uint64(partition)) + sizeUint(3, o.Generation) + sizeUint(5, uint64(o.Answer)) + sizeUint(7, uint64(o.SpreadMs))
	if o.Answer != routing.NotOwner {
		n += sizeBytes(4, sizeOffset(o.Head))
	}
	for i := range o.Records {
		n += sizeBytes(6, sizeRecord(&o.Records[i]))
	}
	return n
}

// appendResumed appends the body of a Resumed.
func appendResumed(dst []byte, partition int32, o *routing.Output) []byte {
	dst = appendUint(dst, 1, o.Request)
	dst = appendUint(dst, 2, uint64(partition))
	dst = appendUint(dst, 3, o.Generation)
	if o.Answer != routing.NotOwner {
		dst = appendOffset(dst, 4, o.Head)
	}
	dst = appendUint(dst, 5, uint64(o.Answer))
	for i := range o.Records {
		dst = appendRecord(dst, 6, &o.Records[i])
	}
	return appendUint(dst, 7, uint64(o.SpreadMs))
}

// frame is a message that is encoded already: the head of the one field of FromBus
// that is set, and its body. Without a field, body is the whole message.
type frame struct {
	field protowire.Number
	body  *[]byte // from the pool, to which the transport gives it back
}

// codec is gRPC's for protocol buffers, and passes frames through.
type codec struct {
	encoding.CodecV2
	pool mem.BufferPool
}

func newCodec(pool mem.BufferPool) codec {
	return codec{CodecV2: encoding.GetCodecV2("proto"), pool: pool}
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	body := mem.NewBuffer(f.body, c.pool)
	if f.field == 0 {
		return mem.BufferSlice{body}, nil
	}
	return mem.BufferSlice{mem.SliceBuffer(appendHead(nil, f.field, len(*f.body))), body}, nil
}
