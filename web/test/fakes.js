// SPDX-License-Identifier: Apache-2.0
// A clock, a WebSocket, a page and a server that do nothing by themselves. No test waits for real time.

/** Replaces the global timers and Date.now; `restore` puts them back. */
export class FakeClock {
  now = 1_000_000;
  #timers = new Map();
  #next = 1;
  #real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout, dateNow: Date.now };

  constructor() {
    globalThis.setTimeout = /** @type {any} */ ((then, ms = 0) => {
      const id = this.#next++;
      this.#timers.set(id, { at: this.now + Math.max(0, ms), id, then });
      return id;
    });
    globalThis.clearTimeout = (id) => void this.#timers.delete(id);
    Date.now = () => this.now;
  }

  restore() {
    globalThis.setTimeout = this.#real.setTimeout;
    globalThis.clearTimeout = this.#real.clearTimeout;
    Date.now = this.#real.dateNow;
  }

  /** How many timers are set. */
  get pending() {
    return this.#timers.size;
  }

  /** Moves on by ms, runs what falls due in its order, and lets promises settle after each. */
  async advance(ms) {
    const end = this.now + ms;
    await settle();
    for (;;) {
      const due = [...this.#timers.values()].filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at || a.id - b.id)[0];
      if (!due) break;
      this.#timers.delete(due.id);
      this.now = due.at;
      due.then();
      await settle();
    }
    this.now = end;
  }
}

/** Lets every promise that can settle do so. */
export function settle() {
  return new Promise((resolve) => setImmediate(resolve));
}

/** The sockets that a test's Mailbell opened, newest last. */
export function fakeSockets() {
  const sockets = [];
  class FakeWebSocket {
    onopen = null;
    onmessage = null;
    onclose = null;
    sent = [];
    closedWith = undefined;

    constructor(url, protocol) {
      this.url = url;
      this.protocol = protocol;
      sockets.push(this);
    }

    send(text) {
      this.sent.push(JSON.parse(text));
    }

    close(code) {
      this.closedWith = code;
    }

    // What the server does.
    accept() {
      this.onopen?.();
    }

    say(frame) {
      this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
    }

    hangUp(code = 1006, reason = "") {
      this.onclose?.({ code, reason });
    }
  }
  return { sockets, FakeWebSocket, last: () => sockets.at(-1) };
}

/** A gateway behind fetch: answers in turn, the last one for ever. */
export function fakeFetch(...answers) {
  const calls = [];
  const fetch = async (url, init) => {
    calls.push({ url, init });
    const answer = answers[Math.min(calls.length, answers.length) - 1];
    if (answer instanceof Error) throw answer;
    if (answer === "hang") {
      return new Promise((_, reject) => init.signal.addEventListener("abort", () => reject(new Error("aborted"))));
    }
    const { status = 200, headers = {}, body = {} } = answer;
    return new Response(JSON.stringify(body), { status, headers });
  };
  return { fetch, calls };
}

/** The page's global events: online, offline, visibilitychange. Counts listeners. */
export function fakePage() {
  const window = new EventTarget();
  const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  globalThis.addEventListener = window.addEventListener.bind(window);
  globalThis.document = /** @type {any} */ (document);
  return {
    fire: (name) => window.dispatchEvent(new Event(name)),
    show(visible) {
      document.visibilityState = visible ? "visible" : "hidden";
      document.dispatchEvent(new Event("visibilitychange"));
    },
    remove() {
      delete globalThis.addEventListener;
      delete globalThis.document;
    },
  };
}
