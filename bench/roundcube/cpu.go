package roundcube

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ticksPerSecond is what /proc counts CPU time in (proc(5), USER_HZ).
const ticksPerSecond = 100

// treeCPU returns the CPU seconds of a process, of those below it, and of those of them that have ended and were waited for.
func treeCPU(root int) (float64, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("read /proc: %w", err)
	}
	ticks, children := map[int]float64{}, map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended; its parent has its time
		}
		// The name, in brackets, may hold anything: fields count from behind it.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) < 15 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], pid)
		for _, field := range fields[11:15] { // utime, stime, cutime, cstime
			n, _ := strconv.ParseFloat(field, 64)
			ticks[pid] += n
		}
	}
	if _, ok := ticks[root]; !ok {
		return 0, fmt.Errorf("process %d has ended", root)
	}
	sum := 0.0
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		sum += ticks[queue[0]]
		queue = append(queue, children[queue[0]]...)
	}
	return sum / ticksPerSecond, nil
}
