// SPDX-License-Identifier: Apache-2.0
/**
 * The page's side of mailbell in Roundcube: what an event changes on the page, and when Roundcube asks its server.
 *
 *     event ──► counts, flags ──► on the page at once, without a request
 *           └─► what the page lacks ──500 ms──► one check-recent, or the list of folders; in a hidden tab once it is seen
 *
 * What holds always:
 * - Only what the page does not show costs a request. So its own changes, and events that come twice, cost nothing,
 *   and another tab of the same session still gets them.
 * - Roundcube's own interval runs on unless events are known to flow; the page without mailbell is Roundcube as it is.
 * - What the socket missed is fetched: all counts, the folders, the open list.
 */

const WINDOW = 500; // ms; several changes within it are one refresh
const PATIENCE = 3_000; // ms for which a refresh waits for the page's own requests, which may bring what it lacks
const ASK_AGAIN = 100;
const KEEP_ALIVE = 0.75; // of the session's lifetime
const TRY_AGAIN = 10_000; // ms, and up to as many more, after a request that failed
const OUTAGE = 1_000; // ms; who is told to move is back sooner, and a mailbell that was restarted takes longer
const FIRST = 10_000; // ms for a page's first socket, which may be slow to come while nothing is wrong
const RETURN = 4; // seconds within which pages fetch after an outage, where catchUp has no say
const RING_ONCE = 2_000; // ms for which one tab of several has a message's bell for itself

/** IMAP flags to what a row of Roundcube's list is called with, and its value when the flag is set. */
const FLAGS = new Map([
  ["\\seen", ["unread", false]], ["\\flagged", ["flagged", true]], ["\\answered", ["replied", true]],
  ["\\deleted", ["deleted", true]], ["$forwarded", ["forwarded", true]],
]);
const ARRIVALS = new Set(["MessageNew", "MessageAppend"]);
/** Events that are a flag by another name (RFC 5423, section 4.2). */
const FLAG_EVENTS = new Map([["MessageRead", "\\Seen"], ["MessageTrash", "\\Deleted"]]);
const DEPARTURES = new Set(["MessageExpunge", "MessageExpire"]);
const FOLDERS = new Set(["MailboxCreate", "MailboxDelete", "MailboxRename", "MailboxSubscribe", "MailboxUnSubscribe"]);

/** Called once by the page. @param {any} rcmail @param {{ Mailbell: any, GatewayError: any }} client */
export function start(rcmail, client) {
  return new Live(rcmail, client);
}

/** A folder's name as Roundcube has it: modified UTF-7 (RFC 3501, section 5.1.3). @param {string} name */
export function encodeFolder(name) {
  return name.replace(/&|[^\x20-\x7e]+/g, (run) => {
    if (run === "&") return "&-";
    let bytes = "";
    for (let i = 0; i < run.length; i++) bytes += String.fromCharCode(run.charCodeAt(i) >> 8, run.charCodeAt(i) & 0xff);
    return `&${btoa(bytes).replace(/=+$/, "").replace(/\//g, ",")}-`;
  });
}

/**
 * What a folder is called after renames, its own or those of folders above it, in their order.
 * @param {string} folder @param {Map<string, string>} renames @param {string} delimiter
 */
export function renamedTo(folder, renames, delimiter) {
  for (const [from, to] of renames) {
    if (folder === from) folder = to;
    else if (folder.startsWith(from + delimiter)) folder = to + folder.slice(from.length);
  }
  return folder;
}

/** "1:300,405" as ranges; undefined stands for messages that the event does not name. @param {string} [text] */
export function parseUIDs(text) {
  if (!text) return undefined;
  return text.split(",").map((part) => {
    const [low, high = low] = part.split(":").map(Number);
    return [low, high];
  });
}

/** What happened to the open folder since the page last asked. */
class Lack {
  everything = false;
  /** @param {string} folder the open one */
  constructor(folder) {
    this.folder = folder;
  }

  /** @type {number[][]} */ arrived = [];
  /** @type {number[][]} */ gone = [];
  /** @type {number | undefined} */ messages;
}

class Live {
  // Static after construction.
  #rcmail;
  #settings;
  #chosen; // the user's interval in seconds; 0 is never
  #client;
  #bell;
  #subscription;
  #tabs = typeof BroadcastChannel === "function" ? new BroadcastChannel("mailbell-roundcube") : null;

