/* SPDX-License-Identifier: Apache-2.0 */
// The options of every chart of the report. Runs in the page and, for the SVG files, in Go's JavaScript engine:
// no DOM, no browser, nothing newer than ECMAScript 2015.
var mailbellCharts = (function () {
  "use strict";

  function number(v) {
    if (v === 0) return "0";
    var a = Math.abs(v);
    if (a >= 1e9) return trim(v / 1e9) + " G";
    if (a >= 1e6) return trim(v / 1e6) + " M";
    if (a >= 1e4) return trim(v / 1e3) + " k";
    return trim(v);
  }
  function trim(v) { return String(parseFloat(v.toPrecision(3))); }
  function duration(ms) {
    if (ms >= 1000) return trim(ms / 1000) + " s";
    if (ms >= 1) return trim(ms) + " ms";
    return trim(ms * 1000) + " µs";
  }

  function base(theme) {
    return {
      animation: false,
      textStyle: { fontFamily: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", color: theme.ink },
      grid: { left: 62, right: 24, top: 58, bottom: 46 },
      legend: { top: 4, left: 0, itemWidth: 18, itemHeight: 9, itemGap: 18, textStyle: { color: theme.ink, fontSize: 12 } },
      tooltip: { trigger: "axis", backgroundColor: theme.card, borderColor: theme.line, textStyle: { color: theme.ink, fontSize: 12 } },
    };
  }
  function axis(theme, extra) {
    var a = {
      axisLine: { lineStyle: { color: theme.line } }, axisTick: { show: false },
      axisLabel: { color: theme.muted, fontSize: 11 }, splitLine: { show: false },
      nameTextStyle: { color: theme.muted, fontSize: 11 },
    };
    for (var k in extra) a[k] = extra[k];
    return a;
  }
  function valueAxis(theme, name, extra) {
    var a = axis(theme, { type: "value", name: name, nameGap: 12, splitLine: { lineStyle: { color: theme.line, opacity: 0.7 } }, axisLine: { show: false },
      axisLabel: { color: theme.muted, fontSize: 11, formatter: number } });
    a.nameTextStyle = { color: theme.muted, fontSize: 11, align: "left", padding: [0, 0, 0, -46] };
    for (var k in extra) a[k] = extra[k];
    return a;
  }
  function line(name, color, data, extra) {
    var s = { name: name, type: "line", showSymbol: false, data: data, lineStyle: { color: color, width: 2 }, itemStyle: { color: color } };
    for (var k in extra) s[k] = extra[k];
    return s;
  }
  // Bins of a timeline, so that a poll a second long is not a comb of samples.
  function binned(points, key) {
    var width = points.length > 1 ? Math.max(1, (points[points.length - 1].t - points[0].t) / 120) : 1;
    var out = [], sum = 0, n = 0, end = points.length ? points[0].t + width : 0;
    for (var i = 0; i < points.length; i++) {
      sum += points[i][key]; n++;
      if (points[i].t >= end || i === points.length - 1) {
        out.push([parseFloat(points[i].t.toFixed(1)), parseFloat((sum / n).toPrecision(4))]);
        sum = 0; n = 0; end = points[i].t + width;
      }
    }
    return out;
  }
  function outageArea(result, theme) {
    var from = null, to = null, points = result.push.timeline;
    for (var i = 0; i < points.length; i++) {
      if (points[i].stage !== "outage") continue;
      if (from === null) from = points[i].t;
      to = points[i].t;
    }
    if (from === null) return undefined;
    return { silent: true, itemStyle: { color: theme.muted, opacity: 0.12 },
      label: { color: theme.muted, fontSize: 11, position: "insideTop" }, data: [[{ name: "all servers down", xAxis: from }, { xAxis: to }]] };
  }

  function overTime(result, theme, name, series) {
    var o = base(theme);
    o.xAxis = axis(theme, { type: "value", name: "seconds", nameLocation: "middle", nameGap: 28, max: "dataMax", axisLabel: { color: theme.muted, fontSize: 11, showMaxLabel: false } });
    o.yAxis = valueAxis(theme, name);
    o.series = series;
    o.series[0].markArea = outageArea(result, theme);
    return o;
  }
  function load(result, theme) {
    return overTime(result, theme, "per second", [
      line("polls", theme.poll, binned(result.poll.timeline, "requestsPerSecond")),
      line("events pushed", theme.push, binned(result.push.timeline, "eventsPerSecond")),
      line("fetches after events", theme.pushSoft, binned(result.push.timeline, "requestsPerSecond"), { lineStyle: { color: theme.pushSoft, width: 2, type: "dashed" } }),
    ]);
  }
  function cpu(result, theme) {
    return overTime(result, theme, "cores", [
      line("polling", theme.poll, binned(result.poll.timeline, "cores"), { areaStyle: { color: theme.poll, opacity: 0.1 } }),
      line("pushing, fetches included", theme.push, binned(result.push.timeline, "cores"), { areaStyle: { color: theme.push, opacity: 0.1 } }),
    ]);
  }
  function latency(result, theme) {
    var o = base(theme);
    o.xAxis = axis(theme, { type: "log", name: "time from the change to the user's knowledge", nameLocation: "middle", nameGap: 28,
      axisLabel: { color: theme.muted, fontSize: 11, formatter: duration, hideOverlap: true }, splitLine: { show: true, lineStyle: { color: theme.line, opacity: 0.5 } } });
    o.yAxis = valueAxis(theme, "share of changes known", { min: 0, max: 1, axisLabel: { color: theme.muted, fontSize: 11, formatter: function (v) { return Math.round(v * 100) + " %"; } } });
    var points = function (cdf) { return cdf.map(function (p) { return [Math.max(0.01, p[0]), p[1]]; }); };
    o.series = [line("polling", theme.poll, points(result.poll.latencyCDF)), line("pushing", theme.push, points(result.push.latencyCDF))];
    o.tooltip.formatter = undefined;
    return o;
  }
  function bars(theme, name, stacks) {
    var o = base(theme);
    o.tooltip.axisPointer = { type: "shadow" };
    o.grid = { left: 150, right: 30, top: 46, bottom: 46 };
    o.yAxis = axis(theme, { type: "category", inverse: true, data: ["polling", "pushing", "pushing, no fetch"], axisLabel: { color: theme.ink, fontSize: 12 } });
    o.xAxis = valueAxis(theme, name, { nameLocation: "middle", nameGap: 28 });
    o.xAxis.nameTextStyle = { color: theme.muted, fontSize: 11 };
    o.series = stacks.map(function (s) {
      return { name: s.name, type: "bar", stack: "all", barWidth: 26, data: s.data, itemStyle: { color: s.color } };
    });
    return o;
  }
  // perHour divides a side's figure by its own user-hours.
  function perHour(result, side, value) { return parseFloat((value / (side.seconds / 3600 * result.settings.users)).toPrecision(4)); }
  function cpuBars(result, theme) {
    var push = result.push, bare = push.withoutFetch || push;
    return bars(theme, "CPU seconds per user-hour", [
      { name: "poll server", color: theme.poll, data: [perHour(result, result.poll, result.poll.cpuSeconds), 0, 0] },
      { name: "mailbell", color: theme.push, data: [0, perHour(result, bare, bare.cpuSeconds), perHour(result, bare, bare.cpuSeconds)] },
      { name: "fetches", color: theme.pushSoft, data: [0, perHour(result, push, Math.max(0, push.cpuSeconds - bare.cpuSeconds)), 0] },
    ]);
  }
  function byteBars(result, theme) {
    var push = result.push, bare = push.withoutFetch || push;
    return bars(theme, "bytes per user-hour", [
      { name: "to the servers", color: theme.muted, data: [perHour(result, result.poll, result.poll.bytesIn), perHour(result, push, push.bytesIn), perHour(result, bare, bare.bytesIn)] },
      { name: "to the clients", color: theme.push, data: [perHour(result, result.poll, result.poll.bytesOut), perHour(result, push, push.bytesOut), perHour(result, bare, bare.bytesOut)] },
    ]);
  }
  function sweep(result, theme) {
    var o = base(theme), points = result.sweep.map(function (p) { return [p.intervalSeconds, p.poll.perUserHour.cpuSeconds]; });
    points.sort(function (a, b) { return a[0] - b[0]; });
    var from = points[0][0], to = points[points.length - 1][0];
    var flat = function (f) { return [[from, f.perUserHour.cpuSeconds], [to, f.perUserHour.cpuSeconds]]; };
    o.xAxis = axis(theme, { type: "log", logBase: 2, name: "poll interval in seconds", nameLocation: "middle", nameGap: 28, min: from, max: to, axisLabel: { color: theme.muted, fontSize: 11, formatter: number, showMinLabel: true, showMaxLabel: true },
      splitLine: { show: true, lineStyle: { color: theme.line, opacity: 0.5 } } });
    o.yAxis = valueAxis(theme, "CPU seconds per user-hour", { min: 0 });
    o.series = [
      line("polling", theme.poll, points, { showSymbol: true, symbolSize: 7 }),
      line("pushing, fetches included", theme.push, flat(result.push)),
    ];
    if (result.push.withoutFetch) {
      o.series.push(line("pushing, no fetch", theme.pushSoft, flat(result.push.withoutFetch), { lineStyle: { color: theme.pushSoft, width: 2, type: "dashed" } }));
    }
    return o;
  }
  function stores(results, theme) {
    var o = base(theme);
    o.tooltip.axisPointer = { type: "shadow" };
    o.xAxis = axis(theme, { type: "category", data: results.map(function (r) { return r.settings.store; }), axisLabel: { color: theme.ink, fontSize: 12 } });
    o.yAxis = axis(theme, { type: "log", name: "CPU milliseconds per user-hour", min: 1, splitLine: { show: true, lineStyle: { color: theme.line, opacity: 0.7 } }, axisLine: { show: false } });
    o.yAxis.nameTextStyle = { color: theme.muted, fontSize: 11, align: "left", padding: [0, 0, 0, -46] };
    var bar = function (name, color, value) { return { name: name, type: "bar", barMaxWidth: 40, data: results.map(value), itemStyle: { color: color } }; };
    o.series = [
      bar("polling", theme.poll, function (r) { return 1000 * r.poll.perUserHour.cpuSeconds; }),
      bar("pushing, fetches included", theme.push, function (r) { return 1000 * r.push.perUserHour.cpuSeconds; }),
      bar("pushing, no fetch", theme.pushSoft, function (r) { return 1000 * r.push.withoutFetch.perUserHour.cpuSeconds; }),
    ];
    return o;
  }

  // all returns the charts that the results allow: [{id, title, note, option}].
  return function all(results, theme) {
    var r = results[0], list = [
      { id: "load", title: "Load over time", note: "requests and events a second", option: load(r, theme) },
      { id: "cpu", title: "Server CPU over time", note: "cores, server processes only", option: cpu(r, theme) },
      { id: "latency", title: "How soon a user knows", note: "cumulative; the time axis is logarithmic", option: latency(r, theme) },
      { id: "cpu-per-user", title: "CPU per user-hour", note: "", option: cpuBars(r, theme) },
      { id: "bytes-per-user", title: "Bytes per user-hour", note: "on the clients' sockets, headers included", option: byteBars(r, theme) },
    ];
    if (r.sweep && r.sweep.length > 1) list.push({ id: "sweep", title: "Over poll intervals", note: "the same changes; where the lines cross, polling becomes cheaper", option: sweep(r, theme) });
    if (results.length > 1) list.push({ id: "stores", title: "Over mail stores", note: "what a poll asks; the axis is logarithmic, and each run has its own number of users", option: stores(results, theme) });
    return list;
  };
})();
