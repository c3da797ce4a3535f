package bus

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// MaxDrain is the longest drain that can be asked for.
const MaxDrain = 24 * time.Hour

// Drain asks notifiers to send all their clients away within over: the one of that name, or all of the zone. Who is drained
// gets no clients from then on. A time that is too short for the others to take them in is made longer. It returns
// the notifiers and the time. A zone is drained only if somebody outside it takes clients.
func (n *Node) Drain(notifier, zone string, over time.Duration) (drained []string, took time.Duration, err error) {
	if (notifier == "") == (zone == "") {
		return nil, 0, fmt.Errorf("drain: name either a notifier or a zone")
	}
	if over < 0 || over > MaxDrain {
		return nil, 0, fmt.Errorf("drain: a time of %v: want at most %v", over, MaxDrain)
	}
	now := time.Now()
	leaving, free, others := 0.0, 0.0, 0
	for _, s := range n.fleet.Snapshot(now) {
		switch {
		case s.State == Replaced:
		case s.Node == notifier || zone != "" && s.Zone == zone:
			drained = append(drained, s.Node)
			leaving += float64(s.Load.Connections)
		case s.State == Serving:
			free += s.Load.freeOfAll()
			others++
		}
	}
	if len(drained) == 0 {
		return nil, 0, fmt.Errorf("drain: no notifier is linked with the name %q or the zone %q", notifier, zone)
	}
	if zone != "" && others == 0 {
		return nil, 0, fmt.Errorf("drain: no notifier outside the zone %q takes clients", zone)
	}
	over = max(over, time.Second)
	if others > 0 {
		over = min(MaxDrain, max(over, time.Duration(leaving/free*float64(time.Second))))
	}
	var untold []string
	for _, name := range drained {
		order := &link.Drain{OverMs: uint64(over.Milliseconds()), Reason: string(schema.ReconnectDrain)}
		told, err := n.Tell(name, &link.FromBus{Body: &link.FromBus_Drain{Drain: order}})
		if err != nil {
			return nil, 0, err
		}
		if !told {
			untold = append(untold, name)
		}
	}
	drained = slices.DeleteFunc(drained, func(name string) bool { return slices.Contains(untold, name) })
	n.fleet.drains(drained, now)
	n.log.Info("notifiers are drained", "notifiers", drained, "zone", zone, "connections", leaving, "over", over)
	if len(untold) > 0 {
		return drained, over, fmt.Errorf("drain: %q could not be told, since the link ends: try again", untold)
	}
	return drained, over, nil
}

// FleetHandler serves, for the operations port, GET /fleet (the notifiers), GET /fleet/stream (again every second, a line each)
// and POST /fleet/drain.
func (n *Node) FleetHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /fleet", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, n.fleetView(time.Now())) })
	mux.HandleFunc("GET /fleet/stream", n.streamFleet)
	mux.HandleFunc("POST /fleet/drain", n.serveDrain)
	return mux
}

// FleetView is the fleet as one bus node sees it.
type FleetView struct {
	Node      string     `json:"node"` // the bus node
	At        time.Time  `json:"at"`
	Leads     bool       `json:"leads"` // this node orders moves
	Notifiers []Notifier `json:"notifiers"`
}

func (n *Node) fleetView(now time.Time) FleetView {
	return FleetView{Node: n.cfg.NodeID, At: now.UTC(), Leads: n.leads(), Notifiers: n.fleet.Snapshot(now)}
}

func (n *Node) streamFleet(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	control, e := http.NewResponseController(w), json.NewEncoder(w)
	for now := time.Now(); ; {
		if e.Encode(n.fleetView(now)) != nil || control.Flush() != nil {
			return
		}
		_ = control.SetWriteDeadline(now.Add(10 * time.Second)) // not supported: the server's own
		select {
		case <-r.Context().Done():
			return
		case <-n.stopping:
			return
		case now = <-t.C:
		}
	}
}

type drainRequest struct {
	Notifier    string  `json:"notifier"`
	Zone        string  `json:"zone"`
	OverSeconds float64 `json:"overSeconds"`
}

func (n *Node) serveDrain(w http.ResponseWriter, r *http.Request) {
	var req drainRequest
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		n.refuse(w, refuse(http.StatusBadRequest, "badRequest", `body: %v; send such as {"notifier":"n1","overSeconds":60} or {"zone":"a","overSeconds":600}`, err))
		return
	}
	if !(req.OverSeconds >= 0 && req.OverSeconds <= MaxDrain.Seconds()) {
		n.refuse(w, refuse(http.StatusBadRequest, "badRequest", "overSeconds %v: want 0 to %v", req.OverSeconds, MaxDrain.Seconds()))
		return
	}
	drained, over, err := n.Drain(req.Notifier, req.Zone, time.Duration(req.OverSeconds*float64(time.Second)))
	if err != nil {
		n.refuse(w, refuse(http.StatusBadRequest, "badRequest", "%v", err))
		return
	}
	writeJSON(w, http.StatusAccepted, struct {
		Notifiers   []string `json:"notifiers"`
		OverSeconds float64  `json:"overSeconds"`
	}{drained, over.Seconds()})
}
