// SPDX-License-Identifier: Apache-2.0
/**
 * mailbell's browser client: one WebSocket that rings when mail changes.
 *
 *     import { Mailbell } from "./mailbell.js";
 *     const bell = new Mailbell({ gateway: "/v1/connect", token, poll: refresh });
 *     bell.subscribe("alice@example.com", { mailboxes: ["INBOX"] }, { event: draw, refetch: refresh });
 *
 * Every connection begins with a fresh ticket of the gateway, because a ticket works once. The states:
 *
 *     idle ──subscribe──► connecting ──open──► connected ──lost──► waiting ──timer──► connecting
 *                         connecting ──failed or told to wait──► waiting
 *     any ──forbidden──► stopped ──connect()──► connecting          any ──close()──► closed
 *
 * Polling is no state but a stopgap beside them: it runs whenever some subscription has gone unanswered for
 * `pollAfter`, whatever the reason, and ends when all of them are answered.
 *
 * What holds always:
 * - An event is handed to the page once, in the order of its account. Positions remove what is delivered twice,
 *   ids remove what was published twice (the last 512 of an account).
 * - A gap is never silent: `refetch` is called, again and again until it succeeds, and a position that is not
 *   covered by what the page has is not saved.
 * - Every timer has a name and is in one map; after close() the map is empty and nothing is listened to.
 * - No delay is in step with other clients: back-off has full jitter (0 to base·2ⁿ, at most the cap: 1 s, 2 s,
 *   4 s … 30 s), and a delay that the server names is a floor under it.
 */

/** @typedef {"idle"|"connecting"|"connected"|"waiting"|"stopped"|"closed"} State */
/** @typedef {"fresh"|"current"|"replay"|"resync"} CatchUp */
/** @typedef {"fresh"|"resync"|"slow"|"window"} RefetchReason */

/**
 * What a gateway answers. With `retryAfterMs` the client waits that long before it uses `url`, or before it asks
 * again when there is no `url` or `expiresIn` (seconds) is shorter.
 * @typedef {{ url?: string, expiresIn?: number, retryAfterMs?: number }} Ticket
 */

/**
 * An event as it stands on the log; fields that mailbell does not know are passed through.
 * @typedef {{
 *   id: string, event: string, account: string, timestamp: string, mailbox?: string, oldMailbox?: string,
 *   uidValidity?: number, uidset?: string, uidnext?: number, modseq?: string, messages?: number, unseen?: number,
 *   flagNames?: string[], user?: string, service?: string, session?: string, truncated?: boolean,
 *   jmapStates?: Record<string, string>, [unknown: string]: unknown
 * }} MailEvent
 */

/**
 * `replayed`: the event followed a `replay` and is, by its timestamp, older than the subscribe.
 * @typedef {{ account: string, position: string, replayed: boolean }} EventInfo
 * @typedef {{ account: string, reason: RefetchReason, afterMs: number, position: string }} RefetchInfo
 * @typedef {{ account: string, position: string, catchUp: CatchUp }} SubscribedInfo
 * @typedef {{ account?: string, code: string, message: string }} RefusedInfo
 * @typedef {{ state: State, polling: boolean, retryInMs: number, why: string }} StateInfo
 */

/**
 * What a page wants to hear. Each is also dispatched as a CustomEvent of the same name, with the info (for `event`
 * `{event, ...info}`) as its detail, on the subscription and on the bell.
 *
 * `refetch` is called when the page must ask the store once: after the first subscribe (`fresh`), and when
 * something happened that can't be replayed. The client has by then waited for the `afterMs` by which the server
 * spreads a crowd. A promise is awaited; a rejection means another call later.
 * @typedef {{
 *   event?: (event: MailEvent, info: EventInfo) => void,
 *   refetch?: (info: RefetchInfo) => unknown,
 *   subscribed?: (info: SubscribedInfo) => void,
 *   refused?: (info: RefusedInfo) => void,
 * }} Handlers
 */

/**
 * Where positions outlive the page. Only sensible for a page that applies events to what it loads on start.
 * @typedef {{ load(account: string): string | null | undefined, save(account: string, position: string): void }} PositionStore
 */

