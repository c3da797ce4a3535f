package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// profiled is a server whose CPU profile can be had.
type profiled struct {
	name string
	ops  string // host:port
}

// profiled returns the servers, which have to be ready.
func (s *site) profiled(ctx context.Context) ([]profiled, error) {
	var list []profiled
	for _, p := range s.servers {
		ready, err := p.logged(ctx, "ready")
		if err != nil {
			return nil, err
		}
		list = append(list, profiled{p.name, address(ready, "ops")})
	}
	return list, nil
}

// writeProfiles profiles all servers at once for a time, in whole seconds and one at least, and writes each to NAME.pprof.
func writeProfiles(ctx context.Context, servers []profiled, dir string, d time.Duration) error {
	if len(servers) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder for profiles: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		group.Go(func() error {
			if err := s.write(ctx, filepath.Join(dir, s.name+".pprof"), max(1, int(d.Seconds()))); err != nil {
				return fmt.Errorf("profile %s: %w", s.name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (s profiled) write(ctx context.Context, path string, seconds int) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.ops, seconds)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	profile, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %.200s", resp.Status, profile)
	}
	return os.WriteFile(path, profile, 0o644)
}
