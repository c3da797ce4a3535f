/* SPDX-License-Identifier: Apache-2.0 */
// Reads the one JSON API (docs/console.md) every 2 seconds and draws it. Rates come from two of its answers.
import { delays, growth, partitionsOf, rate, rates, served, sum, values } from "./figures.js";

const every = 2000, remembered = 31; // a minute of answers
const $ = (id) => document.getElementById(id);
const history = []; // the last answers, oldest first
const partLabel = { mailbell_notifier_events_dropped_total: "event dropped for a slow client", mailbell_notifier_missed_total: "missed frame", mailbell_notifier_closes_total: "socket closed", mailbell_notifier_handshakes_total: "handshake",
  mailbell_notifier_catch_ups_total: "catch-up", mailbell_notifier_link_ends_total: "link ended (notifier)", mailbell_bus_links_ended_total: "link ended (bus)",
  mailbell_publish_failures_total: "not published" };

function el(tag, attrs = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}
function number(v) {
  if (!isFinite(v)) return "–";
  const a = Math.abs(v);
  if (a >= 1e7) return (v / 1e6).toFixed(1) + " M";
  if (a >= 1e5) return Math.round(v / 1e3) + " k";
  if (a >= 100 || Number.isInteger(v)) return Math.round(v).toLocaleString("en");
  return v.toFixed(a >= 10 ? 1 : 2);
}
const bytes = (v) => v >= 2 ** 30 ? (v / 2 ** 30).toFixed(1) + " GiB" : v >= 2 ** 20 ? (v / 2 ** 20).toFixed(1) + " MiB" : Math.round(v / 1024) + " KiB";
const seconds = (s) => !isFinite(s) ? "–" : s >= 1 ? s.toFixed(1) + " s" : (s * 1000).toFixed(s < 0.01 ? 1 : 0) + " ms";
const ago = (t) => {
  const s = (Date.now() - new Date(t)) / 1000;
  return s < 90 ? Math.max(0, Math.round(s)) + " s" : s < 5400 ? Math.round(s / 60) + " min" : s < 129600 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " d";
};

// lately is the end of what is remembered: the last answer, and so many before it.
const lately = (n) => history.slice(-1 - n);
const DELAY = "mailbell_notifier_event_delay_seconds";

function quantile(list, q) {
  const total = list.reduce((n, b) => n + b[1], 0);
  if (!total) return NaN;
  let seen = 0, low = 0;
  for (const [le, n] of list) {
    if (seen + n >= q * total) return isFinite(le) ? low + (le - low) * (q * total - seen) / n : low;
    seen += n;
    low = le;
  }
  return low;
}

function spark(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 100 26");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const top = Math.max(...values, 1e-9);
  if (values.length > 1) path.setAttribute("d", values.map((v, i) => (i ? "L" : "M") + (100 * i / (values.length - 1)).toFixed(1) + " " + (24 - 22 * v / top).toFixed(1)).join(""));
  svg.append(path);
  return svg;
}
function fact(id, value, text, values) {
  const box = el("div", { class: "fact" }, el("b", { id }, value), el("span", { class: "muted" }, text));
  if (values) box.append(spark(values));
  return box;
}

// notifiersOf merges what bus nodes say: each notifier once, as its most recent link has it.
function notifiersOf(status) {
  const all = new Map();
  for (const p of status.nodes) for (const n of p.bus?.notifiers || []) {
    const known = all.get(n.node);
    if (!known || (known.state !== "serving" && n.state === "serving") || (known.state === n.state && n.since > known.since)) all.set(n.node, n);
  }
  return [...all.values()].sort((a, b) => a.node.localeCompare(b.node));
}
const hue = (name) => [...name].reduce((h, c) => (h * 31 + c.codePointAt(0)) % 360, 170);
const ownerColor = (name) => `oklch(0.62 0.11 ${hue(name)})`;