/**
 * @typedef {object} Options
 * @property {string | string[] | ((hint: { url?: string, signal: AbortSignal }) => Promise<Ticket>)} gateway
 *   URL of `/v1/connect`; several are tried in turn; or a function that gets the ticket in the page's own way (through
 *   a webmail's server, say) and may throw a GatewayError. `hint.url` is what a `reconnect` frame suggested.
 * @property {string | ((need: { renew: boolean }) => string | Promise<string>)} [token] JWT for the gateway; the
 *   function is asked before each connection, with `renew` after the last one was refused.
 * @property {RequestCredentials} [credentials] cookies for the gateway; default "same-origin".
 * @property {(need: { signal: AbortSignal }) => unknown} [poll] one poll of the store; the signal aborts when push is back.
 * @property {number} [pollInterval] ms from the end of a poll to the next, ± 10 %; default 60,000.
 * @property {number} [pollAfter] ms without push before the first poll; default 5,000.
 * @property {string | ((event: MailEvent) => boolean)} [dropEcho] the `session` whose events are the page's own
 *   changes and not to be handed to it, or a function that tells. Default: nothing is dropped.
 * @property {PositionStore | "session"} [store] "session" keeps positions in sessionStorage; default: memory only.
 * @property {number} [backoffBase] ms; default 1,000.
 * @property {number} [backoffCap] ms; default 30,000.
 * @property {number} [silence] ms without a frame before the client asks whether the socket lives; default 240,000.
 * @property {number} [pongTimeout] ms; default 8,000.
 * @property {number} [connectTimeout] ms for ticket and handshake together; default 10,000.
 * @property {typeof fetch} [fetch]
 * @property {typeof WebSocket} [WebSocket]
 * @property {() => number} [random] for tests.
 */

/**
 * @typedef {{ abort: AbortController, socket: WebSocket | null, openedAt: number, heardAt: number }} Attempt
 * @typedef {{
 *   sub: Subscription, account: string, mailboxes: string[] | undefined, handlers: Handlers,
 *   phase: "idle" | "asked" | "live" | "refused", id: number, tries: number, position: string | undefined,
 *   askedAt: number, replaysUntil: number, ids: Set<string>, refetch: RefetchInfo | null, refetching: boolean, refetchTries: number,
 * }} Entry
 */

export const SUBPROTOCOL = "mailbell.v1";

const DEFAULTS = Object.freeze({
  pollInterval: 60_000,
  pollAfter: 5_000,
  backoffBase: 1_000,
  backoffCap: 30_000,
  silence: 240_000,
  pongTimeout: 8_000,
  connectTimeout: 10_000,
});

const STABLE = 10_000; // a connection that lasted this long earns a fresh back-off
const FRESHLY_HEARD = 5_000; // a socket heard so recently needs no probe when the page becomes visible
const WAKE_SPREAD = 1_000; // an office's network comes back for everyone in it at once
const SUBSCRIBE_TIMEOUT = 20_000; // the notifier answers within 10 s, if only with "unavailable"
const REMEMBERED_IDS = 512;

