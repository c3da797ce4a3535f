// SPDX-License-Identifier: Apache-2.0
// When the page asks its server: with a clock, a client and a Roundcube that do nothing by themselves.
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { start } from "../mailbell/roundcube.js";
import { FakeClock, fakePage } from "../../../web/test/fakes.js";

const WINDOW = 500; // as in roundcube.js

/** @type {FakeClock} */ let clock;
/** @type {ReturnType<typeof fakePage>} */ let page;
const { BroadcastChannel, navigator } = globalThis;

beforeEach(() => {
  clock = new FakeClock();
  page = fakePage();
  Object.assign(globalThis.document, { hidden: false, documentElement: { dataset: {} } });
  globalThis.BroadcastChannel = undefined;
  Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
});

afterEach(() => {
  clock.restore();
  page.remove();
  globalThis.BroadcastChannel = BroadcastChannel;
  Object.defineProperty(globalThis, "navigator", { value: navigator, configurable: true });
});

/** A page with INBOX open and Work beside it, which hears events. Requests are answered by `answer`. */
function open() {
  const asked = [];
  const rung = [];
  let hear;
  class Mailbell extends EventTarget {
    state = "connected";
    subscribe(account, options, handlers) {
      hear = handlers.event;
      return { live: true };
    }
  }
  const rcmail = {
    env: {
      mailbox: "INBOX", mailboxes: { INBOX: {}, Work: {} }, exists: 1, refresh_interval: 60,
      mailbell: { account: "alice@example.com", ticket: null, slowRefresh: 3600, catchUp: 0, checkAll: false, foreign: [], notify: { basic: true, silent: [] } },
    },
    gui_objects: { mailboxlist: {} },
    message_list: { rows: { 1: {} } },
    busy: false,
    addEventListener() {},
    check_recent_params: () => ({ _list: 1, _uids: "1" }),
    is_multifolder_listing: () => false,
    set_env() {},
    set_message(uid, name, value) { rcmail.message_list.rows[uid][name] = value; },
    set_unread_count() {},
    start_keepalive() {},
    start_refresh() {},
    triggerEvent: (name) => rung.push(name),
    http_post(action, { _mailbell: folders }) {
      const request = { action, folders, fail: () => request, always(then) { request.answer = then; } };
      asked.push(request);
      return request;
    },
  };
  start(rcmail, { Mailbell, GatewayError: Error });
  return {
    asked, rung,
    /** A message comes, as Dovecot tells it. */
    arrive(uid, more = {}) {
      hear({ id: `${uid}`, event: "MessageNew", mailbox: "INBOX", uidset: `${uid}`, messages: uid, unseen: uid, ...more });
    },
    hear: (event) => hear(event),
    /** The list shows messages 1 to `last`, as it does after the page's own change or the answer of check-recent. */
    show(last) {
      for (let uid = 1; uid <= last; uid++) rcmail.message_list.rows[uid] ??= {};
      rcmail.env.exists = last;
    },
  };
}

test("several events within half a second are one refresh, half a second after the first", async () => {
  const p = open();
  p.arrive(2);
  await clock.advance(300);
  p.arrive(3);
  await clock.advance(WINDOW - 300 - 1);
  p.arrive(4);
  assert.equal(p.asked.length, 0);
  await clock.advance(1);
  assert.deepEqual(p.asked.map(({ action, folders }) => [action, folders]), [["check-recent", ["INBOX"]]]);
  p.show(4);
  p.asked[0].answer();
  await clock.advance(60_000);
  assert.equal(p.asked.length, 1);
  // One that comes after it is another.
  p.arrive(5);
  await clock.advance(WINDOW);
  assert.equal(p.asked.length, 2);
});

test("events of several folders and kinds are one refresh too", async () => {
  const p = open();
  p.arrive(2);
  await clock.advance(100);
  p.arrive(9, { mailbox: "Work", unseen: undefined });
  await clock.advance(100);
  p.hear({ id: "gone", event: "MessageExpunge", mailbox: "INBOX", uidset: "1", messages: 1, unseen: 1 });
  await clock.advance(60_000);
  assert.deepEqual(p.asked.map(({ folders }) => folders), [["Work", "INBOX"]]);
});

test("events that come while it is asked for are one more refresh, after the answer", async () => {
  const p = open();
  p.arrive(2);
  await clock.advance(WINDOW);
  p.arrive(3);
  await clock.advance(100);
  p.arrive(4);
  await clock.advance(5_000);
  assert.equal(p.asked.length, 1);
  p.show(2); // the server looked before they came
  p.asked[0].answer();
  await clock.advance(WINDOW);
  assert.equal(p.asked.length, 2);
});

test("what the page shows already is no refresh", async () => {
  const p = open();
  p.show(2);
  p.arrive(2, { event: "MessageAppend" });
  p.hear({ id: "flag", event: "FlagsSet", mailbox: "INBOX", uidset: "2", flagNames: ["\\Flagged"], messages: 2, unseen: 1 });
  await clock.advance(60_000);
  assert.equal(p.asked.length, 0);
});

test("several messages within half a second ring once", async () => {
  const p = open();
  p.arrive(2);
  p.arrive(3);
  await clock.advance(WINDOW - 1);
  p.arrive(4);
  assert.deepEqual(p.rung, ["plugin.newmail_notifier"]);
  await clock.advance(1);
  p.arrive(5);
  assert.equal(p.rung.length, 2);
});
