package bench

import "context"

// What happens in the simulated world.
const (
	simFill       = 200 // seconds in which all connect at first
	simScene      = 600 // seconds that a scene lasts at most
	simCrashSpan  = 20  // seconds over which those return whose node died: clients' jitter and admission
	simLeaveSpan  = 60  // seconds of a drain
	simSampleSecs = 5
)

func (s *simulation) run(ctx context.Context) (PlacementPolicy, error) {
	p := PlacementPolicy{Name: s.name}
	scenes := []struct {
		name string
		play func()
	}{
		{"fill", s.fill}, {"join", s.join}, {"leave", s.leave}, {"crash", s.crash},
	}
	for _, scene := range scenes {
		r, err := s.scene(ctx, scene.name, scene.play)
		if err != nil {
			return p, err
		}
		p.Scenes = append(p.Scenes, r)
		p.Imbalance = max(p.Imbalance, r.Imbalance)
		p.Moved += r.Moved
		switch {
		case r.SecondsToEven < 0:
			p.SecondsToEven = -1
		case p.SecondsToEven >= 0:
			p.SecondsToEven = max(p.SecondsToEven, r.SecondsToEven)
		}
	}
	p.SameNode = s.sameNode()
	return p, nil
}

// scene lets something happen and the fleet work until all is even, and for a while after.
func (s *simulation) scene(ctx context.Context, name string, play func()) (PlacementScene, error) {
	r := PlacementScene{Name: name, SecondsToEven: -1}
	play()
	start, moved := s.second(), s.moved
	evenFor := 0
	for s.second()-start < simScene {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		s.tick()
		if s.step%simSteps != 0 {
			continue
		}
		highest, lowest, grown := s.spread()
		r.Imbalance = round3(highest)
		r.Peak = max(r.Peak, round3(grown))
		if (s.second()-start)%simSampleSecs == 0 {
			r.Curve = append(r.Curve, r.Imbalance)
		}
		if name == "fill" && s.second()-start < simFill+1 {
			continue
		}
		if highest > 1+simEven || lowest < 1-simEven || s.returning() {
			evenFor = 0
			continue
		}
		if evenFor == 0 {
			r.SecondsToEven = float64(s.second() - start)
			if name == "fill" {
				r.SecondsToEven -= simFill
			}
		}
		if evenFor++; evenFor > 20 {
			break
		}
	}
	if evenFor == 0 {
		r.SecondsToEven = -1
	}
	r.Moved = s.moved - moved
	return r, nil
}

// returning says that more come back than those who come and go all the time.
func (s *simulation) returning() bool {
	usual := 4*int(simChurn*float64(len(s.conns))/simSteps) + 100
	for _, w := range s.waiting {
		if len(w) > usual {
			return true
		}
	}
	return false
}

// fill has all connect, evenly over time.
func (s *simulation) fill() {
	for i := range s.conns {
		s.later(uint32(i), int(int64(i)*simFill*simSteps/int64(len(s.conns))))
	}
}

func (s *simulation) join() {
	for range s.cfg.Nodes / 10 {
		s.begin()
	}
}

// leave drains a twentieth of the nodes.
func (s *simulation) leave() {
	s.remove(func(n *simNode) {
		for _, c := range n.conns {
			s.conns[c].node = -1
			s.later(c, s.random.IntN(simLeaveSpan*simSteps))
		}
	})
}

// crash kills a twentieth of the nodes at once.
func (s *simulation) crash() {
	s.remove(func(n *simNode) {
		for _, c := range n.conns {
			s.conns[c].node = -1
			s.later(c, s.random.IntN(simCrashSpan*simSteps))
		}
	})
}

func (s *simulation) remove(each func(*simNode)) {
	for range s.cfg.Nodes / 20 {
		n := s.nodes[s.random.IntN(len(s.nodes))]
		if n.gone {
			continue
		}
		n.gone = true
		each(n)
		n.conns = nil
	}
	s.changed = s.second()
	for _, g := range s.gateways { // they see at once that the link is gone
		g.look(s)
	}
}
