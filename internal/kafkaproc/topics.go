package kafkaproc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The requests that a test needs to take from a topic behind the back of those who use it, written by hand: this
// package has no client of Kafka.

const (
	keyDeleteTopics  = 20
	keyDeleteRecords = 21
	adminTimeout     = 10 * time.Second
)

// DeleteTopic deletes a topic. Only the controller does that: the cluster must have one broker.
func (c *Cluster) DeleteTopic(ctx context.Context, topic string) error {
	body := binary.BigEndian.AppendUint32(nil, 1)
	body = appendText(body, topic)
	body = binary.BigEndian.AppendUint32(body, uint32(adminTimeout.Milliseconds()))
	answer, err := c.ask(ctx, keyDeleteTopics, 1, body)
	if err != nil {
		return fmt.Errorf("delete topic %s: %w", topic, err)
	}
	return refusal("delete topic "+topic, answer)
}

// DeleteRecords deletes what is before an offset of a partition, as retention does. Only the leader does that: the cluster
// must have one broker.
func (c *Cluster) DeleteRecords(ctx context.Context, topic string, partition int32, before int64) error {
	body := binary.BigEndian.AppendUint32(nil, 1)
	body = appendText(body, topic)
	body = binary.BigEndian.AppendUint32(body, 1)
	body = binary.BigEndian.AppendUint32(body, uint32(partition))
	body = binary.BigEndian.AppendUint64(body, uint64(before))
	body = binary.BigEndian.AppendUint32(body, uint32(adminTimeout.Milliseconds()))
	answer, err := c.ask(ctx, keyDeleteRecords, 0, body)
	if err != nil {
		return fmt.Errorf("delete records of %s: %w", topic, err)
	}
	return refusal("delete records of "+topic, answer)
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// refusal reads the error code, with which both answers end: each has one topic and at most one partition.
func refusal(what string, answer []byte) error {
	if len(answer) < 2 {
		return fmt.Errorf("%s: an answer of %d bytes", what, len(answer))
	}
	if code := binary.BigEndian.Uint16(answer[len(answer)-2:]); code != 0 {
		return fmt.Errorf("%s: Kafka's error %d", what, int16(code))
	}
	return nil
}

// ask sends one request to the first broker and returns the answer without its header.
func (c *Cluster) ask(ctx context.Context, key, version uint16, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*adminTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", c.Brokers()[0])
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	deadline, _ := ctx.Deadline()
	_ = nc.SetDeadline(deadline)
	request := binary.BigEndian.AppendUint16(make([]byte, 4), key)
	request = binary.BigEndian.AppendUint16(request, version)
	request = append(request, 0, 0, 0, 7, 0xff, 0xff) // a number, and no client's name
	request = append(request, body...)
	binary.BigEndian.PutUint32(request, uint32(len(request)-4))
	if _, err := nc.Write(request); err != nil {
		return nil, err
	}
	var head [8]byte // size, number
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:4])
	if size < 4 || size > 1<<20 {
		return nil, errors.New("an answer of an odd size")
	}
	answer := make([]byte, size-4)
	_, err = io.ReadFull(nc, answer)
	return answer, err
}
