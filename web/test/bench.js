// SPDX-License-Identifier: Apache-2.0
// A workbench: a Mailbell on fakes, what it said, and short words for what tests do again and again.
import { afterEach, beforeEach } from "node:test";
import { Mailbell } from "../mailbell.js";
import { FakeClock, fakeFetch, fakePage, fakeSockets, settle } from "./fakes.js";

export const ALICE = "alice@example.com";
export const TICKET = { body: { url: "ws://n1/v1/ws?ticket=t1", expiresIn: 30, retryAfterMs: 0 } };

/** Registers the set-up and the tear-down; the value's fields are fresh in each test. */
export function bench() {
  const self = {
    /** @type {FakeClock} */ clock: undefined,
    /** @type {ReturnType<typeof fakePage>} */ page: undefined,
    /** @type {ReturnType<typeof fakeSockets>} */ net: undefined,
    bells: [],

    /** A bell whose random() is `random`; answers are the gateway's. */
    make({ answers = [TICKET], random = 0.5, ...options } = {}) {
      const { fetch, calls } = fakeFetch(...answers);
      const bell = new Mailbell({ gateway: "/v1/connect", fetch, WebSocket: self.net.FakeWebSocket, random: () => random, ...options });
      const log = [];
      for (const name of ["event", "refetch", "subscribed", "refused", "refetcherror", "pollerror"]) {
        bell.addEventListener(name, ({ detail }) => log.push([name, detail]));
      }
      const states = [];
      bell.addEventListener("state", ({ detail }) => states.push(detail.polling ? `${detail.state}+polling` : detail.state));
      self.bells.push(bell);
      return { bell, calls, log, states, names: () => log.map(([name]) => name), events: () => log.filter(([name]) => name === "event").map(([, d]) => d.event.id) };
    },

    /** Until the socket is open and the subscribes are out. */
    async open() {
      await settle();
      self.net.last().accept();
    },

    /** Until alice's subscription is answered. */
    async live(made, options = {}, handlers = {}, catchUp = "current", position = "e1.0.10") {
      const sub = made.bell.subscribe(ALICE, options, handlers);
      await self.open();
      self.answer(catchUp, position);
      return sub;
    },

    /** The server's answer to the last subscribe. */
    answer(catchUp, position, extra = {}) {
      const { id, account } = self.net.last().sent.findLast((frame) => frame.type === "subscribe");
      self.net.last().say({ type: "subscribed", id, account, position, catchUp, ...extra });
    },

    event(position, id = `id-${position}`, extra = {}) {
      self.net.last().say({ type: "event", account: ALICE, position, event: { id, event: "MessageNew", account: ALICE, mailbox: "INBOX", ...extra } });
    },
  };
  beforeEach(() => {
    self.clock = new FakeClock();
    self.page = fakePage();
    self.net = fakeSockets();
    self.bells = [];
  });
  afterEach(() => {
    for (const bell of self.bells) bell.close();
    const left = self.clock.pending;
    self.page.remove();
    self.clock.restore();
    if (left !== 0) throw new Error(`${left} timers are left after close()`);
  });
  return self;
}
