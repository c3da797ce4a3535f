// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { frameBytes, humanBytes, humanTime, median, pollCost } from "../demo/page/cost.js";
import { Model, highest, uidset } from "../demo/page/model.js";

const folder = (name, messages, unseen, uidnext = messages + 1) => ({ name, uidValidity: 7, uidnext, messages, unseen });
const row = (uid, flags = ["\\Seen"]) => ({ uid, flags, date: "2026-11-21T05:17:58Z", from: "Mira", subject: `s${uid}` });

function loaded() {
  const model = new Model();
  model.load({
    account: "a", mailbox: "INBOX", messages: [row(3, []), row(2), row(1)],
    mailboxes: [folder("Zoo", 0, 0), folder("Sent", 4, 0), folder("INBOX", 3, 1), folder("Work", 2, 0), folder("Work/Old", 5, 2)],
  });
  return model;
}

const say = (model, event, mailbox, more = {}) =>
  model.apply({ id: "x", account: "a", timestamp: "2026-11-21T05:18:00.5Z", event, mailbox, ...(mailbox === "INBOX" ? { uidValidity: 7 } : {}), ...more });
const counts = (model, name = "INBOX") => `${model.folders.get(name)?.messages}/${model.folders.get(name)?.unseen}`;
const rows = (model) => model.rowList().map(({ uid, flags }) => `${uid}[${flags.join(" ")}]`).join(" ");

describe("an event on the model", () => {
  test("folders stand in their usual order", () => {
    assert.deepEqual(loaded().folderList().map(({ name }) => name), ["INBOX", "Sent", "Work", "Work/Old", "Zoo"]);
  });

  const cases = /** @type {[string, any[], string, string][]} */ ([
    ["new mail", ["MessageNew", "INBOX", { uidset: "4:5", flagNames: [] }], "5/3", "5[] 4[] 3[] 2[\\Seen] 1[\\Seen]"],
    ["new mail that was read", ["MessageAppend", "INBOX", { uidset: "4", flagNames: ["\\Seen"] }], "4/1", "4[\\Seen] 3[] 2[\\Seen] 1[\\Seen]"],
    ["new mail, the store's counts", ["MessageNew", "INBOX", { uidset: "4", messages: 12, unseen: 9 }], "12/9", "4[] 3[] 2[\\Seen] 1[\\Seen]"],
    ["new mail told twice", ["MessageNew", "INBOX", { uidset: "3" }], "3/1", "3[] 2[\\Seen] 1[\\Seen]"],
    ["flags set", ["FlagsSet", "INBOX", { uidset: "1:3", flagNames: ["\\Seen", "$A"] }], "3/0", "3[$A \\Seen] 2[$A \\Seen] 1[$A \\Seen]"],
    ["flags cleared", ["FlagsClear", "INBOX", { uidset: "1,3", flagNames: ["\\Seen"] }], "3/2", "3[] 2[\\Seen] 1[]"],
    ["read", ["MessageRead", "INBOX", { uidset: "3" }], "3/0", "3[\\Seen] 2[\\Seen] 1[\\Seen]"],
    ["trashed", ["MessageTrash", "INBOX", { uidset: "2" }], "3/1", "3[] 2[\\Deleted \\Seen] 1[\\Seen]"],
    ["expunged", ["MessageExpunge", "INBOX", { uidset: "2:99" }], "1/0", "1[\\Seen]"],
    ["expired", ["MessageExpire", "INBOX", { uidset: "1", messages: 2, unseen: 1 }], "2/1", "3[] 2[\\Seen]"],
    ["another incarnation", ["MessageNew", "INBOX", { uidValidity: 8, uidset: "300", messages: 12, unseen: 3 }], "12/3", "300[]"],
    ["unread alone", ["MessageNew", "INBOX", { uidset: "4", unseen: 9 }], "9/9", "4[] 3[] 2[\\Seen] 1[\\Seen]"],
    ["messages alone", ["MessageExpunge", "INBOX", { uidset: "2:3", messages: 0 }], "0/0", "1[\\Seen]"],
    ["about the account", ["Login", undefined], "3/1", "3[] 2[\\Seen] 1[\\Seen]"],
    ["one it does not know", ["vnd.example.Note", "INBOX", { messages: 3, unseen: 2 }], "3/2", "3[] 2[\\Seen] 1[\\Seen]"],
  ]);
  for (const [name, [event, mailbox, more], want, wantRows] of cases) {
    test(name, () => {
      const model = loaded();
      say(model, event, mailbox, more);
      assert.equal(counts(model), want);
      assert.equal(rows(model), wantRows);
    });
  }

  test("in a folder that is not open, counts come from the event or from new UIDs", () => {
    const model = loaded();
    assert.equal(say(model, "MessageNew", "Sent", { uidset: "5:6", flagNames: ["\\Seen"] }).list, false);
    assert.equal(counts(model, "Sent"), "6/0");
    say(model, "MessageNew", "Nowhere/Yet", { uidset: "1", uidnext: 2 });
    assert.equal(counts(model, "Nowhere/Yet"), "1/1");
    assert.equal(rows(model), "3[] 2[\\Seen] 1[\\Seen]");
  });

  test("a rename takes the folders below and the open one along", () => {
    const model = loaded();
    model.open = "Work/Old";
    say(model, "MailboxRename", "Done", { oldMailbox: "Work" });
    assert.equal(model.open, "Done/Old");
    assert.deepEqual(model.folderList().map(({ name }) => name), ["INBOX", "Sent", "Done", "Done/Old", "Zoo"]);
    assert.equal(counts(model, "Done/Old"), "5/2");
  });

  test("the open folder deleted: back to INBOX, which must be asked for", () => {
    const model = loaded();
    model.open = "Sent";
    assert.deepEqual(say(model, "MailboxDelete", "Sent"), { folders: true, list: true, fetch: "", arrived: [], refetch: true });
    assert.equal(model.open, "INBOX");
  });

  test("what can't be drawn from the event alone is asked for", () => {
    const model = loaded();
    assert.equal(say(model, "FlagsSet", "INBOX", { truncated: true, unseen: 0 }).refetch, true);
    assert.equal(say(model, "FlagsSet", "Sent", { truncated: true }).refetch, false);
    const { fetch, arrived } = say(model, "MessageNew", "INBOX", { uidset: "4:6" });
    assert.equal(fetch, "4:6");
    assert.deepEqual(arrived, [4, 5, 6]);
  });

  test("a huge set is bounded, and the highest win", () => {
    const model = loaded();
    say(model, "MessageNew", "INBOX", { uidset: "10:4294967295" });
    assert.equal(model.rows.size, 500);
    assert.equal(model.rowList()[0].uid, 4294967295);
  });

  test("texts are filled in only where they belong", () => {
    const model = loaded();
    say(model, "MessageNew", "INBOX", { uidset: "4" });
    assert.equal(model.fill("Sent", 7, [row(4)]), false);
    assert.equal(model.fill("INBOX", 8, [row(4)]), false);
    assert.equal(model.rows.get(4)?.subject, undefined);
    assert.equal(model.fill("INBOX", 7, [row(4), row(99)]), true);
    assert.equal(model.rows.get(4)?.subject, "s4");
    assert.deepEqual(model.rows.get(4)?.flags, [], "the event's flags are newer than the answer's");
    assert.equal(model.rows.has(99), false);
  });
});

