// Small parts of the picture: texts that fit, and parts that can be clicked or reached with the keyboard.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { isBrowsers } from "/web/parts/keys.js";
import { graphemesOf } from "/web/parts/text.js";

let measuring;
const widths = new Map();

/** The width of a text in pixels; `size` is that of its type. */
export function widthOf(text, size) {
  measuring ??= document.createElement("canvas").getContext("2d");
  const key = `${size}|${text}`;
  let width = widths.get(key);
  if (width === undefined) {
    measuring.font = `${size}px system-ui, sans-serif`;
    width = measuring.measureText(text).width;
    if (widths.size > 5000) widths.clear();
    widths.set(key, width);
  }
  return width;
}

/** A text that is cut, between characters as people see them, where there is no room. */
export function fit(text, room, size) {
  if (widthOf(text, size) <= room) return text;
  const parts = graphemesOf(text.slice(0, 200));
  while (parts.length > 1 && widthOf(`${parts.join("")}…`, size) > room) parts.pop();
  return `${parts.join("")}…`;
}

/** A text in lines that are at most `width` wide; it is cut after spaces and underscores, and inside words that are too long. */
export function wrapped(text, width, size) {
  const lines = [""];
  for (const word of text.split(/(?<=[ _])/)) {
    if (lines.at(-1) && widthOf(lines.at(-1) + word.trimEnd(), size) > width) lines.push("");
    for (const one of widthOf(word.trimEnd(), size) > width ? [...word] : [word]) {
      if (widthOf(lines.at(-1) + one.trimEnd(), size) > width) lines.push("");
      lines[lines.length - 1] += one;
    }
  }
  return lines;
}

/** A part that a click, Enter or the space bar chooses. `label` says what it is; `about` is shown beside the pointer. */
export function Part({ label, about, onClick, pressed, name, stop, children, ...more }) {
  const onKeyDown = (event) => {
    if (isBrowsers(event) || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    event.stopPropagation();
    onClick(event);
  };
  return html`<g class=${`part ${name ?? ""}`} role="button" tabindex=${stop === false ? -1 : 0} aria-label=${label} aria-pressed=${pressed} onClick=${onClick} onKeyDown=${onKeyDown} ...${more}>
    ${about && html`<title>${about}</title>`}${children}</g>`;
}
