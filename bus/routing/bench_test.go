package routing

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// pipelineEvent has the size of an event as the adapter publishes it.
func pipelineEvent(i int) []byte {
	return fmt.Appendf(nil, `{"id":"01JD%022d","event":"MessageNew","account":"user%07d@example.com","mailbox":"INBOX","uidValidity":1424683682,`+
		`"uidset":"5","uidnext":6,"modseq":"715194045007","messages":12,"unseen":3,"flagNames":[],"user":"user@example.com","service":"lmtp",`+
		`"session":"jXbTQ1zQZmcVAAAA","timestamp":"2026-11-21T05:17:58Z"}`, i, i)
}

func benchRecords(n, accounts int) []Record {
	rs := make([]Record, n)
	for i := range rs {
		rs[i] = Record{Time: time.UnixMilli(1), Account: fmt.Appendf(nil, "user%07d@example.com", i%accounts), Event: pipelineEvent(i)}
	}
	return rs
}

// BenchmarkAppend: one record that one link of four wants, a full window.
func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			const accounts = 100_000
			p := New(Config{WindowBytes: 32 << 20}, 1, -1)
			p.Own(1)
			for i := range accounts {
				p.Subscribe(time.Time{}, LinkID(1+i%4), Subscribe{Generation: 1, Accounts: []string{fmt.Sprintf("user%07d@example.com", i)}})
			}
			records := benchRecords(200_000, accounts)
			chunk := make([]Record, batch)
			next, now := int64(0), time.UnixMilli(1)
			b.SetBytes(int64(len(records[0].Event)))
			b.ReportAllocs()
			for b.Loop() {
				// One op is one record.
				if int(next)%batch == 0 {
					for i := range chunk {
						chunk[i] = records[(int(next)+i)%len(records)]
						chunk[i].Offset = next + int64(i)
					}
					p.Append(now, chunk)
				}
				next++
			}
		})
	}
}

// BenchmarkResume asks for the last event of an account in a window of 80,000 records.
func BenchmarkResume(b *testing.B) {
	const accounts = 50_000
	for _, answer := range []Answer{Current, Replay} {
		b.Run(answer.String(), func(b *testing.B) {
			p := New(Config{WindowBytes: 64 << 20}, 1, -1)
			p.Own(1)
			records := benchRecords(100_000, accounts)
			for i := range records {
				records[i].Offset = int64(i)
			}
			p.Append(time.UnixMilli(1), records)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				n := i % accounts
				since := Position{1, int64(accounts + n - 1)}
				if answer == Current {
					since.Offset++
				}
				out := p.Resume(time.UnixMilli(1), 1, Resume{Generation: 1, Account: string(records[n].Account), Since: &since})
				if out[0].Answer != answer {
					b.Fatal(out[0].Answer)
				}
				i++
			}
		})
	}
}

// BenchmarkReattach: a notifier comes back with 4,096 accounts of which one in ten had mail.
func BenchmarkReattach(b *testing.B) {
	p := New(Config{WindowBytes: 64 << 20}, 1, -1)
	p.Own(1)
	records := benchRecords(40_960, 40_960)
	for i := range records {
		records[i].Offset = int64(i)
	}
	p.Append(time.UnixMilli(1), records)
	var accounts []string
	for i := range 4096 {
		accounts = append(accounts, string(records[i*10].Account))
	}
	b.ReportAllocs()
	for b.Loop() {
		out := p.Subscribe(time.UnixMilli(1), 1, Subscribe{Generation: 1, Accounts: accounts, After: &Position{1, 36_863}})
		if out[len(out)-1].Answer != Replay {
			b.Fatal(out[len(out)-1].Answer)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory reports bytes per entry of the index, of the routes and of the window at a million of each.
func BenchmarkMemory(b *testing.B) {
	const n = 1_000_000
	b.Run("index", func(b *testing.B) {
		for b.Loop() {
			before := heap()
			var x index
			x.reset(0, 2*n)
			for i := range n {
				x.add(uint32(i)*0x9e3779b9, int64(i+1))
			}
			b.ReportMetric(float64(heap()-before)/n, "B/account")
			runtime.KeepAlive(&x)
		}
	})
	b.Run("routes", func(b *testing.B) {
		for b.Loop() {
			before := heap()
			p := New(Config{}, 1, 0)
			p.Own(1)
			for i := range n {
				p.Subscribe(time.Time{}, LinkID(1+i%8), Subscribe{Generation: 1, Accounts: []string{fmt.Sprintf("user%07d@example.com", i)}})
			}
			b.ReportMetric(float64(heap()-before)/n, "B/account")
			runtime.KeepAlive(p)
		}
	})
	b.Run("window", func(b *testing.B) {
		for b.Loop() {
			records := benchRecords(100_000, 10_000)
			before := heap()
			p := New(Config{WindowBytes: 1 << 30}, 1, -1)
			bytes := 0
			for i := range records {
				records[i].Offset = int64(i)
				bytes += len(records[i].Event) + len(records[i].Account)
				p.Append(time.UnixMilli(1), records[i:i+1])
			}
			b.ReportMetric((float64(heap()-before)-float64(bytes))/float64(len(records)), "B-over/record")
			runtime.KeepAlive(p)
			runtime.KeepAlive(records)
		}
	})
}
