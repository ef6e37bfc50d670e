// The card of one number: its formula, its inputs, and what it comes to when they are put in.

import { html, useEffect, useMemo, useRef } from "/web/vendor/htm-preact-3.1.1.module.js";
import { partTitle } from "/web/panels/changes.js";
import { Effect } from "/web/panels/effect.js";
import { isOfHeads } from "/web/server/bounds.js";
import { useAnswer, useTrace } from "/web/server/data.js";
import { RULES, placeOf } from "/web/picture/formulas.js";
import { operationOf, shortName, titleOf as pointTitle } from "/web/picture/graph.js";
import { State } from "/web/parts/show.js";
import { number as written, shown } from "/web/parts/text.js";

/** The number that the place selects: what the rules of formulas.js get. Null if it selects none. */
export function selectedNumber(look, at, labels) {
  const { info } = look, { point, token, dim, head } = at, [, layer, part] = point.match(/^blocks\.(\d+)\.(\w+)\./) ?? [], isCross = part === "cross";
  const isPattern = isOfHeads(point), key = isCross ? at.source : at.key, keys = (isCross ? look.source : look)?.ids.length ?? 0;
  if (!(point in info.points) || token < 0 || (isPattern ? layer === undefined || key < 0 || key >= keys : dim < 0)) return null;
  if (isPattern && !isCross && key > token && info.blocks[layer]?.causal !== false) return null; // a token does not see those after it
  return { name: point, info, token, dim, key, head, layer: layer === undefined ? null : +layer, part, id: look.ids[token], labels, source: look.source, operation: operationOf(info, point) };
}

export function NumberCard({ look, at, choose, labels, edit }) {
  const number = useMemo(() => selectedNumber(look, at, labels), [look, at, labels]), rule = number && RULES.find((one) => one.fits(number));
  const state = useTrace(look, number ? { points: [...new Set(rule.needs(number))] } : {});
  const weights = useAnswer(look, "/look/weights", number && rule.weights && !look.recorded ? { model: look.model, point: number.name, index: number.dim, ...(number.name === "embed" && { row: number.id }) } : null);
  const card = useRef(null), line = useRef(null), close = () => choose({ key: -1, dim: -1 });
  useEffect(() => {
    if (!number) return undefined;
    const place = () => card.current && placed(card.current, line.current, anchorOf(at));
    const onKey = (event) => event.key === "Escape" && close();
    place();
    const grows = new ResizeObserver(place);
    grows.observe(card.current);
    addEventListener("scroll", place, { passive: true });
    addEventListener("resize", place);
    addEventListener("keydown", onKey);
    return () => {
      grows.disconnect();
      removeEventListener("scroll", place);
      removeEventListener("resize", place);
      removeEventListener("keydown", onKey);
    };
  });
  if (!number) return null;
  const isReady = state.arrays && (!rule.weights || weights.value || weights.error || look.recorded);
  return html`<section class="card number-card" aria-label="one number" ref=${card}><button type="button" class="close" aria-label="close the formula" title="close" onClick=${close}>×</button><h3>${titleOf(number)}</h3>
    <${State} state=${isReady ? { arrays: state.arrays } : { error: state.error, waiting: true }}>${isReady && html`<${Formula} number=${number} rule=${rule} arrays=${state.arrays} weights=${weights.value} choose=${choose} edits=${look.edits} />`}<//>
    <${Touch} number=${number} look=${look} at=${at} choose=${choose} edit=${edit} /></section><svg class="number-line" ref=${line} aria-hidden="true"><path /></svg>`;
}

/** The part of the picture that shows the chosen number. */
function anchorOf({ point, dim, source }) {
  const box = document.querySelector(".picture-box:not(.pinned)"), find = (selector) => box?.querySelector(selector);
  const known = isOfHeads(point) ? find(".arcs g.chosen") ?? find(`.source[data-source="${source}"]`) : point === "project.logits" ? find(`.logit[data-candidate="${dim}"]`) : point === "embed" ? find(".strip.chosen") : find(`.neuron[data-neuron="${dim}"]`);
  return known ?? find(".vector canvas") ?? find(".picture-svg, .picture canvas");
}