/** What a gateway function throws to say more than "failed": 401 and 403 stop the client, the rest is tried again. */
export class GatewayError extends Error {
  /** @param {string} message @param {{ status?: number, code?: string, retryAfterMs?: number }} [detail] */
  constructor(message, { status = 0, code = "", retryAfterMs = 0 } = {}) {
    super(message);
    this.name = "GatewayError";
    this.status = status;
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

/** One account's subscription. Dispatches `event`, `refetch`, `subscribed` and `refused`. */
export class Subscription extends EventTarget {
  /** @type {Entry} */ #entry;
  /** @type {() => void} */ #close;

  /** @param {(sub: Subscription) => Entry} entry @param {() => void} close */
  constructor(entry, close) {
    super();
    this.#entry = entry(this);
    this.#close = close;
  }

  get account() {
    return this.#entry.account;
  }

  /** The position that the page is up to: what to give as `since` elsewhere. */
  get position() {
    return this.#entry.position;
  }

  /** True while the server has answered and events flow. */
  get live() {
    return this.#entry.phase === "live";
  }

  close() {
    this.#close();
  }
}

export class Mailbell extends EventTarget {
  // Static after construction.
  /** @type {Options & typeof DEFAULTS} */ #options;
  /** @type {string[]} */ #gateways;
  /** @type {PositionStore | undefined} */ #store;

  // The connection.
  /** @type {State} */ #state = "idle";
  /** @type {Attempt | null} */ #attempt = null;
  #failures = 0; // since the last stable connection
  #notBefore = 0; // a server's wish; even a wake does not come earlier
  #retryAt = 0;
  #denials = 0; // 401s in a row
  #gateway = 0; // which of #gateways is next
  #why = "";

  // What is wanted.
  /** @type {Map<string, Entry>} */ #entries = new Map();
  #lastId = 0;

  // Around it.
  /** @type {Map<string, ReturnType<typeof setTimeout>>} */ #timers = new Map();
  /** @type {AbortController | null} */ #poll = null;
  /** @type {AbortController | null} */ #listening = null;

  /** @param {Options} options */
  constructor(options) {
    super();
    if (!options || !options.gateway || options.gateway.length === 0 && typeof options.gateway !== "function") {
      throw new TypeError('Mailbell: gateway is missing: a URL such as "/v1/connect", or a function that answers {url}');
    }
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    this.#options = /** @type {Options & typeof DEFAULTS} */ ({ ...DEFAULTS, ...given });
    const { gateway, store } = this.#options;
    this.#gateways = typeof gateway === "function" ? [] : [gateway].flat();
    this.#store = store === "session" ? sessionPositions() : store;
  }

  get state() {
    return this.#state;
  }

  /** True while the page's own poll function stands in for the socket. */
  get polling() {
    return this.#poll !== null;
  }

  /**
   * Starts to listen to an account, in all of its mailboxes or some. The first subscription connects.
   * @param {string} account
   * @param {{ mailboxes?: string[], since?: string }} [options]
   * @param {Handlers} [handlers]
   * @returns {Subscription}
   */
  subscribe(account, { mailboxes, since } = {}, handlers = {}) {
    if (this.#state === "closed") throw new Error("subscribe: this Mailbell is closed; make another");
    if (this.#entries.has(account)) throw new Error(`subscribe: ${account} is subscribed already; close that one first`);
    const position = since ?? this.#store?.load(account) ?? undefined;
    const sub = new Subscription(
      (own) => this.#enter({
        sub: own, account, mailboxes, handlers, phase: "idle", id: 0, tries: 0, position, askedAt: 0, replaysUntil: 0,
        ids: new Set(), refetch: null, refetching: false, refetchTries: 0,
      }),
      () => this.#leave(account, sub),
    );
    if (this.#state === "idle") this.connect();
    else if (this.#state === "connected") this.#ask(this.#entry(account));
    this.#review();
    return sub;
  }

  /** Connects now: for a "try again" button, and after `stopped` once the person has signed in again. */
  connect() {
    if (this.#state === "closed" || this.#state === "connected" || this.#state === "connecting") return;
    if (this.#entries.size === 0) return;
    this.#listen();
    this.#denials = 0;
    this.#connect();
  }

  /** Ends it for good: no socket, no timer, no listener is left. */
  close() {
    if (this.#state === "closed") return;
    this.#rest("closed", "closed by the page");
  }

  // ---- Connecting -------------------------------------------------------------------------------------------

  /** @param {string} [url] one with a ticket in it needs no other; any other is a hint to the gateway */
  async #connect(url) {
    this.#cancel("retry");
    /** @type {Attempt} */
    const attempt = { abort: new AbortController(), socket: null, openedAt: 0, heardAt: 0 };
    this.#attempt = attempt;
    this.#after("connect", this.#options.connectTimeout, () => this.#lose("no answer in time"));
    this.#become("connecting", this.#why);
    try {
      const ticket = url && hasTicket(url) ? { url } : await this.#lookup(url, attempt.abort.signal);
      if (this.#attempt !== attempt) return;
      this.#denials = 0;
      const wait = ticket.retryAfterMs ?? 0;
      if (ticket.url && wait === 0) this.#open(attempt, ticket.url);
      else this.#lose("told to wait", wait, wait < (ticket.expiresIn ?? 0) * 1_000 ? ticket.url : undefined);
    } catch (error) {
      if (this.#attempt === attempt) this.#fail(error);
    }
  }

  /**
   * @param {string | undefined} hint @param {AbortSignal} signal
   * @returns {Promise<Ticket>}
   */
  async #lookup(hint, signal) {
    const { gateway, token, credentials = "same-origin" } = this.#options;
    if (typeof gateway === "function") return gateway({ url: hint, signal });
    const bearer = typeof token === "function" ? await token({ renew: this.#denials > 0 }) : token;
    const target = this.#gateways[this.#gateway % this.#gateways.length];
    const response = await (this.#options.fetch ?? globalThis.fetch.bind(globalThis))(target, {
      headers: bearer ? { authorization: `Bearer ${bearer}`, accept: "application/json" } : { accept: "application/json" },
      credentials, cache: "no-store", signal,
    });
    /** @type {Ticket & { error?: { code?: string, message?: string } }} */
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    const retryAfterMs = Math.max(body.retryAfterMs ?? 0, retryAfter(response.headers.get("retry-after")));
    throw new GatewayError(`gateway: ${response.status} ${body.error?.message ?? response.statusText}`, { status: response.status, code: body.error?.code, retryAfterMs });
  }

  /** @param {unknown} error */
  #fail(error) {
    const { status = 0, code = "", retryAfterMs = 0, message = String(error) } = /** @type {Partial<GatewayError>} */ (error ?? {});
    const renewable = typeof this.#options.token === "function";
    if (status === 401 && renewable && this.#denials === 0) {
      this.#denials = 1;
      this.#lose(message);
    } else if (status === 401 || status === 403) {
      this.#stop(status === 403 && code || "forbidden", message);
    } else {
      this.#gateway += 1;
      this.#lose(message, retryAfterMs);
    }
  }

  /** @param {Attempt} attempt @param {string} url */
  #open(attempt, url) {
    const socket = new (this.#options.WebSocket ?? globalThis.WebSocket)(url, SUBPROTOCOL);
    attempt.socket = socket;
    socket.onopen = () => this.#opened(attempt);
    socket.onmessage = (message) => this.#hear(attempt, message.data);
    socket.onclose = (close) => this.#closed(close);
  }

  /** @param {Attempt} attempt */
  #opened(attempt) {
    this.#cancel("connect");
    attempt.openedAt = attempt.heardAt = Date.now();
    this.#watchSilence(attempt, this.#options.silence * (0.8 + 0.2 * this.#random()));
    this.#become("connected", "");
    for (const entry of this.#entries.values()) this.#ask(entry);
    this.#review();
  }

  /** @param {{ code: number, reason: string }} close */
  #closed({ code, reason }) {
    // 1008 is also how an expired token ends; that one is cured by the next ticket.
    if (code === 1008 && /forbidden|origin|not allowed/i.test(reason)) this.#stop("forbidden", reason);
    else this.#lose(`closed with ${code}${reason ? ` (${reason})` : ""}`);
  }

  /**
   * The connection, or the attempt at one, is over; there will be another.
   * @param {string} why @param {number} [floor] ms @param {string} [url] a ticket that is good after exactly `floor`
   */
  #lose(why, floor = 0, url = undefined) {
    const now = Date.now();
    const openedAt = this.#attempt?.openedAt ?? 0;
    if (openedAt > 0 && now - openedAt >= STABLE) this.#failures = 0;
    this.#drop();
    this.#notBefore = Math.max(this.#notBefore, now + floor);
    const delay = Math.max(this.#notBefore - now, url ? 0 : this.#backoff(this.#failures++));
    this.#retryAt = now + delay;
    this.#after("retry", delay, () => this.#connect(url));
    this.#become("waiting", why);
    this.#review();
  }

  /** The bell hears it once, and each subscription too: a page may have given its handlers only there. @param {string} code @param {string} message */
  #stop(code, message) {
    this.#drop();
    this.#cancel("retry");
    this.#become("stopped", message);
    this.dispatchEvent(new CustomEvent("refused", { detail: { code, message } }));
    for (const { sub, handlers, account } of this.#entries.values()) {
      const detail = { account, code, message };
      sub.dispatchEvent(new CustomEvent("refused", { detail }));
      this.#call(() => handlers.refused?.(detail));
    }
    this.#review();
  }

  /** Lets go of the present attempt without a word about what comes next. */
  #drop() {
    const attempt = this.#attempt;
    this.#attempt = null;
    for (const name of ["connect", "silence", "pong", "reconnect"]) this.#cancel(name);
    for (const entry of this.#entries.values()) {
      this.#cancel(`ask ${entry.account}`);
      if (entry.phase !== "refused") entry.phase = "idle";
      entry.tries = 0;
    }
    if (!attempt) return;
    attempt.abort.abort();
    if (!attempt.socket) return;
    attempt.socket.onopen = attempt.socket.onmessage = attempt.socket.onclose = null;
    attempt.socket.close(1000);
  }

  // ---- Frames -----------------------------------------------------------------------------------------------

  /** @param {Attempt} attempt @param {unknown} data */
  #hear(attempt, data) {
    attempt.heardAt = Date.now();
    this.#cancel("pong");
    /** @type {any} */
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return;
    }
    const entry = this.#entries.get(frame.account);
    // Types that this version does not know are skipped, so that a newer server can say more.
    if (frame.type === "subscribed" && entry && entry.id === frame.id) this.#subscribed(entry, frame);
    else if (frame.type === "event" && entry) this.#event(entry, frame);
    else if (frame.type === "missed" && entry) this.#missed(entry, frame.reason, frame.position, frame.afterMs);
    else if (frame.type === "error") this.#refusedFrame(frame);
    else if (frame.type === "reconnect") this.#moveOn(frame.afterMs ?? 0, frame.url);
  }

  /** @param {object} frame */
  #send(frame) {
    this.#attempt?.socket?.send(JSON.stringify(frame));
  }

  /** @param {Entry} entry */
  #ask(entry) {
    if (entry.phase === "refused") return;
    entry.phase = "asked";
    entry.askedAt = Date.now();
    entry.id = ++this.#lastId;
    this.#after(`ask ${entry.account}`, SUBSCRIBE_TIMEOUT, () => this.#lose("a subscribe was not answered"));
    this.#send({ type: "subscribe", id: entry.id, account: entry.account, mailboxes: entry.mailboxes, since: entry.position });
  }