  // What is to be asked.
  /** @type {Lack | null} */ #list = null;
  /** @type {Set<string>} */ #counts = new Set();
  /** @type {"no" | "new" | "all"} */ #folders = "no";
  /** @type {Map<string, string>} */ #renamed = new Map();
  #timer = 0;
  #since = 0; // when the first of it was noted
  #asking = false;
  #retry = 0;
  #failedFolders = false; // the retry is for the list of folders too

  #up = false;
  #downSince; // with the time that the page's first socket may take
  #owes = false; // what an outage hid is to be fetched
  #polled = false; // a refresh went out while no events flowed
  #rang = 0; // when the bell was rung last
  #upAtRefresh = false; // events flowed when the last refresh went out, and since the one before
  #catchUp = 0;
  #firstTicket;

  constructor(rcmail, client) {
    this.#rcmail = rcmail;
    this.#client = client;
    this.#settings = rcmail.env.mailbell;
    this.#chosen = rcmail.env.refresh_interval || 0;
    this.#firstTicket = this.#settings.ticket;
    this.#downSince = Date.now() + (this.#firstTicket?.url ? FIRST : 0);
    this.#wrapKeepAlive();
    this.#listen();
    this.#bell = new client.Mailbell({ gateway: (need) => this.#ticket(need), store: "session" });
    this.#bell.addEventListener("state", () => this.#review());
    this.#subscription = this.#bell.subscribe(this.#settings.account, {}, {
      event: (event, info) => this.#hear(event, info),
      refetch: (info) => this.#fetchAll(info),
      subscribed: (info) => this.#subscribed(info),
    });
    this.#mark();
  }

  // ---- Tickets ----------------------------------------------------------------------------------------------

  /** The page came with a ticket; for another one it asks its own server, whose session says who asks. */
  async #ticket({ signal }) {
    const first = this.#firstTicket;
    this.#firstTicket = null;
    // Its life began when the server wrote the page.
    if (first && (!first.url || performance.now() < (first.expiresIn - 5) * 1_000)) return first;
    const { rcmail } = this;
    const response = await fetch(rcmail.url("plugin.mailbell.ticket"), {
      method: "POST", body: new URLSearchParams({ _remote: "1" }), headers: this.#headers(), signal,
    });
    if (!response.ok) {
      throw new this.#client.GatewayError(`ticket: HTTP ${response.status}`, { status: response.status === 403 ? 403 : 0 });
    }
    const ticket = (await response.json()).env?.mailbell_ticket;
    if (!ticket) throw new this.#client.GatewayError("ticket: the session has ended", { status: 401 });
    return ticket;
  }

  #headers() {
    return { "X-Roundcube-Request": this.#rcmail.env.request_token, "X-Requested-With": "XMLHttpRequest" };
  }

  /** Whether all that events told is on the page, or waits for the tab to be seen, and nothing is being asked for. */
  get settled() {
    return !this.#timer && !this.#asking;
  }

  get rcmail() {
    return this.#rcmail;
  }

  /** @param {{ catchUp: string }} info */
  #subscribed({ catchUp }) {
    if (catchUp === "current" || catchUp === "replay") {
      this.#restoreCounts();
      if (this.#savedCounts().stale) this.#fetchAll({ reason: "fresh" });
    }
    this.#review();
  }

  // ---- Events -----------------------------------------------------------------------------------------------

  /** @param {any} event @param {{ replayed?: boolean }} [info] */
  #hear(event, info) {
    if (FOLDERS.has(event.event)) return this.#hearFolder(event);
    if (!event.mailbox) return;
    const folder = encodeFolder(event.mailbox);
    if (!this.rcmail.gui_objects.mailboxlist) {
      // A page without folders, but the next one will have them.
      this.#saveCounts((saved) => {
        if (typeof event.unseen === "number") saved.counts[folder] = event.unseen;
        else saved.stale = true;
      });
      return;
    }
    const arrival = ARRIVALS.has(event.event);
    const open = this.#isOpen(folder);
    if (!open && !this.#knows(folder)) return;

    if (typeof event.unseen === "number") this.#setCount(folder, event.unseen, arrival && !open);
    else this.#need(() => this.#counts.add(folder));
    if (typeof event.messages === "number" && folder === this.rcmail.env.trash_mailbox) this.rcmail.set_trash_count(event.messages);
    if (open) this.#hearOpen(folder, event);
    // What is replayed after an outage, the polls of that time have announced.
    if (arrival && !(info?.replayed && this.#polled)) this.#ring(folder, open, event);
  }

  /** @param {any} event */
  #hearFolder(event) {
    if (!this.rcmail.gui_objects.mailboxlist) return;
    if (event.event === "MailboxRename" && event.oldMailbox) {
      this.#renamed.set(encodeFolder(event.oldMailbox), encodeFolder(event.mailbox));
    }
    this.#need(() => { if (this.#folders === "no") this.#folders = "new"; });
  }

  /** A change in what the page lists. @param {string} folder @param {any} event */
  #hearOpen(folder, event) {
    const uids = parseUIDs(event.uidset);
    const named = FLAG_EVENTS.get(event.event);
    const flags = named ? [named] : event.event === "FlagsSet" || event.event === "FlagsClear" ? event.flagNames ?? [] : undefined;
    if (flags && uids) {
      for (const flag of flags) this.#flag(folder, uids, flag, event.event !== "FlagsClear");
      // Where deleted messages are not shown, that flag adds or removes rows.
      if (!this.rcmail.env.skip_deleted || !flags.some((flag) => flag.toLowerCase() === "\\deleted")) return;
    }
    this.#need(() => {
      const lack = this.#lack();
      lack.messages = event.messages ?? lack.messages;
      if (uids && ARRIVALS.has(event.event)) lack.arrived.push(...uids);
      else if (uids && DEPARTURES.has(event.event)) lack.gone.push(...uids);
      else lack.everything = true;
    });
  }

  /** @param {string} folder @param {number[][]} uids @param {string} flag @param {boolean} set */
  #flag(folder, uids, flag, set) {
    const [name, whenSet] = FLAGS.get(flag.toLowerCase()) ?? [];
    if (!name) return;
    const value = set ? whenSet : !whenSet;
    for (const [key, uid] of this.#rows(folder)) {
      // Saying it twice would count a thread's flagged messages twice.
      if (within(uids, uid) && Boolean(this.rcmail.message_list.rows[key][name]) !== value) this.rcmail.set_message(key, name, value);
    }
  }

  /** Keys and UIDs of the folder's messages in the list; in a search over several folders the keys are "uid-folder". */
  *#rows(folder) {
    for (const key of Object.keys(this.rcmail.message_list?.rows ?? {})) {
      const [, uid, of = this.rcmail.env.mailbox] = /^(\d+)(?:-(.+))?$/.exec(key) ?? [];
      if (uid && of === folder) yield /** @type {[string, number]} */ ([key, Number(uid)]);
    }
  }

  /** @param {string} folder */
  #isOpen(folder) {
    const { rcmail } = this;
    return Boolean(rcmail.message_list) && (folder === rcmail.env.mailbox || rcmail.is_multifolder_listing());
  }

  /** @param {string} folder */
  #knows(folder) {
    return Boolean(this.rcmail.env.mailboxes?.[folder]);
  }

  // ---- Unread counts ----------------------------------------------------------------------------------------

  /** @param {string} folder @param {number} count @param {boolean} arrived */
  #setCount(folder, count, arrived) {
    this.rcmail.set_unread_count(folder, count, folder === "INBOX", arrived && count > 0 ? "recent" : "");
    this.#saveCounts((saved) => { saved.counts[folder] = count; });
  }

  /**
   * The server's session remembers counts from its last look at a folder, which is long ago when nothing polls. What
   * events said outlives the page here, as the position does that it belongs to.
   */
  #restoreCounts() {
    for (const [folder, count] of Object.entries(this.#savedCounts().counts)) {
      if (this.#knows(folder) && !this.#isOpen(folder)) this.rcmail.set_unread_count(folder, count, folder === "INBOX");
    }
  }

  get #countsKey() {
    return `mailbell-counts:${this.#settings.account}`;
  }

  /** @returns {{ counts: Record<string, number>, stale: boolean }} stale: something happened that these do not tell */
  #savedCounts() {
    try {
      return { counts: {}, stale: false, ...JSON.parse(sessionStorage.getItem(this.#countsKey) ?? "{}") };
    } catch {
      return { counts: {}, stale: false };
    }
  }

  /** @param {(saved: { counts: Record<string, number>, stale: boolean }) => void} change */
  #saveCounts(change) {
    const saved = this.#savedCounts();
    change(saved);
    try {
      sessionStorage.setItem(this.#countsKey, JSON.stringify(saved));
    } catch {
      // storage may be forbidden; then a reload shows the session's counts, as it does without mailbell
    }
  }

  // ---- Asking the server ------------------------------------------------------------------------------------

  /** The socket could not tell what happened. @param {{ reason: string }} info */
  #fetchAll({ reason }) {
    const shown = Boolean(this.rcmail.gui_objects.mailboxlist);
    this.#saveCounts((saved) => {
      saved.counts = {};
      saved.stale = !shown;
    });
    if (!shown) return;
    this.#need(() => {
      // The page is as new as the socket, but for what came in between.
      if (reason === "fresh") this.#counts.add("*");
      else this.#folders = "all";
      this.#lack().everything = true;
    });
  }

  /** @param {() => void} note */
  #need(note) {
    note();
    this.#since ||= Date.now();
    if (!this.#timer) this.#timer = setTimeout(() => this.#flush(), WINDOW);
  }

  #flush() {
    this.#timer = 0;
    const { rcmail } = this;
    if (this.#since === 0) return;
    const own = rcmail.busy || globalThis.jQuery?.active > 0;
    if (this.#asking || (own && Date.now() - this.#since < WINDOW + PATIENCE)) {
      this.#timer = setTimeout(() => this.#flush(), ASK_AGAIN);
      return;
    }
    const seen = !document.hidden;
    if (seen && this.#folders !== "no") {
      this.#askFolders();
      return;
    }
    const list = seen ? this.#list : null;
    const folders = [...this.#counts];
    if (list && this.#lacks(list)) folders.push(...(rcmail.is_multifolder_listing() ? ["*"] : [rcmail.env.mailbox]));
    this.#counts.clear();
    if (seen) this.#list = null;
    if (!this.#list && this.#folders === "no") this.#since = 0;
    if (folders.length > 0) this.#askRecent([...new Set(folders)], list);
  }

  /** What the open folder lacks; of the one that was open before, nothing is of interest. */
  #lack() {
    if (this.#list?.folder !== this.rcmail.env.mailbox) this.#list = new Lack(this.rcmail.env.mailbox);
    return this.#list;
  }

  /** Whether the list as it is now differs from what the events say. @param {Lack} lack */
  #lacks(lack) {
    const { rcmail } = this;
    if (lack.folder !== rcmail.env.mailbox) return false;
    if (lack.everything || rcmail.env.search_request || rcmail.is_multifolder_listing()) return true;
    if (lack.messages !== undefined && rcmail.env.exists !== undefined && Number(rcmail.env.exists) !== lack.messages) return true;
    const shown = [...this.#rows(rcmail.env.mailbox)].map(([, uid]) => uid);
    if (shown.some((uid) => within(lack.gone, uid))) return true;
    const gone = (/** @type {number} */ uid) => within(lack.gone, uid);
    const wanted = lack.arrived.reduce((sum, [low, high]) => sum + high - low + 1, 0);
    return shown.filter((uid) => within(lack.arrived, uid) && !gone(uid)).length < wanted;
  }

  /** @param {string[]} folders @param {Lack | null} list */
  #askRecent(folders, list) {
    const { rcmail } = this;
    const params = { ...rcmail.check_recent_params(), _mailbell: folders };
    if (!list) delete params._list;
    if (!list?.everything) delete params._uids;
    const request = rcmail.http_post("check-recent", params);
    if (!request) return;
    this.#asking = true;
    request.fail(() => this.#failed()).always(() => this.#answered());
  }

  async #askFolders() {
    const { rcmail } = this;
    const wanted = this.#folders;
    this.#folders = "no";
    this.#asking = true;
    try {
      const response = await fetch(rcmail.url("mail/plugin.mailbell.folders"), {
        method: "POST", headers: this.#headers(),
        body: new URLSearchParams({ _mbox: rcmail.env.mailbox, _token: rcmail.env.request_token, _all: wanted === "all" ? "1" : "" }),
      });
      if (!response.ok) throw new Error(`folders: HTTP ${response.status}`);
      this.#drawFolders(await response.json());
    } catch (error) {
      rcmail.log?.(error);
      this.#failed(wanted);
    } finally {
      this.#answered();
    }
  }

  /** @param {{ html: string, counts: Record<string, number>, env: { mailboxes: Record<string, any>, mailboxes_list: string[] } }} answer */
  #drawFolders({ html, counts, env }) {
    const { rcmail } = this;
    // A session that has ended is answered with something else.
    const fresh = html && new DOMParser().parseFromString(html, "text/html").querySelector("ul");
    if (!fresh) throw new Error("folders: no list in the answer");
    rcmail.set_env(env);
    rcmail.treelist.container.html(fresh.innerHTML);
    rcmail.treelist.reset(true, true);
    const known = { ...rcmail.env.unread_counts, ...counts };
    rcmail.env.unread_counts = {};
    for (const [folder, count] of Object.entries(known)) {
      if (this.#knows(folder)) rcmail.set_unread_count(folder, count, folder === "INBOX");
    }
    this.#saveCounts((saved) => {
      for (const folder of Object.keys(saved.counts)) if (!this.#knows(folder)) delete saved.counts[folder];
      Object.assign(saved.counts, counts);
    });
    const open = rcmail.env.mailbox;
    const now = renamedTo(open, this.#renamed, rcmail.env.delimiter ?? "/");
    this.#renamed.clear();
    if (this.#knows(open)) rcmail.treelist.select(open);
    else rcmail.list_mailbox(this.#knows(now) ? now : "INBOX");
  }

  #answered() {
    this.#asking = false;
    if (this.#since > 0 && !this.#timer) this.#timer = setTimeout(() => this.#flush(), ASK_AGAIN);
  }

  /** What was asked for is still lacking; nothing else would ask again soon. @param {"no" | "new" | "all"} [folders] */
  #failed(folders = "no") {
    if (folders !== "no") this.#failedFolders = true;
    if (this.#retry) return;
    this.#retry = setTimeout(() => {
      this.#retry = 0;
      this.#fetchAll({ reason: this.#failedFolders ? "failed" : "fresh" });
      this.#failedFolders = false;
    }, TRY_AGAIN * (1 + Math.random()));
  }

  // ---- The interval -----------------------------------------------------------------------------------------

  #review() {
    const up = this.#bell?.state === "connected" && Boolean(this.#subscription?.live);
    if (up === this.#up) return;
    this.#up = up;
    clearTimeout(this.#catchUp);
    this.#mark();
    // Roundcube leads to the login page, or stays with a message that somebody writes and asks no more.
    if (this.rcmail.env.server_error === 401) return;
    this.#setInterval();
    this.rcmail.start_keepalive();
    if (up) {
      // A store that could not report then does not report it later: the log has nothing of it to replay.
      this.#owes ||= Date.now() - this.#downSince > OUTAGE;
      if (this.#owes) {
        this.#soon(() => {
          this.#owes = false;
          this.#fetchAll({ reason: "fresh" });
        }, this.#settings.catchUp || RETURN);
      }
      return;
    }
    this.#downSince = Date.now();
    this.#polled = false;
    if (this.#chosen === 0) return;
    this.#upAtRefresh = false;
    if (this.#settings.catchUp > 0) this.#soon(() => this.rcmail.refresh(), this.#settings.catchUp);
  }

  /** Not everybody at the same moment: mailbell is lost to all pages at once. @param {() => void} ask @param {number} seconds */
  #soon(ask, seconds) {
    this.#catchUp = setTimeout(ask, 1_000 * seconds * (0.1 + 0.9 * Math.random()));
  }

  /** Whether the page watches folders of others, whose changes are told to their owners: for these it must ask. */
  get #blind() {
    const { foreign, checkAll } = this.#settings;
    const watched = checkAll ? this.rcmail.env.mailboxes_list ?? [] : [this.rcmail.env.mailbox ?? ""];
    return watched.some((folder) => foreign.some((prefix) => folder.startsWith(prefix)));
  }

  #setInterval() {
    const { slowRefresh } = this.#settings;
    const { rcmail } = this;
    const slow = this.#up && slowRefresh > 0 && !this.#blind ? Math.max(slowRefresh, this.#chosen) : this.#chosen;
    if (this.#chosen === 0 || rcmail.env.refresh_interval === slow) return;
    rcmail.env.refresh_interval = slow;
    rcmail.start_refresh();
  }

  /** Nothing polls, so Roundcube's keep-alive is what keeps the session: later, but in time. */
  #wrapKeepAlive() {
    const { rcmail } = this;
    const start = rcmail.start_keepalive;
    rcmail.start_keepalive = () => {
      start.call(rcmail);
      if (!this.#up || !rcmail._keepalive || !rcmail.env.session_lifetime) return;
      clearInterval(rcmail._keepalive);
      const alive = () => {
        if (rcmail.busy) setTimeout(alive, 5_000);
        else rcmail.keep_alive();
      };
      rcmail._keepalive = setInterval(alive, Math.max(30, KEEP_ALIVE * rcmail.env.session_lifetime) * 1_000);
    };
  }

  #mark() {
    document.documentElement.dataset.mailbell = this.#up ? "up" : "down";
  }

  // ---- The page around it -----------------------------------------------------------------------------------

  #listen() {
    const { rcmail } = this;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#since > 0 && !this.#timer) this.#flush();
    });
    rcmail.addEventListener("selectfolder", () => this.#setInterval());
    rcmail.addEventListener("responseaftergetunread", () => { if (this.#up) this.#restoreCounts(); });
    rcmail.addEventListener("requestrefresh", (params) => {
      this.#upAtRefresh = this.#up;
      this.#polled ||= !this.#up;
      return params;
    });
    rcmail.addEventListener("responsebeforerefresh", ({ response }) => {
      // What it would announce has been rung by its event.
      if (!this.#upAtRefresh || !this.#up || this.#blind || !response.callbacks) return;
      response.callbacks = response.callbacks.filter(([name]) => name !== "plugin.newmail_notifier");
    });
    // Also called by the frame that a draft is saved in.
    const sessionError = rcmail.session_error;
    rcmail.session_error = (...args) => {
      sessionError.apply(rcmail, args);
      this.#end();
    };
    const leave = () => {
      this.#tabs?.postMessage(rcmail.env.user_id);
      this.#end();
    };
    rcmail.addEventListener("beforelogout", leave);
    rcmail.addEventListener("beforeswitch-task", (task) => { if (task === "logout") leave(); });
    this.#tabs?.addEventListener("message", ({ data }) => { if (data === rcmail.env.user_id) this.#end(); });
  }

  /** The session is over: so is the socket. */
  #end() {
    if (this.#bell.state === "closed") return;
    this.#bell.close();
    clearTimeout(this.#timer);
    clearTimeout(this.#catchUp);
    clearTimeout(this.#retry);
    this.#timer = this.#since = 0;
    try {
      sessionStorage.removeItem(this.#countsKey);
      sessionStorage.removeItem(`mailbell:${this.#settings.account}`);
    } catch {
      // nothing was kept then
    }
  }

  // ---- newmail_notifier -------------------------------------------------------------------------------------

  /** Does what the newmail_notifier plugin does after a poll. @param {string} folder @param {boolean} open @param {any} event */
  #ring(folder, open, event) {
    const { notify, checkAll } = this.#settings;
    const { rcmail } = this;
    if (!notify || event.unseen === 0 || event.flagNames?.some((flag) => flag.toLowerCase() === "\\seen")) return;
    const delimiter = rcmail.env.delimiter ?? "/";
    if (notify.silent.some((one) => `${folder}${delimiter}`.startsWith(`${one}${delimiter}`))) return;
    if (!open && folder !== "INBOX" && !checkAll) return;
    if (Date.now() - this.#rang < WINDOW) return; // several at once ring once, as after a poll
    this.#rang = Date.now();
    const ring = () => {
      rcmail.set_env("newmail_notifier_timeout", notify.timeout);
      rcmail.triggerEvent("plugin.newmail_notifier", { basic: notify.basic, sound: notify.sound, desktop: notify.desktop });
    };
    if (!navigator.locks) return ring();
    // One tab is enough to hear it.
    navigator.locks.request(`mailbell-ring:${event.id}`, { ifAvailable: true }, async (lock) => {
      if (!lock) return;
      ring();
      await new Promise((done) => setTimeout(done, RING_ONCE));
    });
  }
}

/** @param {number[][]} ranges @param {number} uid */
function within(ranges, uid) {
  return ranges.some(([low, high]) => low <= uid && uid <= high);
}
