package schema

// PartitionOf returns the partition of an account in a topic of so many
// partitions: murmur2 as the Java client's default partitioner has it
// (org.apache.kafka.common.utils.Utils), so that a record of any Kafka producer lands in the same place.
// Partitions must be positive.
func PartitionOf(a Account, partitions int) int32 {
	return int32(int(murmur2(string(a))&0x7fffffff) % partitions)
}

func murmur2(key string) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := uint32(seed) ^ uint32(len(key))
	for ; len(key) >= 4; key = key[4:] {
		k := uint32(key[0]) | uint32(key[1])<<8 | uint32(key[2])<<16 | uint32(key[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(key) {
	case 3:
		h ^= uint32(key[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(key[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(key[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
