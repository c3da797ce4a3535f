package bench

import "fmt"

// Progress hears what a bench is doing, a line at a time. Nil is quiet.
type Progress func(line string)

func (p Progress) say(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}
