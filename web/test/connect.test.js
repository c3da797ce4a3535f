// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { GatewayError, Mailbell } from "../mailbell.js";
import { ALICE, TICKET, bench } from "./bench.js";
import { settle } from "./fakes.js";

const b = bench();

describe("connecting", () => {
  test("a first subscribe asks the gateway, opens the socket and subscribes", async () => {
    const { bell, calls, states } = b.make({ token: "jwt" });
    assert.equal(bell.state, "idle");
    bell.subscribe(ALICE, { mailboxes: ["INBOX"] });
    await b.open();
    assert.equal(calls[0].url, "/v1/connect");
    assert.equal(calls[0].init.headers.authorization, "Bearer jwt");
    assert.equal(calls[0].init.cache, "no-store");
    assert.equal(b.net.last().url, "ws://n1/v1/ws?ticket=t1");
    assert.equal(b.net.last().protocol, "mailbell.v1");
    assert.deepEqual(b.net.last().sent, [{ type: "subscribe", id: 1, account: ALICE, mailboxes: ["INBOX"] }]);
    assert.deepEqual(states, ["connecting", "connected"]);
  });

  test("subscriptions made before and after opening are all asked for", async () => {
    const { bell } = b.make();
    bell.subscribe(ALICE);
    bell.subscribe("bob@example.com", { since: "e1.3.4" });
    await b.open();
    bell.subscribe("carol@example.com");
    assert.deepEqual(b.net.last().sent.map((frame) => [frame.id, frame.account, frame.since]), [
      [1, ALICE, undefined], [2, "bob@example.com", "e1.3.4"], [3, "carol@example.com", undefined],
    ]);
  });

  test("every connect gets a fresh ticket", async () => {
    const { bell, calls } = b.make({ answers: [TICKET, { body: { url: "ws://n2/?ticket=t2" } }] });
    bell.subscribe(ALICE);
    await b.open();
    b.net.last().hangUp();
    assert.equal(bell.state, "waiting");
    await b.clock.advance(1_000);
    assert.equal(calls.length, 2);
    assert.equal(b.net.last().url, "ws://n2/?ticket=t2");
  });

  test("the token function is asked each time, and to renew after a 401", async () => {
    const asked = [];
    const { bell, calls } = b.make({
      answers: [{ status: 401 }, TICKET],
      token: async (need) => (asked.push(need.renew), `jwt${asked.length}`),
    });
    bell.subscribe(ALICE);
    await b.clock.advance(1_000);
    assert.deepEqual(asked, [false, true]);
    assert.equal(calls[1].init.headers.authorization, "Bearer jwt2");
    await b.open();
    assert.equal(bell.state, "connected");
  });

  test("a second 401 in a row stops, connect() tries again", async () => {
    const { bell, log } = b.make({ answers: [{ status: 401 }, { status: 401, body: { error: { code: "unauthorized", message: "token expired" } } }, TICKET], token: () => "old" });
    bell.subscribe(ALICE);
    await b.clock.advance(60_000);
    assert.equal(bell.state, "stopped");
    assert.deepEqual(log, [["refused", { code: "forbidden", message: "gateway: 401 token expired" }]]);
    assert.equal(b.clock.pending, 0);
    bell.connect();
    await b.open();
    assert.equal(bell.state, "connected");
  });

  for (const [name, options] of /** @type {[string, any][]} */ ([
    ["401 with a token that can't be renewed", { answers: [{ status: 401 }], token: "jwt" }],
    ["401 with a cookie", { answers: [{ status: 401 }] }],
    ["403", { answers: [{ status: 403 }], token: () => "jwt" }],
    ["a gateway function that says 403", { gateway: async () => { throw new GatewayError("no", { status: 403 }); } }],
  ])) {
    test(`${name} stops at once`, async () => {
      const { bell, names } = b.make(options);
      bell.subscribe(ALICE);
      await settle();
      assert.equal(bell.state, "stopped");
      assert.deepEqual(names(), ["refused"]);
      b.page.fire("online");
      await b.clock.advance(600_000);
      assert.equal(bell.state, "stopped");
    });
  }

  test("what stops the client is told to every subscription, with the gateway's reason", async () => {
    const { bell, log } = b.make({ answers: [{ status: 403, body: { error: { code: "tooMany", message: "too many accounts" } } }], token: () => "jwt" });
    const told = [];
    for (const account of [ALICE, "bob@example.com"]) bell.subscribe(account, {}, { refused: (info) => told.push(info) });
    await settle();
    const message = "gateway: 403 too many accounts";
    assert.deepEqual(told, [{ account: ALICE, code: "tooMany", message }, { account: "bob@example.com", code: "tooMany", message }]);
    assert.deepEqual(log, [["refused", { code: "tooMany", message }]]);
    assert.equal(bell.state, "stopped");
  });

  test("a gateway function gets the hint of a reconnect", async () => {
    const hints = [];
    const { bell } = b.make({ gateway: async ({ url }) => (hints.push(url), { url: "ws://n/?ticket=x" }) });
    bell.subscribe(ALICE);
    await b.open();
    b.net.last().say({ type: "reconnect", afterMs: 0, reason: "rebalance", url: "wss://n7.example/v1/ws" });
    await b.clock.advance(0);
    assert.deepEqual(hints, [undefined, "wss://n7.example/v1/ws"]);
  });

  test("the next gateway is tried when one fails", async () => {
    const { bell, calls } = b.make({ gateway: ["http://a/", "http://b/"], answers: [new TypeError("failed to fetch"), { status: 502 }, TICKET] });
    bell.subscribe(ALICE);
    await b.clock.advance(2_000);
    assert.deepEqual(calls.map((call) => call.url), ["http://a/", "http://b/", "http://a/"]);
  });

  test("a gateway or a handshake that hangs is given up after connectTimeout", async () => {
    const { bell, calls } = b.make({ answers: ["hang", TICKET] });
    bell.subscribe(ALICE);
    await b.clock.advance(9_999);
    assert.equal(bell.state, "connecting");
    await b.clock.advance(1);
    assert.equal(bell.state, "waiting");
    assert.equal(calls[0].init.signal.aborted, true);
    await b.clock.advance(500);
    assert.equal(bell.state, "connecting");
    const socket = b.net.last();
    await b.clock.advance(10_000);
    assert.equal(socket.closedWith, 1000);
    socket.onopen?.(); // a late handshake of a socket that was let go
    assert.equal(bell.state, "waiting");
  });

  test("bad options and a second subscription are the caller's errors", () => {
    assert.throws(() => new Mailbell(/** @type {any} */ ({})), /gateway is missing/);
    assert.throws(() => new Mailbell({ gateway: [] }), /gateway is missing/);
    const { bell } = b.make();
    bell.subscribe(ALICE);
    assert.throws(() => bell.subscribe(ALICE), /subscribed already/);
    bell.close();
    assert.throws(() => bell.subscribe(ALICE), /closed/);
  });
});

