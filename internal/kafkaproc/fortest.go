package kafkaproc

import (
	"context"
	"testing"
)

// ForTest starts a cluster for the length of a test and returns the addresses of its brokers. It fails the test when
// Kafka cannot be had, and skips it with -short.
func ForTest(t testing.TB, brokers int) []string {
	t.Helper()
	return ClusterForTest(t, Options{Brokers: brokers}).Brokers()
}

// ClusterForTest is ForTest with options and the cluster itself. When the test fails, what the brokers printed is
// shown.
func ClusterForTest(t testing.TB, o Options) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("needs Apache Kafka")
	}
	c, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Output())
		}
		c.Stop()
	})
	return c
}
