// Pictures on canvases: sharp on every screen, in the colours of the page, redrawn when either changes.

import { html, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { isBrowsers, stepped } from "/web/parts/keys.js";
import { graphemesOf } from "/web/parts/text.js";

let root = document.documentElement;

/** Take the colours of an element from now on: in a notebook the page is a part of another one. */
export function drawnIn(element) {
  root = element;
}

/** The value of a colour of style.css. */
export function colour(name) {
  return getComputedStyle(root).getPropertyValue(`--${name}`).trim();
}

/** Say that the page's colours, or the size of its type, are other ones. */
export function appearanceChanged() {
  document.dispatchEvent(new Event("appearance"));
}

/** How many times larger than usual everything is: presentation mode (page/screen.js). */
function zoomOf() {
  return +document.documentElement.dataset.zoom || 1;
}

/** A number that changes when the page's colours do, or the size of its type. */
export function useScheme() {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)"), changed = () => setTurn((n) => n + 1);
    query.addEventListener("change", changed);
    document.addEventListener("appearance", changed);
    return () => {
      query.removeEventListener("change", changed);
      document.removeEventListener("appearance", changed);
    };
  }, []);
  return turn;
}

/**
 * A canvas that `paint(context, width, height)` draws; in presentation mode all of it is larger. `label` says what is to be seen, `at(x, y)` what is at a place.
 *
 * With `slider`, {value, most, text, onChange}, the arrow keys choose what a click at a place chooses.
 */
export function Picture({ width, height, label, paint, at, onPick, slider, of }) {
  const canvas = useRef(null), [tip, setTip] = useState(""), scheme = useScheme(), zoom = zoomOf();
  useEffect(() => {
    const one = canvas.current, scale = (devicePixelRatio || 1) * zoom;
    one.width = Math.round(width * scale);
    one.height = Math.round(height * scale);
    const context = one.getContext("2d");
    context.scale(scale, scale);
    context.clearRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    paint(context, width, height);
  }, [width, height, scheme, zoom, ...(of ?? [paint])]);
  const place = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  const onKeyDown = slider && ((event) => {
    const to = isBrowsers(event) ? null : stepped(event.key, slider.value, slider.most);
    if (to === null) return;
    event.preventDefault();
    slider.onChange(to);
  });
  const role = slider ? { role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": slider.most, "aria-valuenow": slider.value, "aria-valuetext": slider.text } : { role: label ? "img" : null };
  return html`<figure class="picture">
    <canvas ref=${canvas} ...${role} aria-label=${label || null} aria-hidden=${label ? null : "true"} style=${{ width: `${width * zoom}px`, height: `${height * zoom}px` }}
      onMouseMove=${at && ((event) => setTip(at(...place(event)) ?? ""))} onMouseLeave=${() => setTip("")} onKeyDown=${onKeyDown}
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

/** Shades between two colours of the page, for numbers from `low` to `high`, as pixels of a canvas. */
export function shade(from, to, low = 0, high = 1) {
  const start = channels(colour(from)), end = channels(colour(to)), all = new Uint32Array(SHADES + 1);
  for (let n = 0; n <= SHADES; n++) {
    const [r, g, b] = start.map((one, i) => Math.round(one + (n / SHADES) * (end[i] - one)));
    all[n] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  const factor = SHADES / (high - low || 1);
  return (x) => all[Math.max(0, Math.min(SHADES, Math.round((x - low) * factor))) || 0];
}

/** Shades of numbers of either sign, `most` in size. */
export function signedShade(most) {
  const up = shade("paper", "plus", 0, most), down = shade("paper", "minus", 0, most);
  return (x) => (x >= 0 ? up(x) : down(-x));
}

/** A matrix of values as a heat map in a box; `of(value)` is a pixel. Of several values in one pixel the largest is seen. */
export function heat(context, values, rows, columns, box, of) {
  const [left, top, width, height] = box, scale = context.getTransform().a;
  const tall = Math.min(rows, Math.max(1, Math.round(height * scale))), wide = Math.min(columns, Math.max(1, Math.round(width * scale)));
  const cells = tall === rows && wide === columns ? values : largest(values, rows, columns, tall, wide);
  const image = new ImageData(wide, tall), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = of(cells[i]);
  const small = new OffscreenCanvas(wide, tall);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, left, top, width, height);
}

function largest(values, rows, columns, tall, wide) {
  const found = new Float32Array(tall * wide);
  for (let r = 0; r < rows; r++) {
    const to = Math.floor((r * tall) / rows) * wide;
    for (let c = 0; c < columns; c++) {
      const at = to + Math.floor((c * wide) / columns), value = values[r * columns + c];
      if (Math.abs(value) > Math.abs(found[at])) found[at] = value;
    }
  }
  return found;
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

/** A text that is cut, between characters as people see them, where there is no room. */
export function fitted(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  const parts = graphemesOf(text.slice(0, 200));
  while (parts.length > 1 && context.measureText(`${parts.join("")}…`).width > room) parts.pop();
  return `${parts.join("")}…`;
}
