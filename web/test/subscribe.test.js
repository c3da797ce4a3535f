// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { isPast } from "../mailbell.js";
import { ALICE, TICKET, bench } from "./bench.js";
import { settle } from "./fakes.js";

const b = bench();
const BOB = "bob@example.com";

describe("events", () => {
  test("reach handler, subscription and bell, in order", async () => {
    const heard = [];
    const made = b.make();
    const sub = await b.live(made, {}, { event: (event, info) => heard.push(["handler", event.id, info.position]) });
    sub.addEventListener("event", ({ detail }) => heard.push(["subscription", detail.event.id, detail.position]));
    b.event("e1.0.11");
    assert.deepEqual(heard, [["subscription", "id-e1.0.11", "e1.0.11"], ["handler", "id-e1.0.11", "e1.0.11"]]);
    assert.deepEqual(made.events(), ["id-e1.0.11"]);
    assert.equal(sub.position, "e1.0.11");
  });

  test("of another account, unknown frames and rubbish are passed over", async () => {
    const made = b.make();
    await b.live(made);
    b.net.last().say({ type: "event", account: BOB, position: "e1.0.11", event: { id: "x", account: BOB } });
    b.net.last().say({ type: "weather", account: ALICE });
    b.net.last().say("{not json");
    b.net.last().say({ type: "error", id: 99, code: "badRequest", message: "about nothing we asked" });
    assert.deepEqual(made.names(), ["subscribed"]);
    assert.equal(made.bell.state, "connected");
  });

  test("are handed on once: by position, and by id", async () => {
    const made = b.make();
    await b.live(made);
    b.event("e1.0.11");
    b.event("e1.0.11");
    b.event("e1.0.9", "older");
    b.event("e1.0.12", "id-e1.0.11"); // published twice
    b.event("e1.0.13");
    b.event("e2.0.1", "another epoch");
    assert.deepEqual(made.events(), ["id-e1.0.11", "id-e1.0.13", "another epoch"]);
  });

  test("remember the last 512 ids", async () => {
    const made = b.make();
    await b.live(made);
    for (let n = 11; n < 11 + 600; n++) b.event(`e1.0.${n}`, `id${n}`);
    b.event("e1.0.1000", "id610");
    b.event("e1.0.1001", "id11");
    assert.equal(made.events().length, 601);
  });

  test("a handler that throws costs neither socket nor position", async () => {
    const uncaught = [];
    const microtask = globalThis.queueMicrotask;
    globalThis.queueMicrotask = (then) => { try { then(); } catch (error) { uncaught.push(error.message); } };
    const made = b.make();
    const sub = await b.live(made, {}, { event: () => { throw new Error("page's mistake"); } });
    b.event("e1.0.11");
    b.event("e1.0.12");
    globalThis.queueMicrotask = microtask;
    assert.deepEqual(uncaught, ["page's mistake", "page's mistake"]);
    assert.equal(sub.position, "e1.0.12");
    assert.equal(made.bell.state, "connected");
  });

  test("the echo of one's own changes can be dropped; the position moves all the same", async () => {
    for (const dropEcho of ["mine", (/** @type {any} */ event) => event.session === "mine"]) {
      const made = b.make({ dropEcho });
      const sub = await b.live(made);
      b.event("e1.0.11", "own", { session: "mine" });
      b.event("e1.0.12", "other", { session: "theirs" });
      b.event("e1.0.13", "none");
      b.event("e1.0.14", "own2", { session: "mine" });
      assert.deepEqual(made.events(), ["other", "none"]);
      assert.equal(sub.position, "e1.0.14");
    }
  });
});

