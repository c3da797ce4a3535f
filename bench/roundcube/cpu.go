package roundcube

import "github.com/mailbell/mailbell/bench/cputime"

// treeCPU returns the CPU seconds of a process, of those below it, and of those of them that have ended and were waited for.
func treeCPU(root int) (float64, error) {
	t, err := cputime.Tree(root)
	return t.Sum(), err
}
