package eventlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// embeddedState is what the embedded log knows of its folder beside kfake's own files.
type embeddedState struct {
	Version    int     `json:"version"`
	Topic      string  `json:"topic"`
	Partitions int     `json:"partitions"`
	Boot       string  `json:"boot"`  // of the machine, when the log was last opened
	Clean      bool    `json:"clean"` // the log was closed
	Next       []int64 `json:"next"`  // offsets that were surely reached
}

const stateVersion = 1

// lockDir takes the lock of dir, or says who has it. The lock ends with the file or the process.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		owner, _ := os.ReadFile(path)
		return nil, fmt.Errorf("folder %s is in use by process %s: stop that process, or choose another folder with --data", dir, strings.TrimSpace(string(owner)))
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return f, nil
}

func (s *embeddedState) load(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, s); err != nil {
		return fmt.Errorf("state.json: %w", err)
	}
	return nil
}

// check compares what the folder was made for with what is wanted.
func (s *embeddedState) check(cfg EmbeddedConfig) error {
	switch {
	case s.Version == 0:
		return nil // new
	case s.Version > stateVersion:
		return fmt.Errorf("it was written by a newer mailbell: state.json has version %d, this one knows %d", s.Version, stateVersion)
	case s.Topic != cfg.Topic:
		return fmt.Errorf("it holds topic %q, not %q: use that name, or another folder", s.Topic, cfg.Topic)
	case s.Partitions != cfg.Partitions:
		return fmt.Errorf("it has %d partitions, not %d: %w; use that number, or another folder", s.Partitions, cfg.Partitions, ErrPartitionsChanged)
	}
	return nil
}

// crashedWithMachine reports whether the machine was started anew since the log was open and not closed.
func (s *embeddedState) crashedWithMachine() bool {
	return s.Version != 0 && !s.Clean && s.Boot != bootID()
}

func (s *embeddedState) next(partition int32) int64 {
	if int(partition) >= len(s.Next) {
		return 0
	}
	return s.Next[partition]
}

// remember writes the state.
func (e *Embedded) remember(clean bool) error {
	e.retaining.Lock()
	defer e.retaining.Unlock()
	s := embeddedState{Version: stateVersion, Topic: e.cfg.Topic, Partitions: e.cfg.Partitions, Boot: bootID(), Clean: clean}
	for _, p := range e.cluster.PartitionInfos(e.cfg.Topic) {
		s.Next = append(s.Next, p.HighWatermark)
	}
	e.state = s
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(e.cfg.Dir, "state.json"), b)
}

// writeDurably replaces a file so that after a crash it is either the old or the new one.
func writeDurably(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// bootID names the time since the machine was last started; empty if the system has no such name.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
