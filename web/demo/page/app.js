// SPDX-License-Identifier: Apache-2.0
/**
 * The demo page: signs in, loads the state once, and from then on draws what the socket says.
 *
 *     socket ─► Mailbell ─► model.apply ─► one drawing per animation frame
 *     a person ─► api.act ─► store ─► log ─► socket (this window's too)
 */
import { Mailbell } from "/mailbell.js";
import { Api, ApiError } from "./api.js";
import { byId, say } from "./dom.js";
import { Meter } from "./meter.js";
import { Model } from "./model.js";
import { Panel } from "./panel.js";
import { View } from "./view.js";

/** @typedef {import("../../mailbell.js").MailEvent} MailEvent */
/** @typedef {import("../../mailbell.js").StateInfo} StateInfo */

const POLL_MS = 5_000; // while the socket is down
const POLL_AFTER_MS = 3_000;
const SIGN_IN_AGAIN_MS = 2_000;
const ACCOUNT_KEY = "mailbell-demo:account";
const THEME_KEY = "mailbell-demo:theme";
const THEMES = /** @type {Record<string, string>} */ ({ system: "as the system has them", light: "light", dark: "dark" });
const STATES = /** @type {Record<string, string>} */ ({
  connected: "connected", connecting: "connecting", reconnecting: "reconnecting", polling: "polling meanwhile",
  stopped: "not allowed", closed: "closed",
});

class App {
  model = new Model();
  meter = new Meter();
  /** @type {Api} */ api;
  /** @type {View} */ view;
  /** @type {Panel} */ panel;
  /** @type {Mailbell | undefined} */ bell;
  #drawing = false;
  #wasConnected = false;
  /** @type {{ at: number, place: HTMLElement }[]} */ #waiting = []; // for the painted frame
  /** @type {Promise<void> | null} */ #refreshing = null;

  /** @param {string} account */
  constructor(account) {
    this.api = new Api(account);
    this.panel = new Panel(this.api, this.meter);
    this.view = new View(this.model, {
      openFolder: (name) => this.#openFolder(name),
      act: (action) => this.#act(action),
      askText: (uid) => this.#details(this.model.open, String(uid), false),
    });
    this.#buttons();
  }

  async start() {
    say("account-text", this.api.account);
    await this.#signIn();
    await this.refresh();
    this.bell = new Mailbell({
      gateway: this.api.gateway,
      token: ({ renew }) => this.api.token(renew),
      fetch: this.meter.fetch(),
      WebSocket: this.meter.socketClass(),
      poll: () => this.refresh(),
      pollInterval: POLL_MS,
      pollAfter: POLL_AFTER_MS,
    });
    this.bell.addEventListener("state", (event) => this.#drawState(/** @type {CustomEvent<StateInfo>} */ (event).detail));
    this.bell.subscribe(this.api.account, {}, {
      event: (event, { position, replayed }) => this.#event(event, position, replayed),
      refetch: () => this.refresh(),
      // The demo's store forgets everything when it restarts and the log does not: ask, mostly for a 304.
      subscribed: ({ catchUp }) => void (catchUp === "current" || catchUp === "replay" ? this.refresh().catch(complain) : undefined),
      refused: ({ message }) => toast(`Refused: ${message}`),
    });
    setInterval(() => this.panel.draw(), 1_000);
  }

  /** A page that was opened before its server is up waits for it. */
  async #signIn() {
    for (;;) {
      try {
        return await this.api.login();
      } catch (error) {
        if (error instanceof ApiError) throw error;
        toast("The server does not answer. Trying again.");
        await new Promise((resolve) => setTimeout(resolve, SIGN_IN_AGAIN_MS));
      }
    }
  }

  /** Asks the store for the whole, until no event came in between. */
  refresh() {
    this.#refreshing ??= this.#refresh().finally(() => { this.#refreshing = null; });
    return this.#refreshing;
  }