function drawFacts(status) {
  const list = delays(history, DELAY), notifiers = notifiersOf(status);
  const connections = Math.max(sum(status, "mailbell_notifier_connections"), notifiers.reduce((n, m) => n + m.connections, 0));
  const local = sum(status, "mailbell_notifier_events_sent_total") > 0 || status.nodes.some((p) => p.metrics.some((m) => m.name === "mailbell_notifier_connections"));
  $("facts").replaceChildren(
    fact("connections", number(connections), "connections", history.map((s) => sum(s, "mailbell_notifier_connections"))),
    fact("events", local ? number(rate(lately(1), "mailbell_notifier_events_sent_total")) : number(notifiers.reduce((n, m) => n + m.eventsPerSecond, 0)), "events/s to sockets", rates(history, "mailbell_notifier_events_sent_total")),
    fact("published", number(rate(lately(1), "mailbell_publish_events_total")), "events/s published", rates(history, "mailbell_publish_events_total")),
    fact("p99", seconds(quantile(list, 0.99)), "p99, timestamp to socket; p50 " + seconds(quantile(list, 0.5))),
    fact("avoided", number(rate(history, "mailbell_polls_avoided_total")), "polls/s avoided"),
    fact("cpu", number(rate(lately(5), "process_cpu_seconds_total")), "cores in use", rates(history, "process_cpu_seconds_total")),
  );
}
function drawAlarms(status) {
  const alarms = status.silent.map((s) => `${s.address} does not answer: ${s.problem}`);
  for (const n of notifiersOf(status)) if (n.state !== "serving") alarms.push(`${n.node} is ${n.state}`);
  for (const p of status.nodes) {
    const reading = (p.bus?.partitions || []).filter((x) => x.state === "reading").length;
    if (reading) alarms.push(`${p.node} still reads ${reading} partitions`);
    const standins = (p.bus?.partitions || []).filter((x) => x.state === "standin").length;
    if (standins) alarms.push(`${p.node} stands in for ${standins} partitions, whose owner notifiers do not reach`);
    for (const m of p.metrics) if (m.name === "mailbell_notifier_links" && m.value === 0) alarms.push(`${p.node} has no bus node`);
  }
  for (const [name, text] of [["mailbell_publish_failures_total", "events were not published"], ["mailbell_notifier_events_dropped_total", "events were dropped for slow clients"]]) {
    const n = rate(history, name);
    if (n > 0) alarms.push(`${text}: ${number(n)}/s in the last minute`);
  }
  $("alarm-list").replaceChildren(...alarms.map((a) => el("li", {}, a)));
  $("alarms").hidden = alarms.length === 0;
  return alarms.length;
}
function drawNotifiers(status) {
  const all = notifiersOf(status), most = Math.max(1, ...all.map((n) => n.connections));
  $("notifier-note").textContent = all.length ? `${all.length} linked, as the bus sees them` : "no bus node here or among the peers knows of one";
  $("notifiers").replaceChildren(...all.map((n) => {
    const bar = el("i");
    bar.style.width = 100 * n.connections / (n.capacity || most) + "%";
    const kv = el("div", { class: "kv" });
    for (const [k, v] of [["connections", number(n.connections) + (n.capacity ? " of " + number(n.capacity) : "")], ["events/s", number(n.eventsPerSecond)], ["accepts/s", number(n.acceptsPerSecond)],
      ["cores", n.cpuCores.toFixed(2)], ["memory", bytes(n.memoryBytes)], ["backlog", bytes(n.backlogBytes)], ["linked for", ago(n.since)]]) kv.append(el("span", {}, k), el("span", {}, v));
    return el("div", { class: "node" }, el("div", { class: "head" }, el("b", {}, n.node), el("span", { class: "tag" + (n.state === "serving" ? "" : " warn") }, n.state)), el("div", { class: "bar" }, bar), kv);
  }));
}
function drawPartitions(status) {
  const owners = new Map(), by = partitionsOf(status);
  let total = 0;
  for (const p of status.nodes) if (p.bus) {
    total = Math.max(total, p.bus.total, ...p.bus.partitions.map((x) => x.partition + 1));
    owners.set(p.node, 0);
  }
  $("partitions").replaceChildren(...Array.from({ length: total }, (_, i) => {
    const x = by.get(i), box = el("i", { title: x ? `${i}: ${x.node}, ${x.state}, generation ${x.generation}, offset ${x.head}, ${x.routes} routes, ${x.windowEvents} events in the window` : `${i}: no bus node that is asked has it` });
    if (served(x)) {
      box.style.background = ownerColor(x.node);
      box.className = x.state;
      owners.set(x.node, owners.get(x.node) + 1);
    } else if (x) box.className = "reading";
    return box;
  }));
  $("owners").replaceChildren(...[...owners].map(([name, n]) => {
    const dot = el("i");
    dot.style.background = ownerColor(name);
    return el("li", {}, dot, `${name}: ${n}`);
  }));
  $("partition-note").textContent = total ? `${[...by.values()].filter(served).length} of ${total} served by the bus nodes asked` : "no bus node here or among the peers";
}
function drawDelays() {
  const list = delays(history, DELAY), total = list.reduce((n, b) => n + b[1], 0);
  if (!total) return $("delays").replaceChildren(el("p", { class: "muted" }, "No event in the last minute."));
  let low = 0;
  const first = list.findIndex((b) => b[1] > 0), last = list.findLastIndex((b) => b[1] > 0);
  $("delays").replaceChildren(...list.slice(Math.max(0, first - 1), last + 1).map(([le, n]) => {
    const bar = el("i"), text = isFinite(le) ? "≤ " + seconds(le) : "> " + seconds(low);
    low = le;
    bar.style.width = 100 * n / total + "%";
    return el("div", { class: "row" }, el("span", { class: "muted" }, text), el("div", { class: "bar" }, bar), el("span", {}, (100 * n / total).toFixed(1) + " %"));
  }));
}
function drawReasons(status) {
  const byReason = (p) => values(p, (m) => partLabel[m.name] && partLabel[m.name] + ": " + Object.values(m.labels || {}).join(", "));
  const minute = growth(history, byReason), now = new Map();
  for (const p of status.nodes) for (const [k, n] of byReason(p)) now.set(k, (now.get(k) || 0) + n);
  const rows = [...now].filter(([, n]) => n > 0).sort((a, b) => a[0].localeCompare(b[0]));
  const head = el("thead", {}, el("tr", {}, el("th", {}, "what"), el("th", {}, "total"), el("th", {}, "last minute")));
  $("reasons").replaceChildren(head, el("tbody", {}, ...(rows.length ? rows : [["nothing yet", NaN]]).map(([k, n]) =>
    el("tr", {}, el("td", {}, k), el("td", {}, number(n)), el("td", {}, number(minute.get(k) || 0))))));
}
function drawProcesses(status) {
  const head = el("thead", {}, el("tr", {}, ...["process", "part", "version", "up for", "cores", "memory"].map((t) => el("th", {}, t))));
  const of = (p, name) => values(p, (m) => m.name).get(name) ?? NaN;
  const only = (p) => lately(5).map((s) => ({ at: s.at, nodes: s.nodes.filter((o) => o.node === p.node && o.part === p.part && o.startedAt === p.startedAt) })).filter((s) => s.nodes.length);
  $("processes").replaceChildren(head, el("tbody", {}, ...status.nodes.map((p) => {
    const cores = rate(only(p), "process_cpu_seconds_total");
    return el("tr", {}, ...[p.node + (p.address ? ` (${p.address})` : ""), p.part, p.version, ago(p.startedAt), isFinite(cores) ? cores.toFixed(2) : "–", bytes(of(p, "process_resident_memory_bytes"))].map((t) => el("td", {}, t)));
  })));
}

