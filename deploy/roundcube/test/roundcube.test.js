// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import test from "node:test";
import { encodeFolder, parseUIDs, renamedTo } from "../mailbell/roundcube.js";

test("folder names are Roundcube's: modified UTF-7", () => {
  for (const [name, want] of [
    ["INBOX", "INBOX"], ["Work/2026", "Work/2026"], ["Entwürfe", "Entw&APw-rfe"], ["R&D", "R&-D"], ["&", "&-"],
    ["~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"], ["☺!", "&Jjo-!"], ["😀", "&2D3eAA-"],
    ["Ü&ß", "&ANw-&-&AN8-"], ["Отправленные", "&BB4EQgQ,BEAEMAQyBDsENQQ9BD0ESwQ1-"],
  ]) assert.equal(encodeFolder(name), want);
});

test("uidsets are ranges", () => {
  assert.deepEqual(parseUIDs("5"), [[5, 5]]);
  assert.deepEqual(parseUIDs("1:300,405"), [[1, 300], [405, 405]]);
  assert.equal(parseUIDs(undefined), undefined);
  assert.equal(parseUIDs(""), undefined);
});

test("an open folder keeps its messages when it, or one above it, is renamed", () => {
  const renames = new Map([["Work", "Office"], ["Office/2026", "Office/This year"]]);
  for (const [open, want] of [
    ["INBOX", "INBOX"], ["Work", "Office"], ["Work/2025", "Office/2025"], ["Work/2026/Q1", "Office/This year/Q1"],
    ["Workshop", "Workshop"],
  ]) assert.equal(renamedTo(open, renames, "/"), want);
});
