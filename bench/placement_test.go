package bench

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"testing"

	"github.com/mailbell/mailbell/bus/placement"
)

// The default must be even soon after whatever happens, and move no more than the share of who joins.
func TestPlacementSimulation(t *testing.T) {
	r, err := Placement(context.Background(), PlacementConfig{Nodes: 20, Connections: 100_000, Seed: 3, Policies: []string{placement.Default, placement.RoundRobin}})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Policies[0].Scenes {
		if s.Imbalance > 1.05 || s.SecondsToEven < 0 || s.SecondsToEven > 120 {
			t.Errorf("%s: imbalance %.3f, even after %.0f s", s.Name, s.Imbalance, s.SecondsToEven)
		}
	}
	if moved := r.Policies[0].Moved; moved == 0 || moved > 100_000*3/22 {
		t.Errorf("%d moved for two of 22", moved)
	}
	if p := r.Policies[1]; p.SecondsToEven >= 0 {
		t.Errorf("round robin: even after %.0f s, though the machines differ", p.SecondsToEven)
	}
	d := xml.NewDecoder(bytes.NewReader(r.Chart()))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the chart is not XML: %v", err)
		}
	}
	for _, bad := range []PlacementConfig{{Nodes: 3}, {Connections: 5}, {Policies: []string{"best"}}, {Gateways: -1}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
