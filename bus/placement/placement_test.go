package placement

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mailbell/mailbell/internal/rendezvous"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func policy(t testing.TB, name string) Policy {
	t.Helper()
	p, err := New(name, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func fleet(weights ...float64) []Node {
	var nodes []Node
	for i, w := range weights {
		name := fmt.Sprintf("n%03d", i)
		nodes = append(nodes, Node{Name: name, Key: rendezvous.Key(name), Weight: w, Response: time.Millisecond, Cores: 0.1, Custom: 1})
	}
	return nodes
}

// fillUp places clients who all connect at once.
func fillUp(p Policy, nodes []Node, clients int) {
	for i := range clients {
		nodes[p.Place(Client{Account: fmt.Sprintf("u%d@example.com", i), Address: fmt.Sprintf("192.0.2.%d", i)}, nodes)].Connections++
	}
}

func TestPoliciesFillByWeight(t *testing.T) {
	for _, name := range Names() {
		nodes := fleet(1, 1, 1, 1)
		want := 1.1
		switch name {
		case RoundRobin, LeastResponseTime, CustomLoad: // know no weights
		case LeastLoad:
			continue // the load does not change here
		default:
			nodes = fleet(1, 2, 1, 4)
		}
		p := policy(t, name)
		for i := range 8000 {
			c := Client{Account: fmt.Sprintf("u%d@example.com", i), Address: fmt.Sprintf("2001:db8::%x", i)}
			nodes[p.Place(c, nodes)].Pending++
		}
		for i := range nodes {
			nodes[i].Connections, nodes[i].Pending = nodes[i].Pending, 0
		}
		if got := Imbalance(nodes); got > want {
			t.Errorf("%s: imbalance %.3f, want at most %.2f: %+v", name, got, want, nodes)
		}
	}
}

func TestPoliciesCountWhatIsOnItsWay(t *testing.T) {
	for _, name := range []string{LeastConnections, LeastLoad, LeastResponseTime, CustomLoad, TwoChoices, Room} {
		nodes := fleet(1, 1, 1, 1)
		for i := range nodes {
			nodes[i].Connections = 1000
		}
		nodes[2].Connections, nodes[2].Cores, nodes[2].Response, nodes[2].Custom = 900, 0.09, 900*time.Microsecond, 0.9
		p := policy(t, name)
		for range 300 { // between two reports
			nodes[p.Place(Client{}, nodes)].Pending++
		}
		if got := nodes[2].Pending; got < 120 || got > 220 {
			t.Errorf("%s: the emptiest got %d of 300, want about 175: %+v", name, got, nodes)
		}
	}
}

func TestSameAccountSameNode(t *testing.T) {
	nodes := fleet(1, 2, 1, 1, 3)
	for _, name := range []string{HashAccount, ConsistentHash} {
		p := policy(t, name)
		for i := range 1000 {
			c := Client{Account: fmt.Sprintf("u%d@example.com", i)}
			if a, b := p.Place(c, nodes), p.Place(c, nodes); a != b {
				t.Fatalf("%s: %s is at %d and at %d", name, c.Account, a, b)
			}
		}
	}
	p := policy(t, HashAddress)
	if a, b := p.Place(Client{Account: "a", Address: "192.0.2.1"}, nodes), p.Place(Client{Account: "b", Address: "192.0.2.1"}, nodes); a != b {
		t.Errorf("one address is at %d and %d", a, b)
	}
}

// A node that joins takes its share, and nobody moves between the others.
func TestConsistentHashMovesAShare(t *testing.T) {
	p := policy(t, HashAccount)
	for _, tt := range []struct{ before, want int }{{1, 500}, {3, 250}, {9, 100}} {
		weights := make([]float64, tt.before+1)
		for i := range weights {
			weights[i] = 1
		}
		after := fleet(weights...)
		before := after[:tt.before]
		moved := 0
		for i := range 1000 {
			c := Client{Account: fmt.Sprintf("u%d@example.com", i)}
			if a, b := p.Place(c, before), p.Place(c, after); a != b {
				moved++
				if b != tt.before {
					t.Fatalf("moved from %d to %d, which was there before", a, b)
				}
			}
		}
		if math.Abs(float64(moved-tt.want)) > 0.2*float64(tt.want) {
			t.Errorf("%d nodes and one more: %d of 1000 moved, want about %d", tt.before, moved, tt.want)
		}
	}
}

func TestConsistentHashKeepsItsBound(t *testing.T) {
	nodes := fleet(1, 1, 1, 1, 1, 1, 1, 1)
	p := policy(t, ConsistentHash)
	for range 4000 { // one account, which would all go to one node
		nodes[p.Place(Client{Account: "crowd@example.com"}, nodes)].Connections++
	}
	if got := Imbalance(nodes); got > hashBound+0.01 {
		t.Errorf("imbalance %.3f, bound %.2f", got, hashBound)
	}
	for range 100 { // a fleet of nothing
		if i := p.Place(Client{Account: "a"}, fleet(1, 1)); i < 0 || i > 1 {
			t.Fatal(i)
		}
	}
}

func TestUnknownPolicy(t *testing.T) {
	if _, err := New("best", nil); err == nil || !strings.Contains(err.Error(), RoundRobin) {
		t.Errorf("error %v does not name the policies", err)
	}
}

func TestRebalance(t *testing.T) {
	for _, tt := range []struct {
		name string
		have []int
		want []Leave
	}{
		{"a second joins one of 1,000", []int{1000, 0}, []Leave{{0, 495}}},
		{"a fifth joins", []int{5000, 5000, 5000, 5000, 0}, []Leave{{0, 960}, {1, 960}, {2, 960}, {3, 960}}},
		{"level", []int{1000, 1010, 990}, nil},
		{"a handful", []int{9, 0, 3}, nil},
		{"one too full", []int{1000, 1000, 1300}, []Leave{{2, 189}}},
		{"alone", []int{1000}, nil},
		{"empty", []int{0, 0}, nil},
	} {
		nodes := fleet(make([]float64, len(tt.have))...)
		for i, n := range tt.have {
			nodes[i].Weight, nodes[i].Connections = 1, n
		}
		if got := Rebalance(nodes, Evenness{}); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	big := fleet(3, 1)
	big[0].Connections, big[1].Connections = 300, 100
	if got := Rebalance(big, Evenness{}); got != nil {
		t.Errorf("even by weight, but %v should leave", got)
	}
}

func BenchmarkPlace(b *testing.B) {
	weights := make([]float64, 100)
	for i := range weights {
		weights[i] = float64(1 + i%3)
	}
	for _, name := range Names() {
		b.Run(name, func(b *testing.B) {
			nodes, p := fleet(weights...), policy(b, name)
			fillUp(p, nodes, 1000)
			c := Client{Account: "alice@example.com", Address: "192.0.2.1"}
			b.ReportAllocs()
			for b.Loop() {
				p.Place(c, nodes)
			}
		})
	}
}

func TestRoundsOfMoves(t *testing.T) {
	at := func(second int) time.Time { return time.Unix(int64(second), 0) }
	for _, c := range []struct {
		name string
		e    Evenness
		want string // seconds in which moves are ordered, with changes at 0 and 300
	}{
		{"once", Evenness{Once: true}, "[10 310]"},
		{"by account", Evenness{ByAccount: true}, "[10 100 310 400]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Rounds
			var got []int
			for now := 10; now < 600; now++ {
				if change := now / 300 * 300; now-change >= 10 && r.Due(c.e, at(change), at(now)) {
					got = append(got, now)
				}
			}
			if fmt.Sprint(got) != c.want {
				t.Errorf("%v, want %s", got, c.want)
			}
		})
	}
}