async function get(path) {
  const r = await fetch(path, { signal: AbortSignal.timeout(8000) });
  if (!r.ok) throw new Error(r.status === 400 ? (await r.text()).trim() : "the console answers " + r.status);
  return r.json();
}
async function refresh() {
  try {
    const status = await get("api/status");
    history.push(status);
    if (history.length > remembered) history.shift();
    drawFacts(status);
    const alarms = drawAlarms(status);
    drawNotifiers(status);
    drawPartitions(status);
    drawDelays();
    drawReasons(status);
    drawProcesses(status);
    $("state").textContent = alarms ? `${alarms} to look at` : "all is well";
    $("state").className = alarms ? "pill bad" : "pill";
  } catch (err) {
    $("state").textContent = "no answer: " + err.message;
    $("state").className = "pill bad";
  }
  if (searched) await search(false);
  setTimeout(refresh, history.length < 2 ? every / 2 : document.hidden ? 5 * every : every);
}

let searched = "";
async function search(loud) {
  try {
    const a = await get("api/account?name=" + encodeURIComponent(searched));
    const owner = a.answers.find((x) => x.owner), rows = [];
    let count = 0;
    for (const x of a.answers) {
      count += x.subscriptions.length + x.more;
      for (const s of x.subscriptions) rows.push(el("tr", {}, ...[x.node, s.address || "–", s.mailboxes ? s.mailboxes.join(", ") : "all mailboxes", s.waiting ? "slow" : "up to date"].map((t) => el("td", {}, t))));
      if (x.more) rows.push(el("tr", {}, el("td", {}, x.node), el("td", {}, `and ${x.more} more`), el("td"), el("td")));
    }
    const text = (owner ? `Partition ${owner.partition}, served by ${owner.node}, which sends its events to ${owner.notifiers.length ? owner.notifiers.join(", ") : "no notifier: nobody listens"}.` : "None of the bus nodes asked serves its partition.")
      + ` ${count} ${count === 1 ? "subscription" : "subscriptions"} on the notifiers asked.`;
    const head = el("thead", {}, el("tr", {}, ...["process", "client", "mailboxes", "state"].map((t) => el("th", {}, t))));
    $("account").replaceChildren(el("p", { id: "account-text" }, text), ...(rows.length ? [el("div", { class: "scroll" }, el("table", {}, head, el("tbody", {}, ...rows)))] : []));
  } catch (err) {
    if (loud) $("account").replaceChildren(el("p", {}, err.message));
  }
}
$("search").addEventListener("submit", (e) => {
  e.preventDefault();
  searched = new FormData(e.target).get("name").trim();
  search(true);
});
refresh();