describe("catching up", () => {
  test("a reconnect resumes at the last position", async () => {
    const made = b.make();
    await b.live(made);
    b.event("e1.0.11");
    b.net.last().hangUp();
    await b.clock.advance(500);
    await b.open();
    assert.equal(b.net.last().sent[0].since, "e1.0.11");
    b.answer("current", "e1.0.40");
    b.net.last().hangUp();
    await b.clock.advance(1_000);
    await b.open();
    assert.equal(b.net.last().sent[0].since, "e1.0.40");
  });

  test("replayed events follow the position that was asked with, and are marked", async () => {
    const made = b.make();
    const sub = await b.live(made, { since: "e1.0.5" }, {}, "replay", "e1.0.5");
    assert.equal(sub.position, "e1.0.5");
    const at = (/** @type {number} */ ms) => ({ timestamp: new Date(Date.now() + ms).toISOString() });
    b.event("e1.0.7", "a", at(-60_000));
    b.event("e1.0.20", "b", at(-1_000));
    b.event("e1.0.21", "c", at(5));
    b.event("e1.0.22", "d", at(-500));
    assert.deepEqual(made.log.filter(([name]) => name === "event").map(([, d]) => [d.position, d.replayed]),
      [["e1.0.7", true], ["e1.0.20", true], ["e1.0.21", false], ["e1.0.22", false]]);
    assert.equal(made.names().includes("refetch"), false);
  });

  test("a replay that is cut goes on where it was cut", async () => {
    const made = b.make();
    await b.live(made, { since: "e1.0.5" }, {}, "replay", "e1.0.5");
    b.event("e1.0.7");
    b.net.last().hangUp();
    await b.clock.advance(500);
    await b.open();
    assert.equal(b.net.last().sent[0].since, "e1.0.7");
  });

  for (const catchUp of ["fresh", "resync"]) {
    test(`${catchUp} asks the page to refetch, after the server's delay`, async () => {
      const calls = [];
      const made = b.make();
      made.bell.subscribe(ALICE, { since: "e9.0.999" }, { refetch: (info) => calls.push(info) });
      await b.open();
      b.answer(catchUp, "e1.0.10", { afterMs: 2_500 });
      await b.clock.advance(2_499);
      assert.deepEqual(calls, []);
      await b.clock.advance(1);
      assert.deepEqual(calls, [{ account: ALICE, reason: catchUp, afterMs: 2_500, position: "e1.0.10" }]);
      await b.clock.advance(60_000);
      assert.equal(calls.length, 1);
    });
  }

  test("a since from the future is led back by resync", async () => {
    const made = b.make();
    const sub = await b.live(made, { since: "e1.0.500" }, {}, "resync", "e1.0.10");
    assert.equal(sub.position, "e1.0.10");
    b.event("e1.0.11");
    assert.deepEqual(made.events(), ["id-e1.0.11"]);
  });

  test("missed moves the position on and asks once for a burst of them", async () => {
    const calls = [];
    const made = b.make();
    const sub = await b.live(made, {}, { refetch: ({ reason }) => calls.push(reason) });
    b.net.last().say({ type: "missed", account: ALICE, position: "e1.0.50", reason: "slow", afterMs: 1_000 });
    b.net.last().say({ type: "missed", account: ALICE, position: "e1.0.60", reason: "window" });
    assert.equal(sub.position, "e1.0.60");
    await b.clock.advance(10_000);
    assert.deepEqual(calls, ["window"]);
  });

  test("a gap while the page refetches means another refetch", async () => {
    const running = [];
    const made = b.make();
    await b.live(made, {}, { refetch: () => new Promise((resolve) => running.push(resolve)) });
    b.net.last().say({ type: "missed", account: ALICE, position: "e1.0.50", reason: "slow" });
    await b.clock.advance(0);
    b.net.last().say({ type: "missed", account: ALICE, position: "e1.0.60", reason: "slow", afterMs: 300 });
    await b.clock.advance(1_000);
    assert.equal(running.length, 1);
    running[0]();
    await b.clock.advance(299);
    assert.equal(running.length, 1);
    await b.clock.advance(1);
    assert.equal(running.length, 2);
    running[1]();
    await b.clock.advance(10_000);
    assert.equal(running.length, 2);
  });

  test("a refetch that fails is called again, also while the socket is down", async () => {
    let calls = 0;
    const made = b.make({ answers: [TICKET, { status: 500 }] });
    await b.live(made, {}, { refetch: async () => { if (++calls < 3) throw new Error("store is down"); } }, "resync");
    await b.clock.advance(0);
    assert.equal(calls, 1);
    b.net.last().hangUp();
    await b.clock.advance(1_500); // base + half of base
    assert.equal(calls, 2);
    await b.clock.advance(2_000); // base + half of twice base
    assert.equal(calls, 3);
    assert.equal(made.names().filter((name) => name === "refetcherror").length, 2);
  });
});

