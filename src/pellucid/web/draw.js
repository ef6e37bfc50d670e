// Pictures on canvases: sharp on every screen, in the colours of the page, redrawn when either changes.

import { html, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";

/** The value of a colour of style.css. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A number that changes when the page's colours do. */
export function useScheme() {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)"), changed = () => setTurn((n) => n + 1);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  return turn;
}

/**
 * A canvas that `paint(context, width, height)` draws. `label` says what is to be seen, `at(x, y)` what is at a place.
 */
export function Picture({ width, height, label, paint, at, onPick, of }) {
  const canvas = useRef(null), [tip, setTip] = useState(""), scheme = useScheme();
  useEffect(() => {
    const one = canvas.current, scale = devicePixelRatio || 1;
    one.width = Math.round(width * scale);
    one.height = Math.round(height * scale);
    const context = one.getContext("2d");
    context.scale(scale, scale);
    context.clearRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    paint(context, width, height);
  }, [width, height, scheme, ...(of ?? [paint])]);
  const place = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  return html`<figure class="picture">
    <canvas ref=${canvas} role=${label ? "img" : null} aria-label=${label || null} aria-hidden=${label ? null : "true"} style=${{ width: `${width}px`, height: `${height}px` }}
      onMouseMove=${at && ((event) => setTip(at(...place(event)) ?? ""))} onMouseLeave=${() => setTip("")}
      onClick=${onPick && ((event) => onPick(...place(event)))}></canvas>
    ${at && html`<figcaption class="tip" aria-hidden="true">${tip || "\u00a0"}</figcaption>`}
  </figure>`;
}

function channels(text) {
  const found = text.match(/^#([0-9a-f]{6})$/i);
  const value = parseInt(found ? found[1] : "888888", 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

const SHADES = 255;

/** A shade between two colours of the page: 0 is the first. */
export function shade(from, to) {
  const low = channels(colour(from)), high = channels(colour(to));
  const all = Array.from({ length: SHADES + 1 }, (_, n) => `rgb(${low.map((one, i) => Math.round(one + (n / SHADES) * (high[i] - one))).join(",")})`);
  return (part) => all[Math.max(0, Math.min(SHADES, Math.round(part * SHADES))) || 0];
}

/** A shade of numbers of either sign, `most` in size. */
export function signedShade(most) {
  const up = shade("paper", "plus"), down = shade("paper", "minus");
  return (x) => (x >= 0 ? up(x / most) : down(-x / most));
}

/** A matrix of values as a heat map in a box; `of(value)` is a colour. */
export function heat(context, values, rows, columns, box, of) {
  const [left, top, width, height] = box, w = width / columns, h = height / rows;
  context.fillStyle = colour("paper");
  context.fillRect(left, top, width, height);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const value = values[r * columns + c];
      if (Number.isNaN(value) || value === 0) continue; // nothing is the ground
      context.fillStyle = of(value);
      context.fillRect(left + c * w, top + r * h, Math.ceil(w), Math.ceil(h));
    }
  }
}

/** Lines over positions. `series` are {values, colour}; all have one scale. */
export function lines(context, series, box, low, high) {
  const [left, top, width, height] = box;
  for (const { values, colour: name } of series) {
    context.strokeStyle = name;
    context.lineWidth = 1.5;
    context.beginPath();
    values.forEach((value, i) => {
      const x = left + (values.length > 1 ? (i / (values.length - 1)) * width : width / 2);
      const y = top + height - ((value - low) / (high - low || 1)) * height;
      if (i) context.lineTo(x, y);
      else context.moveTo(x, y);
    });
    context.stroke();
  }
}

/** A text that is cut where there is no room. */
export function fitted(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let cut = text;
  while (cut.length > 1 && context.measureText(`${cut}…`).width > room) cut = cut.slice(0, -1);
  return `${cut}…`;
}
