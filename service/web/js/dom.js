// Elements from names and values. Text only ever becomes text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else if (key === "text") node.textContent = value;
    else if (key in node && !(node instanceof SVGElement) && key !== "list") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A new HTML element; `onclick` and the like are listeners, `style` an object. */
export function el(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** A new SVG element. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** Calls `draw(width)` now and whenever the width of `node` has changed. */
export function onWidth(node, draw) {
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== last) draw((last = width));
  }).observe(node);
}

/** Says `text` to screen readers, once it has not changed for a moment. */
export const announce = ((timer) => (text) => {
  clearTimeout(timer);
  timer = setTimeout(() => (byId("announcer").textContent = text), 400);
})();

/** Whether the visitor asked for little movement. */
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Brings `node` into view where it is not. */
export function reveal(node) {
  node.scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
}