test("sets of UIDs", () => {
  assert.deepEqual([1, 2, 5, 6, 9].filter(uidset("1:5,9")), [1, 2, 5, 9]);
  assert.deepEqual(highest("1:3,7,9:10", 4), [3, 7, 9, 10]);
  assert.deepEqual(highest("", 4), []);
});

describe("the bill", () => {
  const bill = (elapsedMs, intervalMs, changes) => pollCost({ elapsedMs, intervalMs, changes, changedBytes: 1_000, unchangedBytes: 100 });

  test("polls are counted as they fall, and those with news once however much there is", () => {
    assert.deepEqual(bill(60_000, 10_000, []), { requests: 6, notModified: 6, bytes: 600, delayMs: 5_000 });
    assert.deepEqual(bill(60_000, 10_000, [1_000, 9_000, 35_000]), { requests: 6, notModified: 4, bytes: 2_400, delayMs: (9_000 + 1_000 + 5_000) / 3 });
    assert.deepEqual(bill(9_999, 10_000, [1_000]), { requests: 0, notModified: 0, bytes: 0, delayMs: 9_000 });
    assert.deepEqual(bill(65_000, 10_000, [64_000]), { requests: 6, notModified: 6, bytes: 600, delayMs: 6_000 });
  });

  test("frames have headers", () => {
    for (const [payload, masked, want] of /** @type {[number, boolean, number][]} */ ([[0, false, 2], [125, false, 127], [125, true, 131], [126, false, 130], [65_535, false, 65_539], [65_536, true, 65_550]])) {
      assert.equal(frameBytes(payload, masked), want);
    }
  });

  test("figures for people", () => {
    assert.equal(median([3, 1, 2]), 2);
    assert.equal(median([4, 1]), 2.5);
    assert.ok(Number.isNaN(median([])));
    assert.deepEqual([0, 999, 1_234, 56_789, 1_500_000].map(humanBytes), ["0 B", "999 B", "1.2 kB", "57 kB", "1.5 MB"]);
    assert.deepEqual([NaN, -1, 3.21, 45.6, 1_500, 61_000].map(humanTime), ["–", "0.0 ms", "3.2 ms", "46 ms", "1.5 s", "61 s"]);
  });
});
