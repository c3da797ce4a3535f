package report

import (
	"encoding/json"
	"fmt"
	"html/template"

	"github.com/dop251/goja"

	"github.com/mailbell/mailbell/bench"
)

// chart is one that has been drawn.
type chart struct {
	ID    string        `json:"id"`
	Title string        `json:"title"`
	Note  string        `json:"note"`
	SVG   template.HTML `json:"svg"`
}

// The colours of the page's light side, for files that no style sheet reaches.
const lightTheme = `{"ink":"#1c2430","muted":"#5d6675","line":"#e3e0d7","card":"#fffefb","poll":"#b4532f","push":"#0d6e66","pushSoft":"#6fb5ad"}`

// What a browser has and ECharts asks for, though it draws without one.
const environment = `
var self = this, globalThis = this, exports = undefined, module = undefined, define = undefined;
var console = {log: function () {}, warn: function () {}, error: function () {}};
function setTimeout() { return 0; }
function clearTimeout() {}
`

const drawAll = `(function (results, theme, width, height) {
	return JSON.stringify(mailbellCharts(JSON.parse(results), JSON.parse(theme)).map(function (c) {
		var chart = echarts.init(null, null, {renderer: "svg", ssr: true, width: width, height: height});
		chart.setOption(c.option);
		var svg = chart.renderToSVGString();
		chart.dispose();
		return {id: c.id, title: c.title, note: c.note, svg: svg};
	}));
})`

const chartWidth, chartHeight = 720, 300

// draw makes all charts. It takes about half a second, most of it for reading ECharts.
func draw(all []Comparison) ([]chart, error) {
	vm := goja.New()
	if _, err := vm.RunString(environment); err != nil {
		return nil, fmt.Errorf("draw charts: %w", err)
	}
	for _, name := range []string{"echarts.min.js", "charts.js"} {
		source, err := assets.ReadFile("assets/" + name)
		if err != nil {
			return nil, fmt.Errorf("draw charts: %w", err)
		}
		if _, err := vm.RunScript(name, string(source)); err != nil {
			return nil, fmt.Errorf("draw charts: %w", err)
		}
	}
	value, err := vm.RunString(drawAll)
	if err != nil {
		return nil, fmt.Errorf("draw charts: %w", err)
	}
	fn, ok := goja.AssertFunction(value)
	if !ok {
		return nil, fmt.Errorf("draw charts: the script made no function")
	}
	results := make([]bench.CompareResult, len(all))
	for i, c := range all {
		results[i] = c.Result
	}
	data, err := json.Marshal(results)
	if err != nil {
		return nil, fmt.Errorf("draw charts: %w", err)
	}
	answer, err := fn(goja.Undefined(), vm.ToValue(string(data)), vm.ToValue(lightTheme), vm.ToValue(chartWidth), vm.ToValue(chartHeight))
	if err != nil {
		return nil, fmt.Errorf("draw charts: %w", err)
	}
	var charts []chart
	if err := json.Unmarshal([]byte(answer.String()), &charts); err != nil {
		return nil, fmt.Errorf("draw charts: %w", err)
	}
	return charts, nil
}