  async #refresh() {
    for (let tries = 0; tries < 5; tries++) {
      const { version, open } = this.model;
      const state = await this.api.state(open);
      if (this.model.version !== version || this.model.open !== open) {
        this.api.forget(); // events overtook the answer
        continue;
      }
      if (state) this.model.load(state);
      this.#draw();
      return;
    }
    throw new Error("the mailbox changes faster than it can be read");
  }

  /** @param {MailEvent} event @param {string} position @param {boolean} replayed */
  #event(event, position, replayed) {
    const effect = this.model.apply(event);
    this.panel.changed();
    const place = this.panel.enter(event, position, event.session === this.api.window);
    // A timestamp without a fraction is a whole second off at worst, and no measure.
    const at = replayed || !/\.\d/.test(event.timestamp) ? NaN : Date.parse(event.timestamp);
    this.#waiting.push({ at, place });
    if (effect.arrived.length > 0) {
      this.view.arrived(effect.arrived);
      document.body.classList.add("ringing");
    }
    if (effect.refetch) {
      this.api.forget();
      this.refresh().catch(complain);
    } else if (effect.fetch) {
      this.#details(this.model.open, effect.fetch, true);
    }
    this.#draw();
  }

  /** Subject and text of messages. @param {string} mailbox @param {string} uids @param {boolean} told by an event */
  async #details(mailbox, uids, told) {
    try {
      const { uidValidity, messages } = await this.api.messages(mailbox, uids, told);
      if (!this.model.fill(mailbox, uidValidity, messages)) return;
      this.view.filled(messages);
      this.#draw();
    } catch (error) {
      complain(error);
    }
  }

  /** One drawing per animation frame; a hidden page draws at once, for its title. */
  #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    const draw = () => {
      this.#drawing = false;
      this.view.draw();
      if (document.hidden) this.#waiting = [];
      else setTimeout(() => this.#painted());
    };
    if (document.hidden) draw();
    else requestAnimationFrame(draw);
  }

  #painted() {
    const now = performance.timeOrigin + performance.now();
    for (const { at, place } of this.#waiting.splice(0)) {
      if (Number.isNaN(at)) continue;
      const ms = Math.max(0, now - at);
      place.dataset.ms = ms.toFixed(1);
      place.textContent = ms < 10 ? `${ms.toFixed(1)} ms` : ms < 10_000 ? `${Math.round(ms)} ms` : "late";
      this.panel.seen(ms);
    }
    this.panel.draw();
  }

  /** @param {string} name */
  async #openFolder(name) {
    document.body.dataset.view = "mail";
    drawTabs();
    if (name === this.model.open) return;
    this.model.open = name;
    this.model.rows.clear();
    if (this.view.reading !== null) this.view.closeReader();
    await this.refresh().catch(complain);
    // One that was on its way for the folder before is not this one.
    if (this.model.rows.size === 0) await this.refresh().catch(complain);
  }

  /** @param {Record<string, unknown>} action */
  async #act(action) {
    try {
      await this.api.act(action);
      if (this.bell?.state !== "connected" || this.bell.polling) await this.refresh();
    } catch (error) {
      complain(error);
    }
  }

  /** @param {StateInfo} info */
  #drawState({ state, polling, retryInMs, why }) {
    const shown = polling && state !== "stopped" ? "polling" : state === "waiting" || (state === "connecting" && this.#wasConnected) ? "reconnecting" : state;
    const pill = byId("connection");
    if (pill.dataset.state !== shown) this.panel.note(shown, why);
    pill.dataset.state = shown;
    pill.title = why;
    say("connection-text", STATES[shown] ?? shown);
    if (state === "waiting" && retryInMs > 1_500) pill.title = `${why}; next try in ${Math.round(retryInMs / 1_000)} s`;
    this.#wasConnected ||= state === "connected";
  }

  #buttons() {
    byId("deliver").addEventListener("click", () => this.#act({ action: "deliver" }));
    byId("folder-create").addEventListener("click", async () => {
      const name = await ask("New folder", "A slash makes it a folder within a folder: Travel/2027", "");
      if (name) await this.#act({ action: "create", mailbox: name });
    });
    byId("folder-rename").addEventListener("click", async () => {
      const name = await ask(`Rename ${this.model.open}`, "Every window that shows it follows.", this.model.open);
      if (name && name !== this.model.open) await this.#act({ action: "rename", mailbox: this.model.open, to: name });
    });
    byId("folder-delete").addEventListener("click", () => this.#act({ action: "remove", mailbox: this.model.open }));
    byId("cut").addEventListener("click", () => this.#cut());
    byId("account").addEventListener("click", () => signIn(this.api.account, true));
    document.querySelector(".brand .icon")?.addEventListener("animationend", () => document.body.classList.remove("ringing"));
  }

  /** What a tunnel does to a train: the socket is gone until the switch goes back. */
  #cut() {
    const cut = !this.meter.cut;
    this.meter.setCut(cut);
    byId("cut").setAttribute("aria-pressed", String(cut));
    say("cut", cut ? "Connect again" : "Cut the socket");
    if (!cut) dispatchEvent(new Event("online"));
  }
}

