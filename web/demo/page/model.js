// SPDX-License-Identifier: Apache-2.0
/**
 * What the page knows of an account, and what an event does to it. Pure: no document, no network, no clock.
 *
 * Rows are kept for the open folder only; of the others the counts are enough, and those come with the events.
 */

/** @typedef {import("../../mailbell.js").MailEvent} MailEvent */
/** @typedef {{ name: string, uidValidity: number, uidnext: number, messages: number, unseen: number }} Folder */
/**
 * A row without `subject` is a message that only its events told of.
 * @typedef {{ uid: number, flags: string[], date: string, from?: string, subject?: string, preview?: string, text?: string }} Row
 */
/** @typedef {{ account: string, mailboxes: Folder[], mailbox: string, messages: Row[] }} State */
/**
 * What an event did: which parts changed, of which new messages the page should ask more, and whether it can't be
 * drawn from the event alone.
 * @typedef {{ folders: boolean, list: boolean, fetch: string, arrived: number[], refetch: boolean }} Effect
 */

export const SEEN = "\\Seen";
export const FLAGGED = "\\Flagged";
const DELETED = "\\Deleted";
const MAX_ROWS = 500;
const FIRST = ["INBOX", "Drafts", "Sent", "Archive", "Trash"];

export class Model {
  /** @type {Map<string, Folder>} */ folders = new Map();
  /** @type {Map<number, Row>} */ rows = new Map();
  open = "INBOX";
  version = 0; // grows with every event; an answer that was asked for at another version is stale

  /** Takes a state as the store has it. @param {State} state */
  load(state) {
    this.folders = new Map(state.mailboxes.map((folder) => [folder.name, { ...folder }]));
    const texts = state.mailbox === this.open ? this.rows : new Map();
    this.open = state.mailbox;
    this.rows = new Map(state.messages.map((row) => [row.uid, { ...row, text: row.text ?? texts.get(row.uid)?.text }]));
  }

  /** The well-known folders first, the rest by name. */
  folderList() {
    const rank = (/** @type {Folder} */ { name }) => (FIRST.indexOf(name) + FIRST.length + 1) % (FIRST.length + 1);
    return [...this.folders.values()].sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
  }

  /** Newest first. */
  rowList() {
    return [...this.rows.values()].sort((a, b) => b.uid - a.uid);
  }

  /**
   * Completes rows of the open folder with what the store has; false when these are other messages.
   * @param {string} mailbox @param {number} uidValidity @param {Row[]} rows
   */
  fill(mailbox, uidValidity, rows) {
    if (mailbox !== this.open || uidValidity !== this.folders.get(mailbox)?.uidValidity) return false;
    for (const row of rows) {
      const have = this.rows.get(row.uid);
      if (have) Object.assign(have, row, { flags: have.flags });
    }
    return rows.length > 0;
  }

  /** @param {MailEvent} event @returns {Effect} */
  apply(event) {
    this.version += 1;
    /** @type {Effect} */
    const effect = { folders: true, list: false, fetch: "", arrived: [], refetch: false };
    if (!event.mailbox) return { ...effect, folders: false };
    if (event.event === "MailboxDelete") {
      this.folders.delete(event.mailbox);
      if (this.open === event.mailbox) this.#leave(effect);
      return effect;
    }
    if (event.event === "MailboxRename") this.#rename(event, effect);
    const folder = this.#folder(event.mailbox);
    const open = event.mailbox === this.open;
    if (event.uidValidity && event.uidValidity !== folder.uidValidity) {
      // Another incarnation of the folder: what was known of its messages is void.
      Object.assign(folder, { uidValidity: event.uidValidity, uidnext: 0, messages: 0, unseen: 0 });
      if (open) this.rows.clear();
    }
    if (event.uidset) this.#messages(event, folder, open, effect);
    if (event.truncated && open) effect.refetch = true;
    folder.uidnext = Math.max(folder.uidnext, event.uidnext ?? 0);
    folder.messages = event.messages ?? folder.messages;
    folder.unseen = event.unseen ?? folder.unseen;
    // An event may tell one count alone: the other one gives way.
    if (event.messages !== undefined) folder.unseen = Math.min(folder.unseen, folder.messages);
    else folder.messages = Math.max(folder.messages, folder.unseen);
    effect.list ||= open;
    return effect;
  }

