// SPDX-License-Identifier: Apache-2.0
/** A WebSocket that counts what it carries, and a switch that cuts it off as a bad network would. */
import { frameBytes } from "./cost.js";

const encoder = new TextEncoder();

export class Meter {
  frames = 0;
  bytes = 0;
  connects = 0;
  connectBytes = 0;
  cut = false;
  /** @type {Set<WebSocket>} */ #open = new Set();
  /** @type {(direction: "in" | "out") => void} */ onframe = () => {};

  /** A class for Mailbell's `WebSocket` option. */
  socketClass() {
    const meter = this;
    return class extends WebSocket {
      /** @param {string | URL} url @param {string | string[]} [protocols] */
      constructor(url, protocols) {
        if (meter.cut) throw new Error("the socket is cut");
        super(url, protocols);
        meter.connects += 1;
        meter.connectBytes += upgradeBytes(String(url));
        meter.#open.add(this);
        this.addEventListener("message", ({ data }) => meter.#count("in", data));
        this.addEventListener("close", () => meter.#open.delete(this));
      }

      /** @param {string} text */
      send(text) {
        meter.#count("out", text);
        super.send(text);
      }
    };
  }

  /** A fetch for Mailbell's `fetch` option: its tickets are part of the price of push. @returns {typeof fetch} */
  fetch() {
    return async (input, init) => {
      if (this.cut) throw new TypeError("the socket is cut");
      const response = await fetch(input, init);
      const body = await response.clone().arrayBuffer();
      const token = new Headers(init?.headers).get("authorization") ?? "";
      this.connectBytes += 600 + token.length + body.byteLength; // heads of a browser's request and of the answer
      return response;
    };
  }

  /** @param {boolean} cut */
  setCut(cut) {
    this.cut = cut;
    if (!cut) return;
    for (const socket of this.#open) socket.close(3000, "cut by the demo");
  }

  /** @param {"in" | "out"} direction @param {string} text */
  #count(direction, text) {
    this.frames += 1;
    this.bytes += frameBytes(encoder.encode(text).length, direction === "out");
    this.onframe(direction);
  }
}

/** A browser's upgrade request and its answer, about. @param {string} url */
function upgradeBytes(url) {
  return 700 + url.length;
}
