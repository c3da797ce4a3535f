// Package report draws comparisons of polling and pushing: as one HTML file that needs no network, with a calculator that scales
// the measured unit costs, and as SVG files for slides. Both come from the same chart options (assets/charts.js),
// which ECharts draws: in the page, and here in a JavaScript engine.
//
// The package starts no goroutines and reads nothing but what is embedded and given.
package report

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mailbell/mailbell/bench"
)

//go:embed assets
var assets embed.FS

// Comparison is a report of `bench compare` with its result decoded.
type Comparison struct {
	bench.Report
	Result bench.CompareResult `json:"result"`
}

// Read reads what `bench compare --json` printed.
func Read(r io.Reader) (Comparison, error) {
	var c Comparison
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		return c, fmt.Errorf("read comparison: %w", err)
	}
	if c.Bench != "compare" {
		return c, fmt.Errorf("read comparison: it is of bench %q: want the JSON of bench compare", c.Bench)
	}
	return c, nil
}

// Of takes the report of a comparison that has just been made.
func Of(r bench.Report, result bench.CompareResult) Comparison {
	return Comparison{Report: r, Result: result}
}

// check says what keeps comparisons from being drawn together.
func check(all []Comparison) error {
	if len(all) == 0 {
		return errors.New("report: no comparison given")
	}
	for _, c := range all {
		if c.Result.Push.WithoutFetch == nil || c.Result.Settings.Users == 0 {
			return errors.New("report: a comparison is incomplete: was it printed by this version of bench compare?")
		}
	}
	return nil
}

// HTML writes the report of one or several comparisons. The first is the one that is told in full; the others, of other
// mail stores, join the calculator and a chart.
func HTML(w io.Writer, all ...Comparison) error {
	if err := check(all); err != nil {
		return err
	}
	charts, err := draw(all)
	if err != nil {
		return err
	}
	page, err := template.New("page.html").Funcs(template.FuncMap{"join": strings.Join}).ParseFS(assets, "assets/page.html")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	data, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	text := func(name string) string {
		b, _ := assets.ReadFile("assets/" + name) // embedded
		return string(b)
	}
	err = page.Execute(w, map[string]any{
		"All": all, "Main": all[0], "Charts": charts, "Facts": facts(all[0].Result), "Rows": rows(all[0].Result), "Plainly": plainly(all[0].Result),
		"Data": template.JS(data), "CSS": template.CSS(text("page.css")), //nolint:gosec // ours
		"ECharts": template.JS(text("echarts.min.js")), "ChartsJS": template.JS(text("charts.js")), "PageJS": template.JS(text("page.js")),
		"Started": all[0].StartedAt.Format(time.RFC1123),
	})
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// SVG writes every chart as a file of its own into a folder, which is made.
func SVG(dir string, all ...Comparison) error {
	if err := check(all); err != nil {
		return err
	}
	charts, err := draw(all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	for _, c := range charts {
		if err := os.WriteFile(filepath.Join(dir, c.ID+".svg"), []byte(c.SVG), 0o644); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	return nil
}