const SPACE = 26, LEAST = 240; // pixels between a number and its formula; of a formula below its number

/** Put the card beside its number, where both are in the window, and draw the line between them. On a phone it is a sheet from below. */
function placed(card, line, anchor) {
  const isSheet = innerWidth < 700, to = anchor?.getBoundingClientRect(), room = to ? innerHeight - to.bottom - SPACE - 8 : 0, isBelow = room > LEAST;
  card.style.maxHeight = !isSheet && isBelow ? `${Math.round(Math.min(room, 0.66 * innerHeight))}px` : "";
  const { offsetWidth: width, offsetHeight: height } = card, inside = (x, most) => Math.max(8, Math.min(x, most - 8));
  card.classList.toggle("sheet", isSheet);
  line.classList.toggle("hidden", isSheet || !to || to.bottom < 0 || to.top > innerHeight);
  if (isSheet || !to) return;
  const middle = [to.left + to.width / 2, to.top + to.height / 2], isAbove = !isBelow && to.top - SPACE - height > 8, isRight = to.right + SPACE + width < innerWidth;
  const left = isBelow || isAbove ? inside(middle[0] - width / 2, innerWidth - width) : isRight ? to.right + SPACE : inside(to.left - SPACE - width, innerWidth - width);
  const top = isBelow ? Math.max(8, to.bottom + SPACE) : isAbove ? to.top - SPACE - height : inside(middle[1] - height / 2, innerHeight - height);
  card.style.left = `${left}px`;
  card.style.top = `${top}px`;
  const from = [Math.max(left, Math.min(middle[0], left + width)), Math.max(top, Math.min(middle[1], top + height))];
  line.firstChild.setAttribute("d", `M${from.map(Math.round).join(" ")}L${middle.map(Math.round).join(" ")}`);
}

function titleOf({ name, info, part, head, key, dim, token, labels, source }) {
  const at = shown(labels?.[token] ?? `${token}`), keys = part === "cross" ? source.pieces : labels;
  if (isOfHeads(name)) return `${name} [head ${head}]: ${at} → ${shown(keys?.[key] ?? `${key}`)}${part === "cross" ? " of the source" : ""}`;
  const [, count] = info.points[name].shape?.match(/[HGC] (\d+), \w+ \d+\)$/) ?? [], width = +(info.points[name].shape?.match(/(\d+)\)$/)?.[1] ?? 1);
  return `${pointTitle(name)} [${count ? `head ${Math.floor(dim / width)}, ${dim % width}` : dim}] at ${at}`;
}

const DIGITS = 4;

function Formula({ number, rule, arrays, weights, choose, edits }) {
  let found;
  try {
    found = rule.made(number, { arrays, weights });
  } catch (error) {
    return html`<p class="error" role="alert">${error.message}</p>`;
  }
  const { formula, terms, value, recorded, note, why, places } = found, go = (place) => choose({ key: -1, ...place, ...placeOf(place.point) }), isRight = Math.abs(recorded - value) < 0.5 * 10 ** -DIGITS, isChanged = edits.some((one) => one.point.split("[")[0] === number.name);
  return html`<div><p class="formula" data-recorded=${recorded} data-computed=${value}><strong>${digits(recorded)}</strong> = ${formula}</p>
    <table class="plain terms"><tbody>${terms.map(([label, term, place], i) => html`<tr key=${i}><th scope="row">${place ? html`<button type="button" class="quiet" onClick=${() => go(place)}>${label}</button>` : label}</th><td class="num">${Number.isFinite(term) ? digits(term) : ""}</td></tr>`)}
      ${Number.isFinite(value) && html`<tr class="total"><th scope="row">with these inputs</th><td class="num">${digits(value)}</td></tr>`}${Number.isFinite(value) && !isRight && html`<tr><th scope="row">${isChanged ? "your change" : why ? "from rounding" : "rest"}</th><td class="num">${digits(recorded - value)}</td></tr>`}</tbody></table>
    ${places && html`<p class="note">Open ${places.map(([label, place], i) => html`${i > 0 && ", "}<button type="button" class="quiet" key=${label} onClick=${() => go(place)}>${label}</button>`)}.</p>`}
    ${[note, !isRight && !isChanged && Number.isFinite(value) && why].filter(Boolean).map((one) => html`<p class="note" key=${one}>${one}</p>`)}
    ${number.operation?.kernel && html`<p class="note">Operation ${number.operation.kernel}, ${pointTitle(shortName(number.name))}.</p>`}</div>`;
}

