// The picture as a file: one SVG that needs no style sheet, script or font file, and a PNG of it. Both have a caption that says
// what is seen, and the address that shows it again. The replay is an animated PNG or a page (picture/loop.js, trace/report.py).

import { html, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { colour } from "/web/parts/draw.js";
import { save } from "/web/parts/files.js";
import { post } from "/web/server/api.js";
import { PART, shown } from "/web/parts/text.js";
import { loopOf } from "/web/picture/loop.js";
import { widthOf, wrapped } from "/web/picture/svg.js";

const SVG = "http://www.w3.org/2000/svg";
// What a part of a picture may have: where it is, and how it looks. The rest (roles, handlers) is of the page.
const PLACES = [
  "d", "x", "y", "x1", "y1", "x2", "y2", "width", "height", "rx", "ry", "cx", "cy", "r", "points", "transform", "viewBox",
  "refX", "refY", "markerWidth", "markerHeight", "orient",
];
const INHERITED = ["stroke-width", "stroke-dasharray", "stroke-linecap", "font-family", "font-size", "font-weight", "text-anchor"];
const SHAPES = ["rect", "path", "circle", "line", "polygon"];
const GAP = 10, EDGE = 16, SIZE = 12, LINE = 17, SHORT = 90, MOST_LINES = 16; // pixels; characters of the text; lines of the address

/** Red, green, blue and alpha of a colour as a style sheet may write it, mixtures too: programs beside browsers know few forms. */
const mixed = new Map();
function channelsOf(value) {
  if (!mixed.has(value)) {
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    context.fillStyle = value;
    context.fillRect(0, 0, 1, 1);
    mixed.set(value, [...context.getImageData(0, 0, 1, 1).data]);
  }
  return mixed.get(value);
}

/** The attributes of a fill or a stroke: {fill: "#1d5f91", "fill-opacity": "0.5"}. */
function paintOf(name, value) {
  if (value === "none") return { [name]: "none" };
  const [r, g, b, a] = channelsOf(value);
  if (a === 0) return { [name]: "none" };
  return { [name]: `#${[r, g, b].map((one) => one.toString(16).padStart(2, "0")).join("")}`, [`${name}-opacity`]: `${+(a / 255).toFixed(3)}` };
}

function made(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A text that XML can hold. */
function plain(text) {
  return (text.toWellFormed?.() ?? text).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd");
}

/** An element of the page with the looks that its style sheet gives as attributes, where they differ from `above`. */
function copied(element, above, prefix) {
  const style = getComputedStyle(element), looks = { ...paintOf("fill", style.fill), ...paintOf("stroke", style.stroke) };
  for (const name of INHERITED) looks[name] = style.getPropertyValue(name).replace(/"/g, "'");
  for (const name of ["stroke-width", "stroke-dasharray"]) looks[name] = looks[name].replace(/px/g, "");
  const isShape = SHAPES.includes(element.localName), isBare = looks.fill === "none" && looks.stroke === "none";
  if (element.matches(".hit, .reach, .tool, .focus, foreignObject") || style.visibility === "hidden" || (isShape && isBare)) return null;
  const usual = (name) => above[name] ?? (name.endsWith("-opacity") ? "1" : "");
  const attributes = Object.fromEntries(Object.entries(looks).filter(([name, value]) => value !== usual(name)));
  if (style.opacity !== "1") attributes.opacity = style.opacity;
  for (const name of PLACES) if (element.hasAttribute(name)) attributes[name] = element.getAttribute(name);
  if (element.id) attributes.id = prefix + element.id;
  for (const name of ["marker-end", "clip-path"]) if (element.hasAttribute(name)) attributes[name] = element.getAttribute(name).replace("#", `#${prefix}`);
  const copy = made(element.localName, attributes), known = { ...above, ...looks };
  for (const child of element.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) copy.append(plain(child.data));
    else if (child.localName === "title") copy.prepend(made("title", {}, plain(child.textContent)));
    else if (child.nodeType === Node.ELEMENT_NODE) copy.append(copied(child, known, prefix) ?? "");
  }
  return copy;
}

/** A drawing of the picture as {node, width, height}: an SVG of the page, or a canvas as an image. */
function drawing(element, n) {
  if (element.localName === "canvas") {
    const { width, height } = element.getBoundingClientRect();
    return { node: made("image", { width, height, href: element.toDataURL("image/png") }), width, height };
  }
  const { width, height } = element.viewBox.baseVal, copy = copied(element, {}, `p${n}-`), group = made("g", {});
  const looks = copy.getAttributeNames().filter((name) => !PLACES.includes(name));
  for (const name of looks) group.setAttribute(name, copy.getAttribute(name));
  group.append(...copy.childNodes);
  return { node: group, width, height };
}

// Around a text in any script: what stands beside it keeps its own direction.
const apart = (text) => `\u2068${text}\u2069`;

/** The beginning of a text, from the labels of its tokens. */
export function shortened(labels) {
  const words = [...labels.filter((one) => one !== PART).join("")];
  return shown(words.slice(0, SHORT).join("")).replace(/·/g, " ").trim() + (words.length > SHORT ? "…" : "");
}

/** What is seen: model, text, place, number, changes. `formula` is that of the chosen number, if there is one. */
export function captionOf({ look, text, at, formula }) {
  const { info } = look;
  const block = info.blocks[at.block], token = `token ${at.token} “${apart(shown(text.labels[at.token] ?? ""))}”`;
  const place = [block && `block ${at.block}`, block?.heads && `head ${at.head}`, token].filter(Boolean).join(", ");
  const changes = look.edits.length && `changed: ${look.edits.map((one) => `${one.edit} ${one.point}`).join("; ")}`;
  const point = at.view === "whole" ? "" : at.point; // the whole picture shows no point alone
  const parts = [look.model || info.model, `“${apart(shortened(text.labels))}”`, place, formula ?? point, changes, "Pellucid"];
  return parts.filter(Boolean).join(" · ");
}

function textLines(lines, size, fill) {
  const texts = lines.map((one, i) => made("text", { x: 0, y: size + i * LINE }, plain(one)));
  return { node: made("g", { fill, "font-size": size }, ...texts), width: 0, height: lines.length * LINE + 4 };
}

/** The picture of a figure as one SVG: {text, width, height}. `source` is {address, isWhole}, {file}, or {} where none is written. */
export function standalone(figure, caption, source) {
  const drawings = [...figure.querySelectorAll("svg.picture-svg, .picture canvas")].map(drawing), width = Math.max(320, ...drawings.map((one) => one.width));
  const address = source.address ?? (source.file ? `a recorded run: ${source.file}` : ""), lines = address ? wrapped(address, width, SIZE - 2) : [];
  if (lines.length > MOST_LINES) lines.splice(MOST_LINES, lines.length, "… (all of it is in the description of this file)");
  if (source.isWhole === false) lines.push("The address does not hold all of this view.");
  const words = [textLines(wrapped(caption, width, SIZE), SIZE, colour("ink")), textLines(lines, SIZE - 2, colour("faint"))];
  const parts = [...drawings, ...words];
  let top = EDGE;
  const body = parts.map((one) => {
    const group = made("g", { transform: `translate(${EDGE} ${top})` }, one.node);
    top += one.height + GAP;
    return group;
  });
  const wide = width + 2 * EDGE, high = Math.ceil(top - GAP + EDGE);
  const root = made("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "font-family": "system-ui, sans-serif" },
    made("title", {}, plain(caption)), made("desc", {}, plain(address)), made("rect", { width: wide, height: high, fill: colour("paper") }), ...body);
  return { text: new XMLSerializer().serializeToString(root), width: wide, height: high };
}

/** A PNG of an SVG, with two pixels for each. */
async function pngOf({ text, width, height }) {
  const image = new Image(), canvas = document.createElement("canvas");
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  Object.assign(canvas, { width: 2 * width, height: 2 * height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  const found = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (!found) throw new Error("The picture is too large for a PNG in this browser: save it as SVG.");
  return found;
}

/** The menu that saves the figure which it is in. `seen` is {look, text, at}; `source(at)` says where it comes from; `replay` is that of the picture, where it has one. */
export function Export({ seen, source, pinned, replay }) {
  const [isOpen, setOpen] = useState(false), [said, setSaid] = useState(""), menu = useRef(null);
  const write = async (kind) => {
    // The card of the chosen number is of the picture that follows the selection.
    const [title, equation] = ["h3", ".formula"].map((one) => !pinned && document.querySelector(`.number-card ${one}`)?.textContent);
    const name = ["pellucid", seen.look.model || seen.look.info.model, seen.at.view, seen.at.block].join("-").replace(/[^\w.-]+/g, "_");
    try {
      const formula = equation ? `${apart(title)}: ${equation}` : null, caption = captionOf({ ...seen, formula });
      const picture = standalone(menu.current.closest("figure"), caption, source(seen.at));
      save(kind === "svg" ? new Blob([picture.text], { type: "image/svg+xml" }) : await pngOf(picture), `${name}.${kind}`);
      setSaid(`Saved as ${kind.toUpperCase()}.`);
    } catch (error) {
      setSaid(`Not saved: ${error.message}`);
    }
  };
  const report = async () => {
    const { look, text, at } = seen, { temperature, top_k, top_p, seed } = text.path[0]?.part?.form ?? look.form;
    setSaid("Writing the page …");
    try {
      const { html: page } = await post("/look/report", { model: look.model, prompt: look.text, step: Math.max(1, at.token + 2 - text.promptLength), temperature, top_k, top_p, seed });
      save(new Blob([page], { type: "text/html" }), `pellucid-${look.model}.html`.replace(/[^\w.-]+/g, "_"));
      setSaid("Saved as HTML.");
    } catch (error) {
      setSaid(`Not saved: ${error.message}`);
    }
  };
  const loop = async () => {
    const figure = menu.current.closest("figure"), says = () => figure.querySelector(".lead .says")?.textContent ?? "";
    try {
      save(await loopOf(replay, () => standalone(figure, says(), {}), (n, all) => setSaid(`Drawing the loop: ${n} of ${all} …`)), `pellucid-${seen.look.model || seen.look.info.model}-loop.png`.replace(/[^\w.-]+/g, "_"));
      setSaid("Saved as an animated PNG.");
    } catch (error) {
      setSaid(`Not saved: ${error.message}`);
    }
  };
  const toggle = () => {
    setOpen(!isOpen);
    setSaid("");
  };
  return html`<span class="export" ref=${menu}>
    <button type="button" aria-expanded=${isOpen} title="save the picture with its caption" onClick=${toggle}>Export</button>
    ${isOpen && html`<button type="button" title="a drawing, for papers" onClick=${() => write("svg")}>SVG</button>
      <button type="button" title="an image, twice as fine" onClick=${() => write("png")}>PNG</button>
      ${replay && html`<button type="button" title="ten seconds of the replay, as an animated PNG that mails and documents play" onClick=${loop}>Loop</button>`}
      ${!seen.look.recorded && seen.look.info.generates && !pinned && html`<button type="button" title="this step as a page that opens without a server: the picture, its replay, all its numbers" onClick=${report}>HTML</button>`}`}
    <span class="note" role="status">${said}</span></span>`;
}
