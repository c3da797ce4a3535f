// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { delays, partitionsOf, rate, rates, sum } from "../console/page/figures.js";

const SENT = "mailbell_notifier_events_sent_total";
const at = (s) => new Date(Date.UTC(2026, 0, 1, 0, 0, s)).toISOString();
const node = (name, second, value, began = -3600) => ({ node: name, part: "notifier", startedAt: at(began), at: at(second), metrics: [{ name: SENT, value }] });
const answer = (second, ...nodes) => ({ at: at(second), nodes, silent: [] });

describe("rates of the console", () => {
  test("grow process by process", () => {
    assert.equal(rate([answer(0, node("n1", 0, 100), node("n2", 0, 5000)), answer(10, node("n1", 10, 120), node("n2", 10, 5080))], SENT), 10);
    assert.ok(isNaN(rate([answer(0, node("n1", 0, 100))], SENT)));
  });
  test("do not jump when a process is silent for a moment", () => {
    const list = [answer(0, node("n1", 0, 100), node("n2", 0, 5000)), answer(2, node("n1", 2, 104)), answer(4, node("n1", 4, 108), node("n2", 4, 5012))];
    assert.deepEqual(rates(list, SENT), [2, 2]);
    assert.equal(rate(list, SENT), 5);
  });
  test("do not fall when a process begins anew, and have what it counted since", () => {
    const list = [answer(0, node("n1", 0, 100), node("n2", 0, 5000)), answer(2, node("n1", 2, 102), node("n2", 2, 5004)), answer(4, node("n1", 4, 104), node("n2", 4, 6, 3))];
    assert.deepEqual(rates(list, SENT), [3, 4]);
    assert.equal(rate(list, SENT), 3.5);
  });
  test("of a histogram are those of its buckets", () => {
    const histogram = (second, buckets, value) => ({ ...node("n1", second, 0), metrics: [{ name: "h", value, buckets }] });
    assert.deepEqual(delays([answer(0, histogram(0, [[0.001, 10], [0.01, 12]], 12)), answer(2, histogram(2, [[0.001, 14], [0.01, 17]], 18))], "h"), [[0.001, 4], [0.01, 1], [Infinity, 1]]);
  });
  test("sums are over all processes", () => assert.equal(sum(answer(0, node("n1", 0, 1), node("n2", 0, 2)), SENT), 3));
});

test("a partition is with the node that serves it", () => {
  const bus = (name, ...partitions) => ({ node: name, part: "bus", startedAt: at(0), at: at(0), metrics: [], bus: { total: 3, notifiers: [], partitions } });
  const by = partitionsOf(answer(0,
    bus("b1", { partition: 0, state: "owned" }, { partition: 1, state: "leaving" }, { partition: 2, state: "reading" }),
    bus("b2", { partition: 0, state: "standin" }, { partition: 1, state: "owned" }, { partition: 2, state: "standin" })));
  assert.deepEqual([...by].map(([i, x]) => [i, x.node, x.state]), [[0, "b1", "owned"], [1, "b2", "owned"], [2, "b2", "standin"]]);
});