describe("positions that outlive the page", () => {
  const storage = () => {
    const kept = new Map();
    return { kept, load: (/** @type {string} */ account) => kept.get(account) ?? null, save: (account, position) => void kept.set(account, position) };
  };

  test("are loaded, saved, and held back while a refetch is due", async () => {
    const store = storage();
    store.kept.set(ALICE, "e1.0.3");
    let finish = () => {};
    const made = b.make({ store });
    made.bell.subscribe(ALICE, {}, { refetch: () => new Promise((resolve) => { finish = () => resolve(undefined); }) });
    await b.open();
    assert.equal(b.net.last().sent[0].since, "e1.0.3");
    b.answer("current", "e1.0.10");
    assert.equal(store.kept.get(ALICE), "e1.0.10");
    b.net.last().say({ type: "missed", account: ALICE, position: "e1.0.50", reason: "slow", afterMs: 10 });
    b.event("e1.0.51");
    await b.clock.advance(10);
    assert.equal(store.kept.get(ALICE), "e1.0.10");
    finish();
    await settle();
    assert.equal(store.kept.get(ALICE), "e1.0.51");
  });

  test("since wins over the store; sessionStorage is the short form", async () => {
    const items = new Map([[`mailbell:${ALICE}`, "e1.0.8"]]);
    globalThis.sessionStorage = /** @type {any} */ ({ getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value) });
    const made = b.make({ store: "session" });
    made.bell.subscribe(ALICE);
    made.bell.subscribe(BOB, { since: "e1.1.1" });
    await b.open();
    assert.deepEqual(b.net.last().sent.map((frame) => frame.since), ["e1.0.8", "e1.1.1"]);
    b.event("e1.0.9");
    assert.equal(items.get(`mailbell:${ALICE}`), "e1.0.9");
    delete globalThis.sessionStorage;
    assert.equal(b.make({ store: "session" }).bell.subscribe(ALICE).position, undefined);
  });
});

describe("refused subscriptions", () => {
  for (const code of ["forbidden", "badRequest"]) {
    test(`${code} ends that subscription and tells, the others go on`, async () => {
      const told = [];
      const made = b.make();
      made.bell.subscribe(ALICE);
      const sub = made.bell.subscribe(BOB, {}, { refused: (info) => told.push(info) });
      await b.open();
      b.net.last().say({ type: "subscribed", id: 1, account: ALICE, position: "e1.0.1", catchUp: "current" });
      b.net.last().say({ type: "error", id: 2, code, message: "not yours" });
      assert.deepEqual(told, [{ account: BOB, code, message: "not yours" }]);
      assert.equal(sub.live, false);
      assert.equal(made.bell.state, "connected");
      b.net.last().hangUp();
      await b.clock.advance(500);
      await b.open();
      assert.deepEqual(b.net.last().sent.map((frame) => frame.account), [ALICE]);
    });
  }

  for (const code of ["unavailable", "tooMany"]) {
    test(`${code} is asked again on the same socket`, async () => {
      const made = b.make();
      const sub = made.bell.subscribe(ALICE);
      await b.open();
      b.net.last().say({ type: "error", id: 1, code, message: "later" });
      await b.clock.advance(1_499);
      assert.equal(b.net.last().sent.length, 1);
      await b.clock.advance(1);
      assert.deepEqual(b.net.last().sent.map((frame) => frame.id), [1, 2]);
      b.answer("fresh", "e1.0.1");
      assert.equal(sub.live, true);
      assert.equal(b.net.sockets.length, 1);
    });
  }

  test("a subscribe that nobody answers costs the server its socket", async () => {
    const made = b.make();
    made.bell.subscribe(ALICE);
    await b.open();
    await b.clock.advance(20_000);
    assert.equal(b.net.sockets[0].closedWith, 1000);
    assert.equal(made.bell.state, "waiting");
  });

  test("unsubscribe tells the server; its late events are nobody's", async () => {
    const made = b.make();
    const sub = await b.live(made);
    made.bell.subscribe(BOB);
    sub.close();
    assert.deepEqual(b.net.last().sent.at(-1), { type: "unsubscribe", id: 3, account: ALICE });
    b.event("e1.0.11");
    assert.deepEqual(made.events(), []);
  });
});