  /** @param {Entry} entry @param {{ position: string, catchUp: CatchUp, afterMs?: number }} frame */
  #subscribed(entry, { position, catchUp, afterMs }) {
    this.#cancel(`ask ${entry.account}`);
    entry.phase = "live";
    entry.tries = 0;
    this.#tell(entry, "subscribed", { account: entry.account, position, catchUp });
    // A replay's position is the one that was asked with; its events follow, each with its own.
    entry.replaysUntil = catchUp === "replay" ? entry.askedAt : 0;
    if (catchUp === "fresh" || catchUp === "resync") this.#missed(entry, catchUp, position, afterMs);
    else if (catchUp === "current") this.#advance(entry, position);
    this.#review();
  }

  /** @param {Entry} entry @param {{ position: string, event: MailEvent }} frame */
  #event(entry, { position, event }) {
    if (entry.position === position || isPast(position, entry.position)) return;
    this.#advance(entry, position);
    const replayed = Date.parse(event.timestamp) < entry.replaysUntil;
    if (!replayed) entry.replaysUntil = 0;
    if (entry.ids.has(event.id)) return;
    if (event.id) entry.ids.add(event.id);
    if (entry.ids.size > REMEMBERED_IDS) entry.ids.delete(/** @type {string} */ (entry.ids.values().next().value));
    const echo = this.#options.dropEcho;
    if (typeof echo === "function" ? echo(event) : echo !== undefined && event.session === echo) return;
    this.#tell(entry, "event", { account: entry.account, position, replayed, event });
  }

  /** @param {Entry} entry @param {RefetchReason} reason @param {string} position @param {number} [afterMs] */
  #missed(entry, reason, position, afterMs = 0) {
    // Only an answer to a subscribe may lead back: a `since` from the future, or of another epoch.
    if (reason === "fresh" || reason === "resync" || !isPast(position, entry.position)) entry.position = position;
    const waiting = entry.refetch !== null && !entry.refetching;
    entry.refetch = { account: entry.account, reason, afterMs, position };
    entry.refetchTries = 0;
    // One that waits covers this gap too; one that runs may have asked the store too early, and is followed by another.
    if (!waiting && !entry.refetching) this.#after(`refetch ${entry.account}`, afterMs, () => this.#refetch(entry));
  }

  /** @param {Entry} entry */
  async #refetch(entry) {
    const info = entry.refetch;
    if (!info) return;
    entry.refetching = true;
    let done = false;
    try {
      this.#dispatch(entry, "refetch", info);
      await entry.handlers.refetch?.(info);
      done = true;
    } catch (error) {
      this.#dispatch(entry, "refetcherror", { account: entry.account, error });
    }
    entry.refetching = false;
    if (this.#entries.get(entry.account) !== entry) return;
    if (done && entry.refetch === info) {
      entry.refetch = null;
      if (entry.position) this.#store?.save(entry.account, entry.position);
      return;
    }
    const delay = done ? entry.refetch?.afterMs ?? 0 : this.#options.backoffBase + this.#backoff(entry.refetchTries++);
    this.#after(`refetch ${entry.account}`, delay, () => this.#refetch(entry));
  }

  /** @param {Entry} entry @param {string} position */
  #advance(entry, position) {
    entry.position = position;
    // Until the page has what it missed, a reload must be told of the gap again.
    if (entry.refetch === null) this.#store?.save(entry.account, position);
  }

  /** @param {{ id?: number, code: string, message: string }} frame */
  #refusedFrame({ id, code, message }) {
    const entry = [...this.#entries.values()].find((one) => one.id === id && one.phase === "asked");
    if (!entry) return;
    this.#cancel(`ask ${entry.account}`);
    if (code === "forbidden" || code === "badRequest") {
      entry.phase = "refused";
      this.#tell(entry, "refused", { account: entry.account, code, message });
    } else {
      entry.phase = "idle";
      const delay = this.#options.backoffBase + this.#backoff(entry.tries++);
      this.#after(`ask ${entry.account}`, delay, () => this.#ask(entry));
    }
    this.#review();
  }

  /** A notifier that drains or is too full gives each client its own moment to leave. @param {number} afterMs @param {string} [url] */
  #moveOn(afterMs, url) {
    this.#notBefore = Date.now() + afterMs; // also when it hangs up earlier
    this.#after("reconnect", afterMs, () => {
      this.#failures = 0;
      this.#drop();
      this.#why = "moved by the server";
      this.#connect(url);
      this.#review();
    });
  }

  // ---- Is it alive? -----------------------------------------------------------------------------------------

  #listen() {
    if (this.#listening || typeof globalThis.addEventListener !== "function") return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    globalThis.addEventListener("online", () => this.#wake(), { signal });
    globalThis.addEventListener("pageshow", () => this.#wake(), { signal });
    // Only a hint: a machine with nothing but loopback counts as offline and works.
    globalThis.addEventListener("offline", () => this.#probe(), { signal });
    globalThis.document?.addEventListener("visibilitychange", () => {
      if (globalThis.document.visibilityState === "visible") this.#wake();
    }, { signal });
  }

  /** The page is seen again or the network is back: find out now, not when a timer says so. */
  #wake() {
    if (this.#state === "connected" && Date.now() - (this.#attempt?.heardAt ?? 0) > FRESHLY_HEARD) this.#probe();
    if (this.#state !== "waiting") return;
    const at = Math.max(this.#notBefore, Date.now() + WAKE_SPREAD * this.#random());
    if (at >= this.#retryAt) return;
    this.#retryAt = at;
    this.#after("retry", at - Date.now(), () => this.#connect());
  }

  #probe() {
    if (this.#state !== "connected" || this.#timers.has("pong")) return;
    this.#send({ type: "ping", id: ++this.#lastId });
    this.#after("pong", this.#options.pongTimeout, () => this.#lose("the socket is dead"));
  }

  /** @param {Attempt} attempt @param {number} silence ms */
  #watchSilence(attempt, silence) {
    const rest = attempt.heardAt + silence - Date.now();
    if (rest <= 0) this.#probe();
    this.#after("silence", rest > 0 ? rest : silence, () => this.#watchSilence(attempt, silence));
  }

  // ---- Polling meanwhile ------------------------------------------------------------------------------------

  /** Push covers the page when every subscription is answered. What is refused is not covered, and is polled. */
  #review() {
    const covered = this.#state === "connected" && [...this.#entries.values()].every((entry) => entry.phase === "live");
    if (covered) return this.#endPolling();
    if (!this.#options.poll || this.#poll || this.#timers.has("poll") || this.#entries.size === 0) return;
    this.#after("poll", this.#options.pollAfter, () => {
      this.#poll = new AbortController();
      this.#become(this.#state, this.#why);
      this.#pollOnce(this.#poll);
    });
  }

  /** @param {AbortController} run */
  async #pollOnce(run) {
    try {
      await this.#options.poll?.({ signal: run.signal });
    } catch (error) {
      this.dispatchEvent(new CustomEvent("pollerror", { detail: { error } }));
    }
    if (this.#poll !== run) return;
    this.#after("poll", this.#options.pollInterval * (0.9 + 0.2 * this.#random()), () => this.#pollOnce(run));
  }

  #endPolling() {
    this.#cancel("poll");
    if (!this.#poll) return;
    this.#poll.abort(); // its answer may be older than what the socket is about to say
    this.#poll = null;
    this.#become(this.#state, this.#why);
  }

  // ---- Small things -----------------------------------------------------------------------------------------

  /** @param {Entry} entry */
  #enter(entry) {
    this.#entries.set(entry.account, entry);
    return entry;
  }

  /** @param {string} account @param {Subscription} sub */
  #leave(account, sub) {
    const entry = this.#entries.get(account);
    if (entry?.sub !== sub) return;
    this.#entries.delete(account);
    this.#cancel(`ask ${account}`);
    this.#cancel(`refetch ${account}`);
    if (this.#entries.size === 0) this.#rest("idle", "nothing is subscribed");
    else if (this.#state === "connected" && entry.phase !== "refused") this.#send({ type: "unsubscribe", id: ++this.#lastId, account });
    this.#review();
  }

  /** @param {"idle" | "closed"} state @param {string} why */
  #rest(state, why) {
    this.#drop();
    this.#entries.clear();
    this.#listening?.abort();
    this.#listening = null;
    this.#poll?.abort();
    this.#poll = null;
    for (const name of [...this.#timers.keys()]) this.#cancel(name);
    this.#failures = this.#notBefore = 0;
    this.#become(state, why);
  }

  /** @param {string} account */
  #entry(account) {
    return /** @type {Entry} */ (this.#entries.get(account));
  }

  /** @param {State} state @param {string} why */
  #become(state, why) {
    this.#state = state;
    this.#why = why;
    const retryInMs = state === "waiting" ? Math.max(0, this.#retryAt - Date.now()) : 0;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, polling: this.polling, retryInMs, why } }));
  }

  /** Handlers and listeners both. @param {Entry} entry @param {"event"|"subscribed"|"refused"} name @param {any} detail */
  #tell(entry, name, detail) {
    this.#dispatch(entry, name, detail);
    const { handlers } = entry;
    this.#call(() => {
      if (name === "event") handlers.event?.(detail.event, detail);
      else /** @type {((info: any) => void) | undefined} */ (handlers[name])?.(detail);
    });
  }

  /** A page's mistake in one handler must not cost it the socket; it shows up as an uncaught error all the same. @param {() => void} handler */
  #call(handler) {
    try {
      handler();
    } catch (error) {
      queueMicrotask(() => { throw error; });
    }
  }

  /** @param {Entry} entry @param {string} name @param {object} detail */
  #dispatch(entry, name, detail) {
    entry.sub.dispatchEvent(new CustomEvent(name, { detail }));
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {number} tries */
  #backoff(tries) {
    const { backoffBase, backoffCap } = this.#options;
    return this.#random() * Math.min(backoffCap, backoffBase * 2 ** Math.min(tries, 20));
  }

  #random() {
    return (this.#options.random ?? Math.random)();
  }

  /** @param {string} name @param {number} ms @param {() => void} then */
  #after(name, ms, then) {
    this.#cancel(name);
    this.#timers.set(name, setTimeout(() => {
      this.#timers.delete(name);
      then();
    }, ms));
  }

  /** @param {string} name */
  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}

