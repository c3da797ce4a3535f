package routing

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the transcripts' output lines anew")

// TestTranscripts plays each file of testdata: a line of input is a command, the
// indented lines below it are what came out. Comments begin with #. See player.do for the commands.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(b) {
				t.Errorf("%s: output differs; look at it with git diff after go test -update\n%s", file, firstDifference(string(b), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d:\nwant %s\ngot  %s", i+1, w[i], g[i])
		}
	}
	return fmt.Sprintf("want %d lines, got %d", len(w), len(g))
}

func play(t *testing.T, text string) string {
	var b strings.Builder
	pl := &player{t: t, now: time.UnixMilli(1_800_000_000_000), links: map[string]LinkID{}, names: map[LinkID]string{}}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue
		}
		b.WriteString(line + "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for _, out := range pl.do(strings.Fields(line)) {
			b.WriteString("  " + out + "\n")
		}
	}
	return b.String()
}

type player struct {
	t     *testing.T
	p     *Partition
	now   time.Time
	links map[string]LinkID
	names map[LinkID]string
}

// do runs one command:
//
//	new epoch=E start=N [bytes=N] [age=D] [index=N] [replay=N] [rate=N] [collide]
//	own G | disown | gap upto=N | beacon epoch=E at=N | wait D | tick | stats | down LINK
//	append OFFSET:ACCOUNT[:ID[:MAILBOX[:OLD]]] …
//	backfill after=N upto=N OFFSET:ACCOUNT …
//	LINK subscribe REQUEST gen=G ACCOUNT,… [after=E.N]
//	LINK unsubscribe ACCOUNT,…
//	LINK resume REQUEST gen=G ACCOUNT [since=E.N] [mailboxes=M,…]
func (pl *player) do(f []string) []string {
	opts, plain := map[string]string{}, []string{}
	for _, w := range f {
		if k, v, ok := strings.Cut(w, "="); ok {
			opts[k] = v
		} else {
			plain = append(plain, w)
		}
	}
	p := pl.p
	switch plain[0] {
	case "new":
		cfg := Config{WindowBytes: pl.num(opts["bytes"]), IndexAccounts: int(pl.num(opts["index"])),
			ReplayRecords: int(pl.num(opts["replay"])), FetchesPerSecond: float64(pl.num(opts["rate"]))}
		cfg.WindowAge, _ = time.ParseDuration(opts["age"])
		pl.p = New(cfg, uint64(pl.num(opts["epoch"])), pl.num(opts["start"]))
		if plain[len(plain)-1] == "collide" {
			pl.p.hasher.mask = 0
		}
		return nil
	case "own":
		p.Own(uint64(pl.num(plain[1])))
		return []string{fmt.Sprintf("owned gen=%d head=%s", p.Generation(), at(p.Head()))}
	case "disown":
		return pl.show(p.Disown())
	case "gap":
		return append(pl.show(p.Gap(pl.num(opts["upto"]))), fmt.Sprintf("gen=%d head=%s", p.Generation(), at(p.Head())))
	case "beacon":
		out, changed := p.Beacon(uint64(pl.num(opts["epoch"])), pl.num(opts["at"]))
		return append(pl.show(out), fmt.Sprintf("changed=%t gen=%d head=%s", changed, p.Generation(), at(p.Head())))
	case "wait":
		d, err := time.ParseDuration(plain[1])
		if err != nil {
			pl.t.Fatal(err)
		}
		pl.now = pl.now.Add(d)
		return nil
	case "tick":
		return pl.show(p.Tick(pl.now))
	case "down":
		p.LinkDown(pl.links[plain[1]])
		return nil
	case "append":
		return pl.show(p.Append(pl.now, pl.records(plain[1:])))
	case "backfill":
		return []string{fmt.Sprint(p.Backfill(pl.num(opts["after"]), pl.num(opts["upto"]), pl.records(plain[1:])))}
	case "stats":
		s := p.Stats()
		return []string{fmt.Sprintf("records=%d duplicates=%d window=%d floor=%d index=%d indexfloor=%d routes=%d parked=%d",
			s.Records, s.Duplicates, s.WindowRecords, s.WindowFloor, s.IndexAccounts, s.IndexFloor, s.Routes, s.Parked)}
	}
	return pl.request(plain, opts)
}

func (pl *player) request(plain []string, opts map[string]string) []string {
	link, ok := pl.links[plain[0]]
	if !ok {
		link = LinkID(len(pl.links) + 1)
		pl.links[plain[0]], pl.names[link] = link, plain[0]
	}
	switch plain[1] {
	case "subscribe":
		s := Subscribe{Request: uint64(pl.num(plain[2])), Generation: uint64(pl.num(opts["gen"])),
			Accounts: strings.Split(plain[3], ","), After: pl.position(opts["after"])}
		return pl.show(pl.p.Subscribe(pl.now, link, s))
	case "unsubscribe":
		return pl.show(pl.p.Unsubscribe(pl.now, link, strings.Split(plain[2], ",")))
	case "resume":
		r := Resume{Request: uint64(pl.num(plain[2])), Generation: uint64(pl.num(opts["gen"])), Account: plain[3], Since: pl.position(opts["since"])}
		if m := opts["mailboxes"]; m != "" {
			r.Mailboxes = strings.Split(m, ",")
		}
		return pl.show(pl.p.Resume(pl.now, link, r))
	}
	pl.t.Fatalf("unknown command %v", plain)
	return nil
}

func (pl *player) num(s string) int64 {
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		pl.t.Fatalf("bad number %q", s)
	}
	return n
}

func (pl *player) position(s string) *Position {
	if s == "" {
		return nil
	}
	e, o, _ := strings.Cut(s, ".")
	return &Position{Epoch: uint64(pl.num(e)), Offset: pl.num(o)}
}

func (pl *player) records(words []string) []Record {
	var rs []Record
	for _, w := range words {
		f := append(strings.Split(w, ":"), "", "", "")
		rs = append(rs, Record{Offset: pl.num(f[0]), Time: pl.now, Account: []byte(f[1]), Event: event(f[2], f[3], f[4])})
	}
	return rs
}

func event(id, mailbox, old string) []byte {
	e := fmt.Sprintf(`{"id":%q,"event":"MessageNew"`, id)
	if mailbox != "" {
		e += fmt.Sprintf(`,"mailbox":%q`, mailbox)
	}
	if old != "" {
		e += fmt.Sprintf(`,"oldMailbox":%q`, old)
	}
	return []byte(e + "}")
}

func at(p Position) string { return fmt.Sprintf("%d.%d", p.Epoch, p.Offset) }

func (pl *player) show(outs []Output) []string {
	var lines []string
	for _, o := range outs {
		line := pl.names[o.Link] + " "
		switch o.Kind {
		case Delivery:
			line += "deliver"
		case Progress:
			line += "progress"
		case Subscribed:
			line += fmt.Sprintf("subscribed %d %s", o.Request, o.Answer)
		case Resumed:
			line += fmt.Sprintf("resumed %d %s", o.Request, o.Answer)
		}
		line += fmt.Sprintf(" gen=%d head=%s", o.Generation, at(o.Head))
		if o.SpreadMs > 0 {
			line += fmt.Sprintf(" spread=%dms", o.SpreadMs)
		}
		for _, r := range o.Records {
			line += fmt.Sprintf(" %d:%s", r.Offset, r.Account)
		}
		lines = append(lines, line)
	}
	return lines
}
