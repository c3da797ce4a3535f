// SPDX-License-Identifier: Apache-2.0
/**
 * What polling would have cost, from what really happened: the moments of the changes, and the bytes of one poll with
 * news and one without, both measured. Pure.
 */

/**
 * @typedef {{ requests: number, notModified: number, bytes: number, delayMs: number }} PollCost
 *   delayMs: how long a change waits for the next poll, on the average of those that happened (half the interval before any).
 */

/**
 * @param {{ elapsedMs: number, intervalMs: number, changes: number[], changedBytes: number, unchangedBytes: number }} so
 *   changes: ms since the start, ascending.
 * @returns {PollCost}
 */
export function pollCost({ elapsedMs, intervalMs, changes, changedBytes, unchangedBytes }) {
  const requests = Math.floor(elapsedMs / intervalMs);
  const news = new Set();
  let waited = 0;
  for (const at of changes) {
    const poll = Math.floor(at / intervalMs) + 1; // the first one after the change
    waited += poll * intervalMs - at;
    if (poll <= requests) news.add(poll);
  }
  const notModified = requests - news.size;
  return {
    requests,
    notModified,
    bytes: news.size * changedBytes + notModified * unchangedBytes,
    delayMs: changes.length > 0 ? waited / changes.length : intervalMs / 2,
  };
}

/** The bytes of one WebSocket frame, header included. RFC 6455, section 5.2. @param {number} payload @param {boolean} masked */
export function frameBytes(payload, masked) {
  const length = payload < 126 ? 0 : payload < 65_536 ? 2 : 8;
  return 2 + length + (masked ? 4 : 0) + payload;
}

/** @param {number[]} values */
export function median(values) {
  if (values.length === 0) return NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** @param {number} bytes */
export function humanBytes(bytes) {
  if (bytes < 1_000) return `${Math.round(bytes)} B`;
  if (bytes < 1_000_000) return `${(bytes / 1_000).toFixed(bytes < 10_000 ? 1 : 0)} kB`;
  return `${(bytes / 1_000_000).toFixed(1)} MB`;
}

/** @param {number} ms */
export function humanTime(ms) {
  if (Number.isNaN(ms)) return "–";
  if (ms < 10) return `${Math.max(0, ms).toFixed(1)} ms`;
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  return `${(ms / 1_000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}
