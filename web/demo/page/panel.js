// SPDX-License-Identifier: Apache-2.0
/** The bill of polling against the socket's, the two lanes of the last minute, and the list of what happened. */
import { humanBytes, humanTime, median, pollCost } from "./cost.js";
import { byId, h, mark, say, svg } from "./dom.js";
import { plural } from "./view.js";

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./meter.js").Meter} Meter */
/** @typedef {import("../../mailbell.js").MailEvent} MailEvent */

const INTERVALS = [1, 2, 5, 10, 20, 30, 60, 120, 300]; // s, by the slider's step
const LANE_MS = 60_000;
const LANE_WIDTH = 600;
const MAX_CHANGES = 20_000;
const MAX_LATENCIES = 1_000;
const MAX_ENTRIES = 100;
const KINDS = /** @type {Record<string, string>} */ ({
  MessageNew: "arrive", MessageAppend: "arrive", MessageExpunge: "gone", MessageExpire: "gone", MessageTrash: "flag",
  MessageRead: "flag", FlagsSet: "flag", FlagsClear: "flag", MailboxDelete: "gone",
});

export class Panel {
  /** @type {Api} */ #api;
  /** @type {Meter} */ #meter;
  #startedAt = performance.now();
  /** @type {number[]} */ #changes = []; // ms since the start
  /** @type {{ at: number, direction: string }[]} */ #frames = []; // of the last minute
  /** @type {number[]} */ #latencies = [];
  #interval = /** @type {HTMLInputElement} */ (byId("interval"));

  /** @param {Api} api @param {Meter} meter */
  constructor(api, meter) {
    this.#api = api;
    this.#meter = meter;
    meter.onframe = (direction) => this.#frames.push({ at: this.#elapsed(), direction });
    this.#interval.addEventListener("input", () => this.draw());
  }

