// SPDX-License-Identifier: Apache-2.0
/** Folders, list and reader, drawn from the model. What a person does comes out through `on`. */
import { byId, h, icon, keyed, mark, say } from "./dom.js";
import { FLAGGED, SEEN } from "./model.js";

/** @typedef {import("./model.js").Model} Model */
/** @typedef {import("./model.js").Row} Row */
/** @typedef {import("./model.js").Folder} Folder */
/**
 * @typedef {{
 *   openFolder: (name: string) => void, act: (action: Record<string, unknown>) => void,
 *   askText: (uid: number) => void,
 * }} Actions
 */

const ICONS = /** @type {Record<string, string>} */ ({ INBOX: "inbox", Drafts: "draft", Sent: "sent", Archive: "archive", Trash: "trash" });
const OWN_FLAGS = new Set([SEEN, FLAGGED, "\\Recent"]);
const NARROW = "(max-width: 1360px)";

export class View {
  /** @type {Model} */ #model;
  /** @type {Actions} */ #on;
  /** @type {number | null} */ #reading = null;
  #opensUnknown = false; // the reader was opened before the message's subject came
  /** @type {Set<number>} */ #arrived = new Set();

  /** @param {Model} model @param {Actions} on */
  constructor(model, on) {
    this.#model = model;
    this.#on = on;
    this.#listen();
  }

  /** The UID in the reader, if any. */
  get reading() {
    return this.#reading;
  }

  /** Rows that light up at the next drawing. @param {number[]} uids */
  arrived(uids) {
    for (const uid of uids) this.#arrived.add(uid);
  }

  draw() {
    this.#drawFolders();
    this.#drawList();
    this.#drawReader();
    this.#arrived.clear();
  }

  /** Subjects and texts came. @param {Row[]} rows */
  filled(rows) {
    const uid = this.#reading;
    if (uid === null || !this.#opensUnknown || !rows.some((row) => row.uid === uid)) return;
    this.#opensUnknown = false;
    this.#see(uid);
  }

  closeReader() {
    const uid = this.#reading;
    this.#reading = null;
    this.draw();
    if (uid !== null) this.#focusRow(uid);
  }

  #listen() {
    byId("action-back").addEventListener("click", () => this.closeReader());
    byId("action-read").addEventListener("click", () => this.#toggle(SEEN));
    byId("action-flag").addEventListener("click", () => this.#toggle(FLAGGED));
    byId("action-delete").addEventListener("click", () => this.#delete());
    const move = /** @type {HTMLSelectElement} */ (byId("action-move"));
    move.addEventListener("change", () => {
      if (this.#reading !== null && move.value) {
        this.#on.act({ action: "move", mailbox: this.#model.open, uids: String(this.#reading), to: move.value });
      }
      move.value = "";
    });
    document.querySelector(".mail")?.addEventListener("keydown", (event) => this.#key(/** @type {KeyboardEvent} */ (event)));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || target.tagName === "SELECT") return;
    const rowUid = Number(target.closest(".row")?.getAttribute("data-uid")) || this.#reading;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (step && target.closest("#messages")) this.#step(rowUid, step);
    else if (event.key === "Escape" && this.#reading !== null) this.closeReader();
    else if (event.key === "u" && rowUid) this.#toggle(SEEN, rowUid);
    else if (event.key === "s" && rowUid) this.#toggle(FLAGGED, rowUid);
    else if (event.key === "Delete" && rowUid) this.#delete(rowUid);
    else return;
    event.preventDefault();
  }

  /** @param {number | null} uid @param {number} step */
  #step(uid, step) {
    const uids = this.#model.rowList().map((row) => row.uid);
    const next = uids[Math.min(uids.length - 1, Math.max(0, uids.indexOf(uid ?? -1) + step))];
    if (next !== undefined) this.#focusRow(next);
  }

  /** @param {number} uid */
  #focusRow(uid) {
    const row = document.querySelector(`#messages [data-uid="${uid}"] .row-open`);
    /** @type {HTMLElement | null} */ (row)?.focus();
  }

  /** @param {string} flag @param {number | null} [uid] */
  #toggle(flag, uid = this.#reading) {
    const row = uid === null ? undefined : this.#model.rows.get(uid);
    if (!row) return;
    const change = row.flags.includes(flag) ? { remove: [flag] } : { add: [flag] };
    this.#on.act({ action: "flag", mailbox: this.#model.open, uids: String(uid), ...change });
  }

  #delete(uid = this.#reading) {
    if (uid !== null) this.#on.act({ action: "delete", mailbox: this.#model.open, uids: String(uid) });
  }

  /** @param {number} uid */
  #read(uid) {
    this.#reading = uid;
    const row = this.#model.rows.get(uid);
    if (row?.subject && row.text === undefined) this.#on.askText(uid);
    this.#opensUnknown = row?.subject === undefined;
    this.#see(uid);
    this.draw();
    if (matchMedia(NARROW).matches) byId("reader-subject").focus();
  }

