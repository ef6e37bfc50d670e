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
  const card = useRef(null), chosen = number && `${number.name}|${number.token}|${number.dim}|${number.key}|${number.head}`;
  useEffect(() => {
    if (chosen) card.current?.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }, [chosen]);
  if (!number) return html`<section class="card number-card" aria-label="one number"><h3>One number</h3><p class="note">Click an arc, a cell of a strip, or a neuron: its formula and its inputs appear here.</p></section>`;
  const isReady = state.arrays && (!rule.weights || weights.value || weights.error || look.recorded);
  return html`<section class="card number-card" aria-label="one number" ref=${card}><h3>${titleOf(number)}</h3>
    <${State} state=${isReady ? { arrays: state.arrays } : { error: state.error, waiting: true }}>${isReady && html`<${Formula} number=${number} rule=${rule} arrays=${state.arrays} weights=${weights.value} choose=${choose} edits=${look.edits} />`}<//>
    <${Touch} number=${number} look=${look} at=${at} choose=${choose} edit=${edit} /></section>`;
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
