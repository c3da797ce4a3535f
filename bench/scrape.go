package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// scrape reads the metrics whose name begins with prefix from a process's --ops address, by name and labels.
func scrape(ctx context.Context, client *http.Client, ops, prefix string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	found := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), " "); ok && strings.HasPrefix(key, prefix) {
			if found[key], err = strconv.ParseFloat(value, 64); err != nil {
				return nil, fmt.Errorf("metric %s: %w", key, err)
			}
		}
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return found, lines.Err()
}
