package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ServeRestore keeps what a tuned bench has to put back: a process of its own, so that the machine's settings
// are restored even when the bench is killed. It reads pairs of key and value, a JSON array a line, and writes them
// back, the last first, when its input ends.
func ServeRestore(in io.Reader) error {
	var all [][2]string
	for dec := json.NewDecoder(in); ; {
		var kv [2]string
		if err := dec.Decode(&kv); err != nil {
			break // the end, however it came
		}
		all = append(all, kv)
	}
	var errs []error
	for i := len(all) - 1; i >= 0; i-- {
		errs = append(errs, writeSysctl(all[i][0], all[i][1]))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("restore settings: %w", err)
	}
	return nil
}
