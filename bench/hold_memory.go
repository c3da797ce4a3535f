package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// holdMemory is what is used at one moment.
type holdMemory struct {
	notifiers int64 // anonymous memory
	clients   int64
	bus       int64
	log       int64
	tables    int64 // page tables of all processes
	slab      int64 // the kernel's objects
	objects   int64 // of them: what sockets are made of; 0 when only root may know
	buffers   int64 // of TCP
	sockets   int64
}

func (h *hold) memory() (m holdMemory, err error) {
	sum := func(into *int64, ps ...*process) {
		for _, p := range ps {
			for key, to := range map[string]*int64{"RssAnon": into, "VmPTE": &m.tables} {
				n, e := p.memory(key)
				if e != nil && err == nil {
					err = e
				}
				*to += n
			}
		}
	}
	sum(&m.notifiers, h.fleet.notifiers...)
	for _, c := range h.clients {
		sum(&m.clients, c.process)
	}
	sum(&m.bus, h.fleet.bus)
	sum(&m.log, h.fleet.log)
	if err != nil {
		return m, err
	}
	info, err := meminfo()
	if err != nil {
		return m, err
	}
	m.slab, m.objects = info["Slab"], socketCaches()
	m.sockets, m.buffers, err = h.sockstat()
	return m, err
}

// sockstat reads how many sockets the fleet's network has, and the bytes in TCP's buffers on the whole machine.
func (h *hold) sockstat() (sockets, buffers int64, err error) {
	path := fmt.Sprintf("/proc/%d/net/sockstat", h.fleet.bus.cmd.Process.Pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, fmt.Errorf("count sockets: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		for i := 1; i+1 < len(f); i += 2 {
			n, _ := strconv.ParseInt(f[i+1], 10, 64)
			switch {
			case f[0] == "sockets:" && f[i] == "used":
				sockets = n
			case f[0] == "TCP:" && f[i] == "mem":
				buffers = n * int64(os.Getpagesize())
			}
		}
	}
	return sockets, buffers, nil
}

// dentry is the size of the object that a socket has beside those of socketCaches. They are too many
// others' to be counted.
const dentry = 192

// socketCaches is the memory of the objects that sockets are made of, with what their pages waste.
func socketCaches() int64 {
	b, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return 0
	}
	total := int64(0)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		switch f[0] {
		case "TCP", "TCPv6", "sock_inode_cache", "filp", "eventpoll_epi":
			used, _ := strconv.ParseInt(f[1], 10, 64)
			inSlab, _ := strconv.ParseInt(f[4], 10, 64)
			pages, _ := strconv.ParseInt(f[5], 10, 64)
			total += used * pages * int64(os.Getpagesize()) / max(1, inSlab)
		}
	}
	return total
}

// A notifier gives memory back after trimAfter of calm, and again after trimEvery at the earliest.
const (
	trimAfter = 10 * time.Second
	trimEvery = time.Minute
)

// calm waits until the notifiers give no more memory back, of which the last time was before `last`.
func (h *hold) calm(ctx context.Context, last time.Time) (holdMemory, error) {
	patience := trimAfter + 3*time.Second
	if h.cfg.Connections < 1000 {
		patience, last = 500*time.Millisecond, time.Time{} // nothing that is worth waiting for
	}
	least, since := int64(1)<<62, time.Now()
	for {
		m, err := h.memory()
		if err != nil {
			return m, err
		}
		if m.notifiers < least-least/1000 {
			since = time.Now()
		}
		least = min(least, m.notifiers)
		if time.Since(since) > patience && time.Since(last) > trimEvery+patience {
			return m, nil
		}
		h.cfg.Progress.say("waiting until memory is calm: notifiers %d MiB", m.notifiers>>20)
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return m, err
		}
	}
}

func (h *hold) measureBefore(ctx context.Context) (err error) {
	h.before, err = h.calm(ctx, time.Time{})
	h.measured = time.Now()
	return err
}

func (h *hold) measureAfter(ctx context.Context) error {
	m, err := h.calm(ctx, h.measured)
	if err != nil {
		return err
	}
	r, b := &h.result, h.before
	sockets := max(1, m.sockets-b.sockets)
	r.UserBytesPerConnection = round1(float64(m.notifiers-b.notifiers) / float64(h.cfg.Connections))
	kernel := m.slab - b.slab
	r.KernelMemoryFrom = "Slab of /proc/meminfo"
	if m.objects > 0 { // exact, where many others use the machine
		kernel = m.objects - b.objects + dentry*sockets
		r.KernelMemoryFrom = "TCP, TCPv6, sock_inode_cache, filp and eventpoll_epi of /proc/slabinfo, and a dentry each"
	}
	r.KernelBytesPerSocket = round1(float64(kernel) / float64(sockets))
	r.Memory = map[string]int64{
		"notifiers": m.notifiers, "notifiersBefore": b.notifiers, "clients": m.clients, "bus": m.bus, "log": m.log, "pageTables": m.tables,
		"kernelSockets": kernel, "kernelSlab": m.slab - b.slab, "kernelBuffers": m.buffers, "sockets": sockets,
	}
	r.TotalMemoryBytes = m.notifiers + m.clients + m.bus + m.log + m.tables + max(kernel, m.slab-b.slab) + m.buffers
	return nil
}

// longestBefore is how long servers are watched at most before anybody is connected: what they do then, they do every second.
const longestBefore = 20 * time.Second

// idleBefore measures what the notifiers do without connections.
func (h *hold) idleBefore(ctx context.Context) (err error) {
	watch := min(h.cfg.Quiet, longestBefore)
	h.cfg.Progress.say("nobody is connected: quiet for %v", watch)
	h.coresBefore, err = h.quietCores(ctx, watch)
	h.result.IdleCoresBefore = roundCPU(h.coresBefore)
	return err
}

// idle measures what the notifiers do while nothing is published.
func (h *hold) idle(ctx context.Context) error {
	h.cfg.Progress.say("holding %d connections: quiet for %v", h.result.Connections, h.cfg.Quiet)
	cores, err := h.quietCores(ctx, h.cfg.Quiet)
	if err != nil {
		return err
	}
	h.result.IdleCores = roundCPU(cores)
	h.result.IdleMicrosPerSecond = round3((cores - h.coresBefore) * 1e6 / float64(max(1, h.result.Connections)))
	return nil
}

// quietCores is what the notifiers use while they are left alone for so long.
func (h *hold) quietCores(ctx context.Context, watch time.Duration) (float64, error) {
	before, err := h.cpu()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := pause(ctx, watch); err != nil {
		return 0, err
	}
	after, err := h.cpu()
	if err != nil {
		return 0, err
	}
	return (after["notifiers"] - before["notifiers"]) / time.Since(start).Seconds(), nil
}

// cpu is the CPU seconds of the parts so far.
func (h *hold) cpu() (map[string]float64, error) {
	seconds := make(map[string]float64)
	add := func(name string, ps ...*process) error {
		for _, p := range ps {
			s, err := p.cpuSeconds()
			if err != nil {
				return err
			}
			seconds[name] += s
		}
		return nil
	}
	if err := add("notifiers", h.fleet.notifiers...); err != nil {
		return nil, err
	}
	for _, c := range h.clients {
		if err := add("clients", c.process); err != nil {
			return nil, err
		}
	}
	return seconds, add("bus", h.fleet.bus)
}
