package kafkaproc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	kafka "github.com/mailbell/mailbell/deploy/kafka"
)

// Fetch makes sure that Apache Kafka is in the cache folder and returns where. It needs Java, and Maven when Kafka is
// not there yet.
func Fetch(ctx context.Context) (dir string, err error) {
	if _, err := exec.LookPath("java"); err != nil {
		return "", errors.New("fetch kafka: Java is missing: run 'make deps', or install the package openjdk-17-jre-headless")
	}
	files, err := os.MkdirTemp("", "mailbell-fetch-")
	if err != nil {
		return "", fmt.Errorf("fetch kafka: %w", err)
	}
	defer os.RemoveAll(files)
	entries, err := fs.ReadDir(kafka.Files, ".")
	if err != nil {
		return "", fmt.Errorf("fetch kafka: %w", err)
	}
	for _, e := range entries {
		b, err := kafka.Files.ReadFile(e.Name())
		if err == nil {
			err = os.WriteFile(filepath.Join(files, e.Name()), b, 0o600)
		}
		if err != nil {
			return "", fmt.Errorf("fetch kafka: %w", err)
		}
	}
	var out, problems strings.Builder
	cmd := exec.CommandContext(ctx, "bash", filepath.Join(files, "fetch.sh"))
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("fetch kafka: %w: %s", err, problems.String())
	}
	return strings.TrimSpace(out.String()), nil
}
