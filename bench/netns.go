package bench

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// netns is a network namespace of a bench's own: nobody else's ports, settings and connections. It lives on one
// thread, from which the children are forked into it, and ends with it and the last of them.
type netns struct {
	calls chan func()
	done  chan struct{}
}

// newNetns needs root. The namespace has a loopback interface that is up, and these settings.
func newNetns(settings map[string]string) (*netns, error) {
	n := &netns{calls: make(chan func()), done: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(n.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := enterNetns(settings)
		started <- err
		if err != nil {
			return
		}
		for f := range n.calls {
			f()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return n, nil
}

func enterNetns(settings map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace (root may): %w", err)
	}
	if err := interfaceUp("lo"); err != nil {
		return err
	}
	for key, value := range settings {
		if err := writeSysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

// interfaceUp sets IFF_UP of an interface of this thread's namespace.
func interfaceUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("interface %s: bring it up: %w", name, err)
	}
	return nil
}

// do runs f on the namespace's thread.
func (n *netns) do(f func() error) error {
	result := make(chan error)
	n.calls <- func() { result <- f() }
	return <-result
}

// close ends the thread, and with it every child that it has forked.
func (n *netns) close() {
	close(n.calls)
	<-n.done
}

func sysctlFile(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlFile(key))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile(sysctlFile(key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s (root may): %w", key, value, err)
	}
	return nil
}