/**
 * Whether position a is covered by b, that is, not after it. Positions are opaque but for this rule: "epoch.partition.offset",
 * comparable within one epoch and partition.
 * @param {string} a @param {string | undefined} b
 */
export function isPast(a, b) {
  const [x, y] = [a, b ?? ""].map((text) => /^([0-9a-f]+\.\d+)\.(\d+)$/.exec(text));
  if (!x || !y || x[1] !== y[1]) return false;
  // Offsets have 63 bits, numbers here have 53.
  return BigInt(x[2]) <= BigInt(y[2]);
}

/** Retry-After in ms: seconds or a date. @param {string | null} header */
function retryAfter(header) {
  if (!header) return 0;
  const ms = /^\d+$/.test(header.trim()) ? Number(header) * 1_000 : Date.parse(header) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : 0;
}

/** @param {string} url */
function hasTicket(url) {
  return /[?&]ticket=/.test(url);
}

/** @returns {PositionStore} */
function sessionPositions() {
  const key = (/** @type {string} */ account) => `mailbell:${account}`;
  return {
    load(account) {
      try {
        return sessionStorage.getItem(key(account));
      } catch {
        return null; // storage may be forbidden; then a reload starts afresh
      }
    },
    save(account, position) {
      try {
        sessionStorage.setItem(key(account), position);
      } catch {
        // as above
      }
    },
  };
}
