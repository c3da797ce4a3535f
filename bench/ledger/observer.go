package ledger

// Observer follows one subscription: one account as one client sees it. It is small, since a
// client process has thousands.
type Observer struct {
	last  uint32 // the highest sequence number seen
	told  int64  // everything up to this offset was told as missed, or lies before the subscription
	state *detail
}

// detail is what only few observers have.
type detail struct {
	gaps       []Gap
	duplicates uint32
	misordered uint32
	ledBack    uint32 // what comes again up to here was asked for
}

// Gap is a run of sequence numbers that did not arrive. Told is the offset up to which the client was
// told that it missed something, when the first event after the gap arrived.
type Gap struct {
	From uint32 `json:"from"`
	To   uint32 `json:"to"`
	Told int64  `json:"told"`
}

// NewObserver returns an observer that has heard of nothing yet.
func NewObserver() Observer { return Observer{told: -1} }

// Covered says that all up to an offset needs no event any more: the client subscribed
// there without a position, or was told `missed` or `resync`.
func (o *Observer) Covered(offset int64) { o.told = max(o.told, offset) }

// Duplicate records an event that the client dropped by its position: it has seen or been told of a later one.
func (o *Observer) Duplicate() { o.details().duplicates++ }

// LedBack says that an answer to the client's subscribe has put it at an earlier position than it was at, and told it to
// ask the store: what it had been told of may come now.
func (o *Observer) LedBack() { o.details().ledBack = o.last }

// Event records the arrival of an event. It reports whether it is the first arrival.
func (o *Observer) Event(seq uint32) bool {
	switch {
	case seq == o.last+1:
		o.last = seq
		return true
	case seq > o.last:
		o.details().gaps = append(o.details().gaps, Gap{From: o.last + 1, To: seq - 1, Told: o.told})
		o.last = seq
		return true
	}
	for i, g := range o.details().gaps {
		if seq >= g.From && seq <= g.To {
			o.fill(i, seq)
			if seq > o.state.ledBack {
				o.state.misordered++
			}
			return true
		}
	}
	o.state.duplicates++
	return false
}

// fill takes one number out of a gap.
func (o *Observer) fill(i int, seq uint32) {
	g := o.state.gaps[i]
	o.state.gaps = append(o.state.gaps[:i], o.state.gaps[i+1:]...)
	if g.From < seq {
		o.state.gaps = append(o.state.gaps, Gap{g.From, seq - 1, g.Told})
	}
	if seq < g.To {
		o.state.gaps = append(o.state.gaps, Gap{seq + 1, g.To, g.Told})
	}
}

func (o *Observer) details() *detail {
	if o.state == nil {
		o.state = &detail{}
	}
	return o.state
}

// Observation is an observer's final word, as it travels to the one who compares.
type Observation struct {
	Account    uint32 `json:"a"`
	Last       uint32 `json:"l"`
	Told       int64  `json:"t"`
	Gaps       []Gap  `json:"g,omitempty"`
	Duplicates uint32 `json:"d,omitempty"`
	Misordered uint32 `json:"m,omitempty"`
}

// Observation returns what was observed.
func (o *Observer) Observation(account uint32) Observation {
	r := Observation{Account: account, Last: o.last, Told: o.told}
	if o.state != nil {
		r.Gaps, r.Duplicates, r.Misordered = o.state.gaps, o.state.duplicates, o.state.misordered
	}
	return r
}