  #elapsed() {
    return performance.now() - this.#startedAt;
  }

  /** Something changed: a poll after this moment has news. */
  changed() {
    this.#changes.push(this.#elapsed());
    if (this.#changes.length > MAX_CHANGES) this.#changes.shift();
  }

  /** From the event's timestamp to the painted frame. @param {number} ms */
  seen(ms) {
    this.#latencies.push(ms);
    if (this.#latencies.length > MAX_LATENCIES) this.#latencies.shift();
  }

  draw() {
    const seconds = INTERVALS[Number(this.#interval.value)];
    const elapsedMs = this.#elapsed();
    const changedBytes = total(this.#api.changed);
    const unchangedBytes = total(this.#api.unchanged);
    const cost = pollCost({ elapsedMs, intervalMs: seconds * 1_000, changes: this.#changes, changedBytes, unchangedBytes });
    const { details } = this.#api;
    const pushBytes = this.#meter.bytes + this.#meter.connectBytes + details.bytes;
    say("interval-text", seconds < 60 ? `${seconds} s` : `${seconds / 60} min`);
    mark(this.#interval, { "aria-valuetext": `every ${seconds} seconds` });
    say("cost-since", `${clock(elapsedMs)}, ${plural(this.#changes.length, "change")}`);
    say("poll-requests", cost.requests.toLocaleString("en"));
    say("poll-noun", cost.requests === 1 ? "poll" : "polls");
    say("poll-304", cost.notModified.toLocaleString("en"));
    say("poll-bytes", humanBytes(cost.bytes));
    say("poll-delay", humanTime(cost.delayMs));
    say("push-frames", this.#meter.frames.toLocaleString("en"));
    say("push-noun", this.#meter.frames === 1 ? "frame" : "frames");
    say("push-fetches", details.requests.toLocaleString("en"));
    say("push-bytes", humanBytes(pushBytes));
    say("latency", humanTime(median(this.#latencies)));
    say("latency-last", humanTime(this.#latencies.at(-1) ?? NaN));
    say("latency-max", humanTime(this.#latencies.length > 0 ? Math.max(...this.#latencies) : NaN));
    say("poll-units", `${humanBytes(changedBytes)} with news, ${humanBytes(unchangedBytes)} without`);
    say("connect-bytes", `${humanBytes(this.#meter.connectBytes)} for ${plural(this.#meter.connects, "connection")}`);
    say("verdict", verdict(cost, pushBytes, seconds));
    this.#drawLanes(elapsedMs, seconds * 1_000);
  }

  /** Above, the polls that would have been; below, the frames that were. @param {number} now @param {number} interval */
  #drawLanes(now, interval) {
    const x = (/** @type {number} */ at) => (LANE_WIDTH * (at - now + LANE_MS)) / LANE_MS;
    const marks = [svg("line", { class: "mid", x1: 0, x2: LANE_WIDTH, y1: 46, y2: 46 })];
    const first = Math.max(1, Math.ceil((now - LANE_MS) / interval));
    for (let poll = first; poll * interval <= now; poll++) {
      const news = this.#changes.some((at) => Math.floor(at / interval) + 1 === poll);
      marks.push(svg("rect", { class: news ? "poll-200" : "poll-304", x: x(poll * interval) - 2, y: news ? 8 : 18, width: 4, height: news ? 32 : 22, rx: 2 }));
    }
    this.#frames = this.#frames.filter(({ at }) => at > now - LANE_MS).slice(-500);
    for (const { at, direction } of this.#frames) {
      const out = direction === "out";
      marks.push(svg("rect", { class: "frame-tick", x: x(at) - 2, y: out ? 74 : 54, width: 4, height: out ? 10 : 30, rx: 2 }));
    }
    byId("lanes").replaceChildren(...marks);
  }

  /** @param {MailEvent} event @param {string} position @param {boolean} mine @returns {HTMLElement} the entry's place for its latency */
  enter(event, position, mine) {
    const took = h("span", { class: "took" });
    const entry = h("li", {
      class: "entry new", "data-testid": "activity-entry", "data-event": event.event, "data-kind": KINDS[event.event] ?? "",
      "data-mailbox": event.mailbox ?? "", "data-old-mailbox": event.oldMailbox ?? "", "data-uidset": event.uidset ?? "",
      "data-flags": (event.flagNames ?? []).join(" "), "data-position": position, "data-id": event.id,
    }, h("b", {}, event.event), took, h("span", { class: "what" }, sentence(event, mine)));
    const list = byId("activity");
    list.prepend(entry);
    setTimeout(() => entry.classList.remove("new"), 3_000);
    while (list.children.length > MAX_ENTRIES) list.lastElementChild?.remove();
    byId("activity-empty").hidden = true;
    return took;
  }

  /** A line about the connection. @param {string} name @param {string} text */
  note(name, text) {
    byId("activity").prepend(h("li", { class: "entry", "data-testid": "activity-note", "data-event": name }, h("b", {}, name), h("span", { class: "took" }), h("span", { class: "what" }, text)));
    byId("activity-empty").hidden = true;
  }
}

/** @param {{ request: number, response: number }} wire */
function total({ request, response }) {
  return request + response;
}

/** @param {number} ms */
function clock(ms) {
  const seconds = Math.floor(ms / 1_000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** What happened, in words. @param {MailEvent} event @param {boolean} mine */
function sentence({ mailbox, oldMailbox, uidset, flagNames = [], service, messages, unseen, truncated }, mine) {
  const parts = [];
  if (oldMailbox) parts.push(`${oldMailbox} → ${mailbox}`);
  else if (mailbox) parts.push(mailbox);
  if (uidset) parts.push(`UID ${uidset.length > 40 ? `${uidset.slice(0, 40)}…` : uidset}`);
  if (truncated) parts.push("too many messages to name");
  if (flagNames.length > 0) parts.push(flagNames.join(" "));
  if (messages !== undefined) parts.push(`${messages} messages${unseen === undefined ? "" : `, ${unseen} unread`}`);
  parts.push(mine ? "this window" : service ? `by ${service}` : "");
  return parts.filter(Boolean).join(" · ");
}

/** @param {import("./cost.js").PollCost} cost @param {number} pushBytes @param {number} seconds */
function verdict({ requests, notModified, bytes }, pushBytes, seconds) {
  const fleet = `A million such pages: ${plural(Math.round(1e6 / seconds), "request")} a second, whatever happens.`;
  if (requests < 3) return fleet;
  const share = Math.round((100 * notModified) / requests);
  const ratio = bytes / Math.max(1, pushBytes);
  const compared = ratio >= 1.1 ? `${ratio.toFixed(1)} times mailbell's bytes` : ratio <= 0.9 ? "still fewer bytes than mailbell, which has paid for its connection" : "about as many bytes as mailbell";
  return `${share} % of the polls would have been for nothing, with ${compared}. ${fleet}`;
}