function digits(x) {
  if (!Number.isFinite(x)) return "–";
  return Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3) ? written(x) : x.toFixed(DIGITS);
}

/** Change by touch: take the part out, or scale it. */
function Touch({ number, look, at, choose, edit }) {
  if (!edit) return null;
  const target = touched(number, look);
  if (!target) return null;
  const { point, label } = target, now = look.edits.find((one) => one.point === point), factor = now?.edit === "scale" ? now.factor : now ? 0 : 1;
  return html`<div class="touch"><button type="button" aria-pressed=${now?.edit === "ablate"} onClick=${() => edit(point, now?.edit === "ablate" ? null : { edit: "ablate" })}>⊘ take out ${label}</button>
    <label class="slider"><span>factor</span><input type="range" min="-2" max="4" step="0.1" value=${factor} onChange=${(event) => edit(point, +event.target.value === 1 ? null : { edit: "scale", factor: +event.target.value })} aria-label=${`scale ${label}`} /><input type="number" step="0.1" min="-20" max="20" value=${factor} aria-label=${`factor of ${label}`} onChange=${(event) => Number.isFinite(+event.target.value) && edit(point, +event.target.value === 1 ? null : { edit: "scale", factor: +event.target.value })} /></label>
    ${target.pin && html`<button type="button" aria-pressed=${look.edits.some((one) => one.point === target.pin.point)} onClick=${() => edit(target.pin.point, look.edits.some((one) => one.point === target.pin.point) ? null : target.pin.change)}>look only there</button>`}
    ${look.edits.some((one) => one.point === point || one.point === target.pin?.point) && html`<${Effect} look=${look} at=${at} choose=${choose} />`}</div>`;
}

/** What a click can change of a number: the head of a weight, a neuron, an expert's output, a component. */
function touched(number, look) {
  const { name, head, layer, part, dim, token, key } = number;
  if (isOfHeads(name)) {
    const isCross = part === "cross", keys = isCross ? look.source.ids : look.ids, seen = isCross || look.info.blocks[layer].causal === false ? undefined : token + 1;
    const values = Array.from({ length: keys.length }, (_, s) => +(s === key)).slice(0, seen);
    return { point: `blocks.${layer}.${part}.heads[heads=${head}]`, label: `head ${head}`, pin: { point: `blocks.${layer}.${part}.pattern[heads=${head}; tokens=${token}]`, change: { edit: "replace", values } } };
  }
  if (/\.(attention|cross)\.heads$/.test(name)) {
    const width = +((look.info.points[name].shape ?? "").match(/(\d+)\)$/)?.[1] ?? 1), own = Math.floor(dim / width);
    return { point: `${name}[heads=${own}]`, label: `head ${own}` };
  }
  if (name.endsWith(".feedforward.hidden")) return { point: `${name}[dims=${dim}]`, label: `neuron ${dim}` };
  if (/\.(output|residual|post_norm)$/.test(name) && !name.includes(".experts.")) return { point: name, label: partTitle(shortName(name), layer) };
  return null;
}