  /** Reading marks as read, but only what this store has: the flags of other stores are theirs. @param {number} uid */
  #see(uid) {
    const row = this.#model.rows.get(uid);
    if (row?.subject && !row.flags.includes(SEEN)) this.#toggle(SEEN, uid);
  }

  // ---- Drawing ----------------------------------------------------------------------------------------------

  #drawFolders() {
    keyed(byId("folders"), this.#model.folderList(), ({ name }) => name, ({ name }) => {
      const button = h("button", { class: "folder", type: "button" }, icon(ICONS[name] ?? "folder"), h("span", { class: "name" }), h("span", { class: "unread" }));
      const row = h("li", { "data-testid": "folder-row" }, button);
      button.addEventListener("click", () => this.#on.openFolder(row.getAttribute("data-name") ?? ""));
      return row;
    }, (row, folder) => this.#updateFolder(row, folder));
    const unread = this.#model.folders.get("INBOX")?.unseen ?? 0;
    document.title = `${unread > 0 ? `(${unread}) ` : ""}${this.#model.open} – mailbell demo`;
  }

  /** @param {Element} row @param {Folder} folder */
  #updateFolder(row, { name, messages, unseen }) {
    mark(row, { "data-name": name, "data-unread": String(unseen), "data-messages": String(messages) });
    const [button, label, badge] = /** @type {HTMLElement[]} */ ([row.firstElementChild, row.querySelector(".name"), row.querySelector(".unread")]);
    mark(button, { "aria-current": String(name === this.#model.open), title: name });
    if (label.textContent !== name) label.textContent = name;
    const text = unseen > 0 ? String(unseen) : "";
    if (badge.textContent !== text) badge.textContent = text;
    badge.hidden = unseen === 0;
    mark(badge, { "aria-label": `${unseen} unread` });
  }

  #drawList() {
    const { open, folders } = this.#model;
    const folder = folders.get(open);
    const rows = this.#model.rowList();
    say("folder-name", open);
    say("folder-counts", `${plural(folder?.messages ?? 0, "message")}, ${folder?.unseen ?? 0} unread`);
    byId("folder-tools").hidden = open === "INBOX";
    keyed(byId("messages"), rows, ({ uid }) => String(uid), (row) => this.#makeRow(row), (element, row) => this.#updateRow(element, row));
    const missing = (folder?.messages ?? 0) - rows.length;
    byId("list-note").hidden = missing === 0 && rows.length > 0;
    say("list-note", rows.length === 0 && missing <= 0 ? "Nothing here." : `${plural(Math.max(0, missing), "more message")} in this folder, in another mail store or too old for this list.`);
  }

  /** @param {Row} row */
  #makeRow({ uid }) {
    const open = h("button", { class: "row-open", type: "button" },
      h("span", { class: "unseen" }), h("span", { class: "from" }), h("span", { class: "time" }), h("span", { class: "subject" }), h("span", { class: "preview" }));
    const star = h("button", { class: "star", type: "button", "data-testid": "row-star" }, icon("star"));
    open.addEventListener("click", () => this.#read(uid));
    star.addEventListener("click", () => this.#toggle(FLAGGED, uid));
    return h("li", { class: "row", "data-testid": "message-row", "data-uid": String(uid) }, open, star);
  }

  /** @param {Element} element @param {Row} row */
  #updateRow(element, row) {
    const seen = row.flags.includes(SEEN);
    mark(element, {
      "data-flags": row.flags.join(" "), "data-seen": String(seen), "data-mailbox": this.#model.open,
      "data-selected": String(row.uid === this.#reading), "data-known": String(row.subject !== undefined),
    });
    if (this.#arrived.has(row.uid)) {
      element.classList.add("arrived");
      setTimeout(() => element.classList.remove("arrived"), 3_000);
    }
    const [from, time, subject, preview] = ["from", "time", "subject", "preview"].map((name) => /** @type {HTMLElement} */ (element.querySelector(`.${name}`)));
    from.textContent = row.from ?? `Message ${row.uid}`;
    time.textContent = shortDate(row.date);
    subject.textContent = row.subject ?? "In another mail store";
    preview.replaceChildren(
      ...row.flags.filter((flag) => !OWN_FLAGS.has(flag)).map((flag) => h("span", { class: "flag-tag" }, flag.replace("\\", ""))),
      row.preview ?? "known by its event: UID and flags",
    );
    const star = /** @type {HTMLElement} */ (element.querySelector(".star"));
    const flagged = row.flags.includes(FLAGGED);
    mark(star, { "aria-pressed": String(flagged), "aria-label": `Flag ${row.subject ?? `message ${row.uid}`}` });
    mark(/** @type {Element} */ (element.querySelector(".unseen")), { "aria-label": seen ? "" : "unread", role: "img" });
  }

  #drawReader() {
    const row = this.#reading === null ? undefined : this.#model.rows.get(this.#reading);
    if (!row) this.#reading = null;
    document.body.dataset.reading = String(row !== undefined);
    const [empty, full] = /** @type {HTMLElement[]} */ ([document.querySelector(".reader-empty"), document.querySelector(".reader-full")]);
    empty.hidden = row !== undefined;
    full.hidden = row === undefined;
    if (!row) return;
    const from = row.from ?? `Message ${row.uid}`;
    say("reader-subject", row.subject ?? `Message ${row.uid}`);
    say("reader-from", from);
    say("reader-avatar", row.from ? from.slice(0, 1) : "#");
    say("reader-date", longDate(row.date));
    say("reader-text", row.subject ? row.text ?? row.preview ?? "" : "This message is in another mail store. Its events say that it is there and which flags it has; subject and text stay where they are, and off the log.");
    say("reader-facts", `UID ${row.uid} in ${this.#model.open}${row.flags.length > 0 ? `, flags ${row.flags.join(" ")}` : ", no flags"}`);
    say("action-read-text", row.flags.includes(SEEN) ? "Mark unread" : "Mark read");
    say("action-flag-text", row.flags.includes(FLAGGED) ? "Unflag" : "Flag");
    this.#drawMove();
  }

  #drawMove() {
    const move = /** @type {HTMLSelectElement} */ (byId("action-move"));
    const names = this.#model.folderList().map(({ name }) => name).filter((name) => name !== this.#model.open);
    if ([...move.options].slice(1).map((option) => option.value).join("\n") === names.join("\n") && move.options.length > 0) return;
    move.replaceChildren(h("option", { value: "" }, "Move"), ...names.map((name) => h("option", { value: name }, name)));
  }
}

/** @param {number} n @param {string} noun */
export function plural(n, noun) {
  return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
}

/** The hour of today, else the day. @param {string} text */
function shortDate(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return "";
  const today = date.toDateString() === new Date().toDateString();
  return today
    ? date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })
    : date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}

/** @param {string} text */
function longDate(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString("en-GB", { dateStyle: "full", timeStyle: "short" });
}
