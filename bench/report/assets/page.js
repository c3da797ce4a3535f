/* SPDX-License-Identifier: Apache-2.0 */
(function () {
  "use strict";
  var reports = JSON.parse(document.getElementById("data").textContent);
  var results = reports.map(function (r) { return r.result; });
  var charts = [];

  function theme() {
    var s = getComputedStyle(document.documentElement), probe = document.createElement("i");
    document.body.appendChild(probe);
    var color = function (name) { probe.style.color = s.getPropertyValue(name); return getComputedStyle(probe).color; };
    var t = { ink: color("--ink"), muted: color("--muted"), line: color("--line"), card: color("--card"), poll: color("--poll"), push: color("--push"), pushSoft: color("--push-soft") };
    probe.remove();
    return t;
  }
  function clear() {
    charts.forEach(function (c) { c.dispose(); });
    charts = [];
  }
  function each(fn) {
    mailbellCharts(results, theme()).forEach(function (c) {
      var box = document.getElementById("chart-" + c.id);
      if (!box) return;
      box.textContent = "";
      fn(box, c.option);
    });
  }
  function draw() {
    clear();
    each(function (box, option) {
      var chart = echarts.init(box, null, { renderer: "svg" });
      chart.setOption(option);
      charts.push(chart);
    });
  }
  // On paper nothing knows yet how wide a chart will be: pictures of a fixed size, which the style sheet scales.
  function drawForPaper() {
    clear();
    each(function (box, option) {
      var chart = echarts.init(null, null, { renderer: "svg", ssr: true, width: 460, height: 270 });
      chart.setOption(option);
      box.innerHTML = chart.renderToSVGString();
      chart.dispose();
    });
  }
  function fit() { charts.forEach(function (c) { c.resize(); }); }
  draw();
  addEventListener("resize", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", function () { document.documentElement.dataset.print = "yes"; drawForPaper(); });
  addEventListener("afterprint", function () { delete document.documentElement.dataset.print; draw(); });

  // The calculator: unit costs as measured, times what the site is.
  var form = document.getElementById("calculator"), out = document.getElementById("scaled");
  function value(name) { return Math.max(0, parseFloat(form.elements[name].value) || 0); }
  function measured() { return results[form.elements.store.value]; } // none for Roundcube
  function units() {
    if (measured()) return measured().units;
    var u = Object.assign({}, results[0].units); // some 17 ms a request, Roundcube 1.6 on PHP 8.2 with opcache and Dovecot
    u.poll304Us = u.poll200Us = u.fetchUs = 17000;
    u.pollBaseCores = 0; // 17 ms has it in
    u.poll304Reads = u.poll200Reads = u.fetchReads = u.mailboxes;
    u.readsPerMailbox = 1;
    return u;
  }
  function costs() {
    var u = units(), users = value("users"), interval = Math.max(0.1, value("interval")), rate = value("changes") / 3600, header = value("header");
    var more = value("mailboxes") - u.mailboxes, boxes = value("mailboxes") / u.mailboxes;
    var servers = Math.max(1, Math.ceil(users / Math.max(1, value("servers"))));
    var polls = users / interval, same = Math.exp(-rate / Math.max(1, value("burst")) * interval);
    var body = function (full) { return u.poll304Bytes + Math.max(0, full - u.poll304Bytes) * boxes; };
    var reads = function (n) { return n > 0 ? n + (u.readsPerMailbox || 0) * more : 0; };
    var told = measured() ? measured().push : { latencyMs: { p50: NaN }, withoutFetch: results[0].push.withoutFetch };
    var events = users * rate, fetches = events * u.fetchesPerEvent, hours = users / 3600;
    var push = { requests: 0, events: events, cores: servers * u.pushBaseCores + (hours * u.holdUsPerHour + events * u.eventUs) / 1e6, mbit: (hours * u.holdBytesPerHour + events * u.eventBytes) * 8 / 1e6, reads: 0 };
    return {
      same: same,
      poll: { requests: polls, events: 0, cores: servers * u.pollBaseCores + polls * (same * u.poll304Us + (1 - same) * u.poll200Us) / 1e6,
        mbit: polls * (header + same * u.poll304Bytes + (1 - same) * body(u.poll200Bytes)) * 8 / 1e6,
        reads: polls * (same * reads(u.poll304Reads) + (1 - same) * reads(u.poll200Reads)), wait: interval / 2 * 1000 },
      push: { requests: fetches, events: events, cores: push.cores + servers * u.pollBaseCores + fetches * u.fetchUs / 1e6, mbit: push.mbit + fetches * (header + body(u.fetchBytes)) * 8 / 1e6,
        reads: fetches * reads(u.fetchReads), wait: told.latencyMs.p50 },
      bare: Object.assign(push, { wait: told.withoutFetch.latencyMs.p50 }),
    };
  }
  function show(v) {
    if (v === 0) return "0";
    if (isNaN(v)) return "–";
    var digits = v >= 100 ? 0 : v >= 10 ? 1 : v >= 1 ? 2 : 3;
    return v.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: digits });
  }
  function calculate() {
    var c = costs();
    var rows = [["requests a second", "requests"], ["events a second", "events"], ["cores", "cores"], ["Mbit/s on clients' sockets", "mbit"], ["mail store reads a second", "reads"], ["milliseconds until a user knows, p50", "wait"]];
    out.textContent = "";
    rows.forEach(function (row) {
      var tr = out.insertRow(), p = c.poll[row[1]], q = c.push[row[1]], b = c.bare[row[1]];
      tr.innerHTML = "<th scope=row></th><td></td><td></td><td></td><td></td>";
      tr.cells[0].textContent = row[0];
      tr.cells[1].textContent = show(p);
      tr.cells[2].textContent = show(q);
      tr.cells[3].textContent = show(b);
      tr.dataset.row = row[1];
      if (p > 0 && q > 0) {
        var push = p >= q;
        tr.cells[4].textContent = (push ? show(p / q) : show(q / p)) + " × " + (push ? "less by push" : "less by poll");
        tr.cells[4].className = push ? "push" : "poll";
      }
    });
    document.getElementById("same").textContent = (100 * c.same).toFixed(1) + " %";
  }
  var presets = {
    article: { users: 3000000, interval: 60, changes: (-Math.log(0.6) * 60).toFixed(2), burst: 1, header: 0 },
    measured: { users: results[0].settings.users, interval: results[0].settings.pollIntervalMs / 1000, changes: results[0].settings.changesPerUserHour, burst: Math.max(1, results[0].settings.burst || 1), header: 0 },
    quiet: { users: 20000, interval: 60, changes: 4, burst: 1, header: 500 },
    eager: { users: 20000, interval: 10, changes: 10, burst: 1, header: 500 },
  };
  function preset(name) {
    for (var k in presets[name]) form.elements[k].value = presets[name][k];
    form.elements.servers.value = 100000;
    form.elements.mailboxes.value = results[0].settings.mailboxes;
    Array.prototype.forEach.call(form.querySelectorAll("button[data-preset]"), function (b) { b.setAttribute("aria-pressed", String(b.dataset.preset === name)); });
    calculate();
  }
  form.addEventListener("input", calculate);
  form.addEventListener("submit", function (e) { e.preventDefault(); });
  form.addEventListener("click", function (e) { if (e.target.dataset.preset) preset(e.target.dataset.preset); });
  preset("article");
})();
