package ops

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// NotifyReady tells systemd that the process has started (Type=notify, sd_notify(3)).
// Without NOTIFY_SOCKET it does nothing.
func NotifyReady() error { return notify(daemon.SdNotifyReady) }

// NotifyStopping tells systemd that the process is on its way out, so that a long
// drain is not taken for a hang.
func NotifyStopping() error { return notify(daemon.SdNotifyStopping) }

// NotifyStatus sets the line that `systemctl status` shows.
func NotifyStatus(status string) error { return notify("STATUS=" + oneLine(status)) }

func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("tell systemd %s: %w", state, err)
	}
	return nil
}

// Watchdog tells systemd twice per WatchdogSec= that the process is well, for as
// long as healthy returns nil (a nil func always does). It blocks until ctx ends,
// also where no watchdog is set.
func Watchdog(ctx context.Context, healthy func(context.Context) error) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("watchdog: read WATCHDOG_USEC: %w", err)
	}
	if interval == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		if healthy == nil || healthy(ctx) == nil {
			if err := notify(daemon.SdNotifyWatchdog); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
