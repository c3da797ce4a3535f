package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// process is mailbell as a process of its own: this very binary, called by the name that makes it mailbell.
type process struct {
	cmd  *exec.Cmd
	err  *lines
	done chan struct{}
	exit error // valid after done

	killed bool // by the test: the exit does not count
}

// startProcess runs a command line until the test ends, and expects it to end cleanly then.
func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	return startBinary(t, mailbellBinary(t), args...)
}

// startBinary does so with another build.
func startBinary(t *testing.T, binary string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, append([]string{args[0], "--ops", "127.0.0.1:0", "--log-format", "json"}, args[1:]...)...), err: newLines(), done: make(chan struct{})}
	p.cmd.Stderr = p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.exit = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(os.Interrupt)
		select {
		case <-p.done:
			if p.exit != nil && !p.killed {
				t.Errorf("mailbell %s ended with %v", args[0], p.exit)
			}
		case <-time.After(patience):
			t.Errorf("mailbell %s goes on after an interrupt", args[0])
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		if t.Failed() {
			t.Logf("mailbell %s\n%s", strings.Join(args, " "), p.err)
		}
	})
	return p
}

// mailbellBinary is where TestMain put this binary under the name mailbell.
func mailbellBinary(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("mailbell")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// logged waits for a log line and returns one of its attributes.
func (p *process) logged(t *testing.T, message, key string) string {
	t.Helper()
	var attrs map[string]any
	line := p.err.wait(t, p.done, `"msg":"`+message+`"`)
	if err := json.Unmarshal([]byte(line), &attrs); err != nil {
		t.Fatalf("log line %q: %v", line, err)
	}
	s, ok := attrs[key].(string)
	if !ok {
		t.Fatalf("log line %q has no %q", line, key)
	}
	return s
}

// credentials are what the processes of one site share.
type credentials struct {
	data                                 string // --data of a run that uses them
	privateKey, publicKey, serviceTokens string // files
	serviceToken                         string
}

func makeCredentials(t *testing.T) credentials {
	t.Helper()
	data := t.TempDir()
	dev, err := auth.DevKeys(keysDir(data))
	if err != nil {
		t.Fatal(err)
	}
	return credentials{data: data, privateKey: dev.PrivateKeyFile, publicKey: dev.PublicKeyFile, serviceTokens: dev.ServiceTokensFile, serviceToken: dev.ServiceToken}
}

func (c credentials) token(t *testing.T, account schema.Account) string {
	t.Helper()
	token, err := auth.MintToken(c.privateKey, auth.Claims{Account: account, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// soon returns a context that ends after the tests' patience.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
