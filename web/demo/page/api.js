// SPDX-License-Identifier: Apache-2.0
/** The demo store's API, with a log-in that renews itself: the store forgets everybody when it restarts. */

/** @typedef {import("./model.js").State} State */
/** @typedef {{ request: number, response: number }} Wire bytes */

export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  account;
  gateway = "/v1/connect";
  #session = "";
  #token = "";
  #tokenUntil = 0;
  #etag = "";
  #etagFor = "";
  /** Names this window in the events that it causes. */
  window = `window-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  /** Bytes of the last state with news and of the last one without. */
  changed = { request: 0, response: 0 };
  unchanged = { request: 0, response: 0 };
  /** What was asked because of events, for the push side of the bill. */
  details = { requests: 0, bytes: 0 };

  /** @param {string} account */
  constructor(account) {
    this.account = account;
  }

  async login() {
    const { body } = await this.#exchange("POST", "login", { account: this.account });
    this.#session = body.session;
    this.#token = body.token;
    this.#tokenUntil = Date.now() + (body.expiresIn - 60) * 1_000;
    this.gateway = body.gateway;
  }

  /** The token for the gateway. @param {boolean} renew */
  async token(renew) {
    if (renew || Date.now() > this.#tokenUntil) await this.login();
    return this.#token;
  }

  /** The state, or null when it is as it was. @param {string} mailbox @returns {Promise<State | null>} */
  async state(mailbox) {
    const etag = this.#etagFor === mailbox ? this.#etag : "";
    const { status, body, wire, head } = await this.#call("GET", `state?mailbox=${encodeURIComponent(mailbox)}`, undefined, etag);
    if (status === 304) {
      this.unchanged = wire;
      return null;
    }
    this.changed = wire;
    this.#etag = head.get("etag") ?? "";
    this.#etagFor = mailbox;
    return body;
  }

  /** The next state() gets the whole. */
  forget() {
    this.#etag = "";
  }

  /**
   * @param {string} mailbox @param {string} uids @param {boolean} told because of an event: then it goes on push's bill
   * @returns {Promise<{ uidValidity: number, messages: import("./model.js").Row[] }>}
   */
  async messages(mailbox, uids, told) {
    const { body, wire } = await this.#call("GET", `message?mailbox=${encodeURIComponent(mailbox)}&uids=${uids}`);
    if (told) {
      this.details.requests += 1;
      this.details.bytes += wire.request + wire.response;
    }
    return body;
  }

  /** @param {Record<string, unknown>} action */
  async act(action) {
    await this.#call("POST", "actions", action);
  }

  /** @param {string} method @param {string} path @param {object} [body] @param {string} [etag] */
  async #call(method, path, body, etag) {
    try {
      return await this.#exchange(method, path, body, etag);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      await this.login();
      return this.#exchange(method, path, body, etag);
    }
  }

  /** @param {string} method @param {string} path @param {object} [body] @param {string} [etag] */
  async #exchange(method, path, body, etag) {
    /** @type {Record<string, string>} */
    const headers = { "mailbell-session": this.window };
    if (this.#session) headers.authorization = `Bearer ${this.#session}`;
    if (body) headers["content-type"] = "application/json";
    if (etag) headers["if-none-match"] = etag;
    const response = await fetch(`api/${path}`, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
    const [request, answer] = (response.headers.get("mailbell-demo-wire") ?? "0;0").split(";").map(Number);
    const wire = { request, response: answer };
    if (response.status === 304) return { status: 304, body: null, wire, head: response.headers };
    const parsed = await response.json().catch(() => ({}));
    if (!response.ok) throw new ApiError(response.status, parsed.message ?? response.statusText);
    return { status: response.status, body: parsed, wire, head: response.headers };
  }
}
