// SPDX-License-Identifier: Apache-2.0
/** The little that the page needs on top of the document. Everything is made of nodes; no text is ever read as HTML. */

/** An element that the page can't do without. @template {Element} [T=HTMLElement] @param {string} id @returns {T} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return /** @type {T} */ (/** @type {unknown} */ (element));
}

/**
 * @param {string} tag @param {Record<string, string>} [attributes] @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** @param {string} tag @param {Record<string, string | number>} [attributes] @param {...(Node | string)} children */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** @param {string} name */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** Sets text only when it differs, so that nothing is announced or painted twice. @param {string} id @param {string} text */
export function say(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Attributes, only those that differ. @param {Element} element @param {Record<string, string>} attributes */
export function mark(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
}

/**
 * Makes the children of a list what `items` say, reusing the element of a key, so that focus and scroll stay.
 * @template T
 * @param {Element} list @param {T[]} items @param {(item: T) => string} key
 * @param {(item: T) => Element} make @param {(element: Element, item: T) => void} update
 */
export function keyed(list, items, key, make, update) {
  const have = new Map([...list.children].map((child) => [child.getAttribute("data-key"), child]));
  let at = list.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = have.get(name);
    have.delete(name);
    if (!element) {
      element = make(item);
      element.setAttribute("data-key", name);
    }
    update(element, item);
    if (element === at) at = at.nextElementSibling;
    else list.insertBefore(element, at);
  }
  for (const gone of have.values()) gone.remove();
}
