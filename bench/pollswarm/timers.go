package pollswarm

// timer is when a user has something to do. A user's later one replaces its earlier ones, which are skipped when they come up.
type timer struct {
	at   int64
	user int32
}

// timers is a binary heap, the earliest first.
type timers []timer

func (h *timers) push(t timer) {
	*h = append(*h, t)
	a, i := *h, len(*h)-1
	for i > 0 && a[i].at < a[(i-1)/2].at {
		a[i], a[(i-1)/2] = a[(i-1)/2], a[i]
		i = (i - 1) / 2
	}
}

func (h *timers) pop() timer {
	a := *h
	first, last := a[0], len(a)-1
	a[0] = a[last]
	a = a[:last]
	*h = a
	for i := 0; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < last && a[child].at < a[least].at {
				least = child
			}
		}
		if least == i {
			return first
		}
		a[i], a[least] = a[least], a[i]
		i = least
	}
}