describe("back-off", () => {
  test("is full jitter under a doubling ceiling with a cap", async () => {
    const { bell } = b.make({ answers: [{ status: 502 }], random: 1 });
    const waits = [];
    bell.addEventListener("state", ({ detail }) => detail.state === "waiting" && waits.push(detail.retryInMs));
    bell.subscribe(ALICE);
    await b.clock.advance(150_000);
    assert.deepEqual(waits.slice(0, 7), [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
  });

  test("no jitter means no wait at the low end", async () => {
    const { bell, calls } = b.make({ answers: [{ status: 502 }, { status: 502 }, TICKET], random: 0 });
    bell.subscribe(ALICE);
    await b.clock.advance(0);
    assert.equal(calls.length, 3);
  });

  test("starts afresh only after a connection that lasted", async () => {
    const { bell } = b.make({ random: 1 });
    const waits = [];
    bell.addEventListener("state", ({ detail }) => detail.state === "waiting" && waits.push(detail.retryInMs));
    bell.subscribe(ALICE);
    for (const lasted of [0, 0, 0, 10_000]) {
      await b.open();
      await b.clock.advance(lasted);
      b.net.last().hangUp();
      await b.clock.advance(waits.at(-1));
    }
    assert.deepEqual(waits, [1_000, 2_000, 4_000, 1_000]);
  });

  for (const [name, answer] of /** @type {[string, any][]} */ ([
    ["Retry-After in seconds", { status: 503, headers: { "retry-after": "7" } }],
    ["Retry-After as a date", { status: 503, headers: { "retry-after": new Date(1_000_000 + 7_000).toUTCString() } }],
    ["retryAfterMs of an error", { status: 429, body: { retryAfterMs: 7_000 } }],
    ["retryAfterMs without a url", { body: { retryAfterMs: 7_000 } }],
    ["retryAfterMs longer than the ticket lives", { body: { url: "ws://n/?ticket=dead", expiresIn: 5, retryAfterMs: 7_000 } }],
  ])) {
    test(`${name} is a floor, and a wake does not come earlier`, async () => {
      const { bell, calls } = b.make({ answers: [answer, TICKET] });
      bell.subscribe(ALICE);
      await b.clock.advance(5_000);
      b.page.fire("online");
      await b.clock.advance(1_999);
      assert.equal(calls.length, 1);
      await b.clock.advance(1);
      assert.equal(calls.length, 2);
      assert.equal(b.net.last().url, "ws://n1/v1/ws?ticket=t1");
    });
  }

  test("retryAfterMs beside a ticket that lives long enough: the same ticket, then", async () => {
    const { bell, calls } = b.make({ answers: [{ body: { url: "ws://n/?ticket=later", expiresIn: 30, retryAfterMs: 4_000 } }] });
    bell.subscribe(ALICE);
    await b.clock.advance(3_999);
    assert.equal(b.net.sockets.length, 0);
    await b.clock.advance(1);
    assert.equal(b.net.last().url, "ws://n/?ticket=later");
    assert.equal(calls.length, 1);
  });
});

describe("losing the socket", () => {
  test("1008 for an expired token gets a new ticket", async () => {
    const { bell, calls } = b.make({ answers: [TICKET] });
    bell.subscribe(ALICE);
    await b.open();
    b.net.last().hangUp(1008, "token expired");
    await b.clock.advance(500);
    assert.equal(calls.length, 2);
    await b.open();
    assert.equal(bell.state, "connected");
  });

  test("1008 forbidden stops and tells", async () => {
    const { bell, log } = b.make();
    bell.subscribe(ALICE);
    await b.open();
    b.net.last().hangUp(1008, "origin not allowed");
    assert.equal(bell.state, "stopped");
    assert.deepEqual(log, [["refused", { code: "forbidden", message: "origin not allowed" }]]);
    assert.equal(b.clock.pending, 0);
  });

  for (const code of [1000, 1001, 1006, 1008, 1011, 1012, 1013]) {
    test(`close code ${code} is tried again`, async () => {
      const { bell } = b.make();
      bell.subscribe(ALICE);
      await b.open();
      b.net.last().hangUp(code, code === 1008 ? "too many connections" : "");
      assert.equal(bell.state, "waiting");
      await b.clock.advance(500);
      await b.open();
      assert.equal(bell.state, "connected");
    });
  }

  test("reconnect with a ticket in its url needs no gateway", async () => {
    const { bell, calls } = b.make();
    bell.subscribe(ALICE);
    await b.open();
    const old = b.net.last();
    old.say({ type: "reconnect", afterMs: 1_830, reason: "drain", url: "ws://n2/v1/ws?ticket=t9" });
    await b.clock.advance(1_829);
    assert.equal(old.closedWith, undefined);
    await b.clock.advance(1);
    assert.equal(old.closedWith, 1000);
    assert.equal(b.net.last().url, "ws://n2/v1/ws?ticket=t9");
    assert.equal(calls.length, 1);
  });

  test("a server that hangs up before the reconnect's moment is still not hurried", async () => {
    const { bell, calls } = b.make();
    bell.subscribe(ALICE);
    await b.open();
    b.net.last().say({ type: "reconnect", afterMs: 8_000, reason: "drain" });
    await b.clock.advance(1_000);
    b.net.last().hangUp(1001);
    b.page.show(true);
    await b.clock.advance(6_999);
    assert.equal(calls.length, 1);
    await b.clock.advance(1);
    assert.equal(calls.length, 2);
    assert.equal(bell.state, "connecting");
  });
});

describe("is it alive", () => {
  test("silence is asked about, an answer is enough", async () => {
    const { bell } = b.make({ random: 1 });
    await b.live({ bell });
    const socket = b.net.last();
    await b.clock.advance(240_000);
    assert.deepEqual(socket.sent.at(-1), { type: "ping", id: 2 });
    socket.say({ type: "pong", id: 2 });
    await b.clock.advance(60_000);
    assert.equal(bell.state, "connected");
    assert.equal(b.net.sockets.length, 1);
  });

  test("frames that come put the question off", async () => {
    const { bell } = b.make({ random: 1 });
    await b.live({ bell });
    await b.clock.advance(200_000);
    b.event("e1.0.11");
    await b.clock.advance(239_999);
    assert.equal(b.net.last().sent.some((frame) => frame.type === "ping"), false);
    await b.clock.advance(1);
    assert.equal(b.net.last().sent.at(-1).type, "ping");
  });

  test("no pong means dead", async () => {
    const { bell, states } = b.make({ random: 0 });
    await b.live({ bell });
    await b.clock.advance(192_000 + 8_000);
    assert.equal(b.net.sockets[0].closedWith, 1000);
    assert.deepEqual(states, ["connecting", "connected", "waiting", "connecting"]);
  });

  test("a page that is seen again asks, unless it just heard something", async () => {
    const { bell } = b.make();
    await b.live({ bell });
    const pings = () => b.net.last().sent.filter((frame) => frame.type === "ping").length;
    b.page.show(false);
    b.page.show(true);
    assert.equal(pings(), 0);
    await b.clock.advance(5_001);
    b.page.show(false);
    assert.equal(pings(), 0);
    b.page.show(true);
    b.page.show(true);
    assert.equal(pings(), 1);
    await b.clock.advance(8_000);
    assert.equal(bell.state, "waiting");
  });

  test("offline is a reason to ask, not to give up", async () => {
    const { bell } = b.make();
    await b.live({ bell });
    b.page.fire("offline");
    assert.equal(b.net.last().sent.at(-1).type, "ping");
    b.net.last().say({ type: "pong", id: 2 });
    await b.clock.advance(60_000);
    assert.equal(bell.state, "connected");
  });

  test("online and a visible page bring the retry forward, within a second", async () => {
    const { bell, calls } = b.make({ answers: [...Array(6).fill(new TypeError("no network")), TICKET], random: 0.9 });
    bell.subscribe(ALICE);
    await b.clock.advance(28_000);
    assert.equal(calls.length, 6);
    assert.equal(bell.state, "waiting");
    b.page.fire("online");
    await b.clock.advance(900);
    assert.equal(calls.length, 7);
  });
});

describe("the end", () => {
  test("close() leaves no timer, no listener and no socket, in any state", async () => {
    const starts = /** @type {Record<string, () => Promise<Mailbell>>} */ ({
      idle: async () => b.make().bell,
      connecting: async () => {
        const { bell } = b.make({ answers: ["hang"], poll: () => {} });
        bell.subscribe(ALICE);
        return bell;
      },
      waiting: async () => {
        const { bell } = b.make({ answers: [{ status: 500 }], poll: () => {} });
        bell.subscribe(ALICE);
        await settle();
        return bell;
      },
      connected: async () => {
        const made = b.make({ poll: () => {} });
        await b.live(made, {}, {}, "resync");
        b.page.fire("offline");
        b.net.last().say({ type: "reconnect", afterMs: 9_000, reason: "drain" });
        return made.bell;
      },
      stopped: async () => {
        const { bell } = b.make({ answers: [{ status: 403 }], poll: () => {} });
        bell.subscribe(ALICE);
        await b.clock.advance(90_000);
        return bell;
      },
    });
    for (const [state, start] of Object.entries(starts)) {
      const bell = await start();
      assert.equal(bell.state, state);
      bell.close();
      bell.close();
      assert.equal(bell.state, "closed");
      assert.equal(bell.polling, false);
      assert.equal(b.clock.pending, 0, `timers left after ${state}`);
      const sockets = b.net.sockets.length;
      b.page.fire("online");
      b.page.show(true);
      bell.connect();
      await b.clock.advance(600_000);
      assert.equal(b.net.sockets.length, sockets);
      assert.equal(b.clock.pending, 0);
    }
    assert.equal(b.net.last().closedWith, 1000);
  });

  test("without subscriptions it rests, and starts again with the next", async () => {
    const made = b.make();
    const sub = await b.live(made);
    sub.close();
    sub.close();
    assert.equal(made.bell.state, "idle");
    assert.equal(b.net.last().closedWith, 1000);
    assert.equal(b.clock.pending, 0);
    await b.live(made);
    assert.equal(made.bell.state, "connected");
  });
});
