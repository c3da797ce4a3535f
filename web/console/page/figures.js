/* SPDX-License-Identifier: Apache-2.0 */
// What the console computes from the answers of its API. No DOM.

const key = (p) => [p.node, p.part, p.startedAt].join("\n");
const milliseconds = (a, b) => new Date(b) - new Date(a);

/** values adds up a process's metrics by a name that name(metric) gives them; metrics without one are left out. */
export function values(process, name) {
  const all = new Map();
  for (const m of process.metrics) {
    const n = name(m);
    if (n) all.set(n, (all.get(n) || 0) + m.value);
  }
  return all;
}

/** sum adds a metric over all processes of an answer. */
export const sum = (status, name) => status.nodes.reduce((n, p) => n + (values(p, (m) => m.name).get(name) || 0), 0);

/**
 * growth is how far counters grew over a list of answers, oldest first: read(process) returns a Map of them. Each run of a process is
 * compared with itself, so that one that is silent for a moment or begins anew neither takes back nor adds what it counted before.
 */
export function growth(answers, read) {
  const first = new Map(), last = new Map(), total = new Map();
  for (const status of answers) for (const p of status.nodes) {
    const k = key(p), now = read(p);
    const young = milliseconds(p.startedAt, p.at) < milliseconds(answers[0].at, status.at); // began since the first answer: counts from 0
    if (!first.has(k)) first.set(k, young ? new Map() : now);
    last.set(k, now);
  }
  for (const [k, now] of last) for (const [name, v] of now) {
    total.set(name, (total.get(name) || 0) + Math.max(0, v - (first.get(k).get(name) || 0)));
  }
  return total;
}

/** rate is a counter's growth a second over a list of answers; NaN for fewer than two. */
export function rate(answers, name) {
  if (answers.length < 2) return NaN;
  const grown = growth(answers, (p) => values(p, (m) => m.name === name && name));
  return (grown.get(name) || 0) / (milliseconds(answers[0].at, answers[answers.length - 1].at) / 1000);
}

/** rates are those from each answer to the next. */
export const rates = (answers, name) => answers.slice(1).map((b, i) => rate([answers[i], b], name));

/** delays returns a histogram's growth over a list of answers: [[upper bound, count], …], the last without a bound. */
export function delays(answers, name) {
  const read = (p) => {
    const all = new Map();
    for (const m of p.metrics) {
      if (m.name !== name) continue;
      for (const [le, n] of m.buckets || []) all.set(le, (all.get(le) || 0) + n);
      all.set(Infinity, (all.get(Infinity) || 0) + m.value);
    }
    return all;
  };
  let below = 0;
  return [...growth(answers, read)].sort((a, b) => a[0] - b[0]).map(([le, n]) => {
    const own = Math.max(0, n - below);
    below = Math.max(below, n);
    return [le, own];
  });
}

const ranks = ["owned", "standin", "reading", "leaving"]; // who serves comes first

/** partitionsOf returns each partition once, as the node has it that serves it, if one does. */
export function partitionsOf(status) {
  const by = new Map();
  for (const p of status.nodes) for (const x of p.bus?.partitions || []) {
    const known = by.get(x.partition);
    if (!known || ranks.indexOf(x.state) < ranks.indexOf(known.state)) by.set(x.partition, { ...x, node: p.node });
  }
  return by;
}

export const served = (x) => x?.state === "owned" || x?.state === "standin";