describe("polling meanwhile", () => {
  const poller = () => {
    const polls = [];
    return { polls, poll: async ({ signal }) => void polls.push(signal) };
  };

  test("starts after pollAfter without push, and ends when push is back", async () => {
    const { polls, poll } = poller();
    const made = b.make({ answers: [{ status: 502 }], poll, pollInterval: 60_000 });
    made.bell.subscribe(ALICE);
    await b.clock.advance(4_999);
    assert.equal(polls.length, 0);
    await b.clock.advance(1);
    assert.equal(polls.length, 1);
    assert.equal(made.bell.polling, true);
    await b.clock.advance(120_000);
    assert.equal(polls.length, 3);
  });

  test("a short loss polls nothing", async () => {
    const { polls, poll } = poller();
    const made = b.make({ poll });
    await b.live(made);
    b.net.last().hangUp();
    await b.clock.advance(500);
    await b.open();
    b.answer("current", "e1.0.10");
    await b.clock.advance(60_000);
    assert.equal(polls.length, 0);
  });

  test("returns to push: the poll under way is told, nothing follows, the position resumes", async () => {
    const { polls, poll } = poller();
    const made = b.make({ answers: [TICKET, { status: 502 }, { status: 502 }, { status: 502 }, { status: 502 }, TICKET], poll });
    await b.live(made);
    b.event("e1.0.11");
    b.net.last().hangUp();
    await b.clock.advance(16_000);
    assert.equal(polls.length, 1);
    await b.open();
    assert.equal(made.bell.polling, true, "an open socket alone is not push");
    assert.equal(b.net.last().sent[0].since, "e1.0.11");
    b.answer("replay", "e1.0.15");
    assert.equal(made.bell.polling, false);
    assert.equal(polls[0].aborted, true);
    await b.clock.advance(240_000 * 0.8);
    assert.equal(polls.length, 1);
    assert.ok(made.states.includes("waiting+polling"));
    assert.equal(made.states.at(-1), "connected");
  });

  test("a poll that fails or takes its time is followed by just one other", async () => {
    let finish;
    const polls = [];
    const made = b.make({ answers: [{ status: 502 }], poll: () => new Promise((resolve, reject) => { polls.push(1); finish = reject; }) });
    made.bell.subscribe(ALICE);
    await b.clock.advance(200_000);
    assert.equal(polls.length, 1);
    finish(new Error("store is down"));
    await b.clock.advance(60_000);
    assert.equal(polls.length, 2);
    assert.ok(made.names().includes("pollerror"));
  });

  test("covers what push does not: the stopped, the refused, the unavailable", async () => {
    for (const code of ["stopped", "forbidden", "unavailable"]) {
      const { polls, poll } = poller();
      const made = b.make({ answers: [code === "stopped" ? { status: 403 } : TICKET], poll });
      made.bell.subscribe(ALICE);
      await settle();
      if (code !== "stopped") {
        b.net.last().accept();
        b.net.last().say({ type: "error", id: 1, code, message: "" });
      }
      await b.clock.advance(5_000);
      assert.equal(polls.length, 1, code);
      made.bell.close();
    }
  });
});

test("isPast compares within an epoch and partition, with all 63 bits", () => {
  const cases = /** @type {[string, string | undefined, boolean][]} */ ([
    ["e1.0.1", undefined, false], ["e1.0.1", "e1.0.1", true], ["e1.0.1", "e1.0.2", true], ["e1.0.2", "e1.0.1", false],
    ["e1.0.9", "e1.0.10", true], ["e1.1.1", "e1.0.2", false], ["e2.0.1", "e1.0.2", false], ["rubbish", "e1.0.2", false],
    ["e1.0.9223372036854775806", "e1.0.9223372036854775807", true], ["e1.0.9223372036854775807", "e1.0.9223372036854775806", false],
  ]);
  for (const [a, before, want] of cases) assert.equal(isPast(a, before), want, `${a} and ${before}`);
});
