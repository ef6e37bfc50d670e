// Small parts that several stages have.

import { Component, html, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useStop } from "/web/parts/keys.js";
import { counted, shown } from "/web/parts/text.js";

/** What a stage shows until its values are there, and when they do not come. */
export function State({ state, children }) {
  const there = state.arrays || state.value;
  return html`<div class="state" aria-busy=${!!state.waiting}>${state.error
    ? html`<p class="error" role="alert">${state.error.message}</p>`
    : there ? children : html`<p class="empty" role="status">Reading the values …</p>`}</div>`;
}

/** A number to choose, with buttons for its neighbours. */
export function Choose({ label, value, most, onChange, low = 0 }) {
  const step = (by) => onChange(Math.max(low, Math.min(most, value + by)));
  return html`<span class="choose">
    <button type="button" aria-label=${`${label} before`} disabled=${value <= low} onClick=${() => step(-1)}>‹</button>
    <label>${label} <input type="number" min=${low} max=${most} value=${value}
      onInput=${(event) => event.target.value !== "" && onChange(Math.max(low, Math.min(most, Math.round(+event.target.value) || low)))} /></label>
    ${low === 0 && html`<span class="of">of ${most + 1}</span>`}
    <button type="button" aria-label=${`${label} after`} disabled=${value >= most} onClick=${() => step(1)}>›</button>
  </span>`;
}

/** The one of some layers that is nearest to a block. */
export function nearest(layers, block) {
  return layers.reduce((best, layer) => (Math.abs(layer - block) < Math.abs(best - block) ? layer : best), layers[0]);
}

/** A slider with its number. */
export function Slider({ label, value, low, high, step, onChange, shown: written }) {
  return html`<label class="slider"><span>${label}</span>
    <input type="range" min=${low} max=${high} step=${step} value=${value} onInput=${(event) => onChange(+event.target.value)} />
    <output>${written ?? value}</output></label>`;
}

const TOKENS = 100; // tokens that are drawn again together

/** Tokens as a row to choose from. `first` is the number of the first of them. */
export function Tokens({ pieces, chosen, onChoose, label, first = 0 }) {
  const stop = useStop("button", pieces.length), chunks = [], within = (at, from) => (at >= from && at < from + TOKENS ? at : -1);
  for (let from = 0; from < pieces.length; from += TOKENS) chunks.push(from);
  return html`<div class="tokens" role="group" aria-label=${label} ...${stop.on}>${chunks.map((from) => html`<${TokenChunk} key=${from} pieces=${pieces} from=${from}
    to=${Math.min(from + TOKENS, pieces.length)} number=${first} chosen=${within(chosen - first, from)} stop=${within(stop.at, from)} onChoose=${onChoose} />`)}</div>`;
}

class TokenChunk extends Component {
  shouldComponentUpdate(next) {
    const mine = this.props;
    if (["from", "to", "number", "chosen", "stop"].some((name) => next[name] !== mine[name])) return true;
    if (next.pieces === mine.pieces) return false;
    for (let at = next.from; at < next.to; at++) if (next.pieces[at] !== mine.pieces[at]) return true;
    return false;
  }

  render({ pieces, from, to, number, chosen, stop }) {
    return html`<span class="chunk">${pieces.slice(from, to).map((piece, i) => html`
      <button type="button" class="token" key=${i} tabindex=${from + i === stop ? 0 : -1} aria-pressed=${from + i === chosen} onClick=${() => this.props.onChoose(number + from + i)}>${shown(piece)}</button>`)}</span>`;
  }
}

/** A long list of which the first are shown. */
export function More({ items, first = 60, render, name }) {
  const [all, setAll] = useState(false);
  const some = all ? items : items.slice(0, first);
  return html`${some.map(render)}${items.length > some.length && html`
    <button type="button" class="quiet" onClick=${() => setAll(true)}>all ${counted(items.length)} ${name}</button>`}`;
}

/** Draws its children, or says that they cannot be drawn: a file may hold anything. */
export class Guarded extends Component {
  componentDidCatch(error) {
    this.setState({ error, of: this.props.body });
  }

  render({ body }, { error, of }) {
    return error && of === body ? html`<p class="error" role="alert">This cannot be shown: ${error.message}</p>` : html`<${Body} body=${body} />`;
  }
}

function Body({ body }) {
  return body();
}

/** Whether two lists have the same entries. */
export function alike(some, others) {
  return some.length === others.length && some.every((one, i) => Object.is(one, others[i]));
}

/** A part of the page that stays as it is while `isStill`, unless an entry of `of` is another: tokens come many times a second. */
export class Still extends Component {
  shouldComponentUpdate({ isStill, of }) {
    return !isStill || !this.props.isStill || !alike(of, this.props.of);
  }

  render({ body }) {
    return body();
  }
}