// ---- Around the mail ------------------------------------------------------------------------------------------

/** @param {unknown} error */
function complain(error) {
  toast(error instanceof Error ? error.message : String(error));
}

let toastTimer = 0;

/** @param {string} text */
function toast(text) {
  say("toast", text);
  byId("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = window.setTimeout(() => { byId("toast").hidden = true; }, 5_000);
}

/** Asks for a line of text; null when the person would rather not. @param {string} title @param {string} text @param {string} value @param {boolean} [must] @returns {Promise<string | null>} */
function ask(title, text, value, must = false) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("ask"));
  const input = /** @type {HTMLInputElement} */ (byId("ask-input"));
  say("ask-title", title);
  say("ask-text", text);
  input.value = value;
  byId("ask-cancel").hidden = must;
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    const done = new AbortController();
    const finish = (/** @type {string | null} */ answer) => {
      done.abort();
      dialog.close();
      resolve(answer);
    };
    byId("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (input.value.trim()) finish(input.value.trim());
    }, { signal: done.signal });
    byId("ask-cancel").addEventListener("click", () => finish(null), { signal: done.signal });
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      if (!must) finish(null);
    }, { signal: done.signal });
  });
}

/** The account of ?account=…, else the one of last time, else asks. @param {string} [suggested] @param {boolean} [another] */
async function signIn(suggested = "alice@example.com", another = false) {
  const named = another ? null : new URLSearchParams(location.search).get("account");
  let account = named ?? (another ? null : recall(ACCOUNT_KEY));
  account ??= await ask("Whose mail?", "Any account will do: this is a development log-in. Open a second window with the same one to see it ring there.", suggested, !another);
  if (!account) return null;
  keep(ACCOUNT_KEY, account);
  const url = `?account=${encodeURIComponent(account)}`;
  if (another) location.assign(url);
  else history.replaceState(null, "", url);
  return another ? null : account;
}

/** @param {string} key */
function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // storage may be forbidden
  }
}

/** @param {string} key @param {string} value */
function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // as above
  }
}

function drawTabs() {
  for (const tab of document.querySelectorAll(".tabs button")) {
    tab.setAttribute("aria-current", String(tab.getAttribute("data-view") === document.body.dataset.view));
  }
}

/** @param {string} theme */
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const text = `Colours: ${THEMES[theme]}`;
  say("theme-text", text);
  byId("theme").title = text;
}

function chrome() {
  setTheme(THEMES[recall(THEME_KEY) ?? ""] ? recall(THEME_KEY) ?? "system" : "system");
  byId("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % names.length];
    keep(THEME_KEY, next);
    setTheme(next);
  });
  for (const tab of document.querySelectorAll(".tabs button")) {
    tab.addEventListener("click", () => {
      document.body.dataset.view = tab.getAttribute("data-view") ?? "mail";
      drawTabs();
    });
  }
  drawTabs();
}

chrome();
const account = await signIn();
if (account) await new App(account).start().catch(complain);