  /** @param {string} name */
  #folder(name) {
    let folder = this.folders.get(name);
    if (!folder) {
      folder = { name, uidValidity: 0, uidnext: 0, messages: 0, unseen: 0 };
      this.folders.set(name, folder);
    }
    return folder;
  }

  /** The open folder is gone. @param {Effect} effect */
  #leave(effect) {
    this.open = "INBOX";
    this.rows.clear();
    effect.list = effect.refetch = true;
  }

  /** @param {MailEvent} event @param {Effect} effect */
  #rename({ mailbox = "", oldMailbox = "" }, effect) {
    for (const folder of [...this.folders.values()]) {
      const rest = folder.name.slice(oldMailbox.length);
      if (!folder.name.startsWith(oldMailbox) || !/^([/.]|$)/.test(rest) || folder.name === "INBOX") continue;
      this.folders.delete(folder.name);
      if (this.open === folder.name) {
        this.open = mailbox + rest;
        effect.list = true;
      }
      folder.name = mailbox + rest;
      this.folders.set(folder.name, folder);
    }
  }

  /** @param {MailEvent} event @param {Folder} folder @param {boolean} open @param {Effect} effect */
  #messages(event, folder, open, effect) {
    const flags = event.flagNames ?? [];
    switch (event.event) {
      case "MessageNew":
      case "MessageAppend":
        this.#arrive(event, folder, open, effect);
        break;
      case "MessageExpunge":
      case "MessageExpire":
        this.#each(event, open, (row) => {
          this.rows.delete(row.uid);
          folder.messages = Math.max(0, folder.messages - 1);
          if (!row.flags.includes(SEEN)) folder.unseen = Math.max(0, folder.unseen - 1);
        });
        break;
      case "MessageRead":
        this.#flag(event, folder, open, [SEEN], true);
        break;
      case "MessageTrash":
        this.#flag(event, folder, open, [DELETED], true);
        break;
      case "FlagsSet":
        this.#flag(event, folder, open, flags, true);
        break;
      case "FlagsClear":
        this.#flag(event, folder, open, flags, false);
        break;
    }
  }

  /** @param {MailEvent} event @param {Folder} folder @param {boolean} open @param {Effect} effect */
  #arrive(event, folder, open, effect) {
    const flags = [...(event.flagNames ?? [])].sort();
    const uids = highest(event.uidset ?? "", MAX_ROWS).filter((uid) => open ? !this.rows.has(uid) : uid >= folder.uidnext);
    folder.messages += uids.length;
    if (!flags.includes(SEEN)) folder.unseen += uids.length;
    if (!open || uids.length === 0) return;
    for (const uid of uids) this.rows.set(uid, { uid, flags, date: event.timestamp });
    for (const row of this.rowList().slice(MAX_ROWS)) this.rows.delete(row.uid);
    effect.arrived = uids;
    effect.fetch = event.uidset ?? "";
  }

  /** @param {MailEvent} event @param {Folder} folder @param {boolean} open @param {string[]} flags @param {boolean} on */
  #flag(event, folder, open, flags, on) {
    this.#each(event, open, (row) => {
      const seen = row.flags.includes(SEEN);
      const rest = row.flags.filter((flag) => !flags.includes(flag));
      row.flags = on ? [...rest, ...flags].sort() : rest;
      const now = row.flags.includes(SEEN);
      if (now !== seen) folder.unseen = Math.max(0, folder.unseen + (now ? -1 : 1));
    });
  }

  /** The known rows that the event names. @param {MailEvent} event @param {boolean} open @param {(row: Row) => void} then */
  #each(event, open, then) {
    if (!open) return;
    const has = uidset(event.uidset ?? "");
    for (const row of [...this.rows.values()]) if (has(row.uid)) then(row);
  }
}

/** @param {string} set such as "1:300,405" @returns {[number, number][]} */
function ranges(set) {
  return set.split(",").filter(Boolean).map((part) => {
    const [low, high = low] = part.split(":").map(Number);
    return [low, high];
  });
}

/** Whether a set has a UID. @param {string} set @returns {(uid: number) => boolean} */
export function uidset(set) {
  const all = ranges(set);
  return (uid) => all.some(([low, high]) => low <= uid && uid <= high);
}

/** The highest UIDs of a set, ascending, at most so many. @param {string} set @param {number} limit */
export function highest(set, limit) {
  /** @type {number[]} */
  const uids = [];
  for (const [low, high] of ranges(set).reverse()) {
    for (let uid = high; uid >= low && uids.length < limit; uid--) uids.push(uid);
  }
  return uids.reverse();
}
