// attention: which tokens each head looks at, as a matrix, over the words, and all heads beside each other.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/data.js";
import { Picture, colour, fitted, heat, shade } from "/web/draw.js";
import { Choose, ChooseBlock, State, nearest } from "/web/show.js";
import { percent, shown } from "/web/text.js";

const SMALL = 84, LABEL = 74, MOST_LABELS = 60, MOST_LOOKS = 200;

export const attention = {
  id: "attention",
  title: "Attention",
  about: "Each head compares a token's query with the keys of the tokens before it, and gathers their values in these proportions.",
  has: (info) => info.blocks.some((one) => one.heads),
  View,
};

function View({ look, width, at, choose, edit }) {
  const layers = look.info.blocks.map((one, layer) => (one.heads ? layer : -1)).filter((layer) => layer >= 0);
  const layer = nearest(layers, at.block);
  const heads = look.info.blocks[layer].heads, head = Math.min(at.head, heads - 1), name = `blocks.${layer}.attention.pattern`;
  const state = useTrace(look, { points: [name] }), pattern = state.arrays?.[name];
  const changed = look.edits.find((one) => one.point === `blocks.${layer}.attention.heads[heads=${head}]`);
  const change = (made) => edit(`blocks.${layer}.attention.heads[heads=${head}]`, made);
  return html`<div><div class="bar">
      <${ChooseBlock} layers=${layers} value=${at.block} onChange=${(block) => choose({ block })} />
      <${Choose} label="head" value=${head} most=${heads - 1} onChange=${(one) => choose({ head: one })} />
      ${edit && html`<span class="choose">
        <button type="button" aria-pressed=${changed?.edit === "ablate"} onClick=${() => change(changed?.edit === "ablate" ? null : { edit: "ablate" })}>ablate this head</button>
        <button type="button" aria-pressed=${changed?.edit === "scale"} onClick=${() => change(changed?.edit === "scale" ? null : { edit: "scale", factor: 3 })}>times 3</button>
      </span>`}
    </div>
    <${State} state=${state}>${pattern && html`
      <${Heads} pattern=${pattern} chosen=${head} onChoose=${(one) => choose({ head: one })} block=${layer} />
      <${Matrix} values=${pattern.row(head)} pieces=${look.pieces} width=${width} token=${at.token} onPick=${(token) => choose({ token })} label=${`block ${layer}, head ${head}`} />
      <${Looks} values=${pattern.row(head)} pieces=${look.pieces} token=${Math.min(at.token, pattern.shape[1] - 1)} onPick=${(token) => choose({ token })} />`}<//></div>`;
}

function Heads({ pattern, chosen, onChoose, block }) {
  const [heads, rows, columns] = pattern.shape;
  return html`<div class="smalls" role="group" aria-label=${`all heads of block ${block}`}>${Array.from({ length: heads }, (_, head) => html`
    <button type="button" key=${head} aria-pressed=${head === chosen} aria-label=${`head ${head}`} onClick=${() => onChoose(head)}>
      <${Picture} width=${SMALL} height=${SMALL} label="" of=${[pattern, head]}
        paint=${(context, w, h) => heat(context, pattern.row(head), rows, columns, [0, 0, w, h], shade("paper", "accent"))} />
      <span>${head}</span></button>`)}</div>`;
}

function Matrix({ values, pieces, width, token, onPick, label }) {
  const rows = Math.sqrt(values.length) | 0, room = Math.min(width - LABEL, 560), named = rows <= MOST_LABELS && Math.max(room, 120) / rows > 9;
  const left = named ? LABEL : 0, side = Math.max(named ? room : Math.min(width, 560), 120), height = side * (rows > 1 ? 1 : 0.2), cell = side / rows;
  const paint = (context) => {
    heat(context, values, rows, rows, [left, 0, side, height], shade("paper", "accent"));
    context.strokeStyle = colour("warm");
    context.strokeRect(left + 0.5, token * cell + 0.5, side - 1, Math.max(cell, 2) - 1);
    if (!named) return;
    context.fillStyle = colour("ink");
    for (let r = 0; r < rows; r++) context.fillText(fitted(context, shown(pieces[r] ?? ""), LABEL - 6), 0, r * cell + cell / 2 + 4);
  };
  const place = (x, y) => [Math.floor(y / cell), Math.floor((x - left) / cell)];
  const at = (x, y) => {
    const [r, c] = place(x, y);
    return r >= 0 && r < rows && c >= 0 && c < rows ? `${shown(pieces[r] ?? "")} looks at ${shown(pieces[c] ?? "")}: ${percent(values[r * rows + c])}` : "";
  };
  return html`<${Picture} width=${left + side} height=${height} paint=${paint} at=${at} of=${[values, token, width]}
    onPick=${(x, y) => { const [r] = place(x, y); if (r >= 0 && r < rows) onPick(r); }}
    label=${`attention pattern of ${label}: ${rows} tokens look at those before them`} />`;
}

function Looks({ values, pieces, token, onPick }) {
  const rows = Math.sqrt(values.length) | 0, row = values.subarray(token * rows, (token + 1) * rows);
  const most = Math.max(...row, 1e-9), all = pieces.slice(0, Math.min(rows, MOST_LOOKS));
  return html`<div><h4>What ${shown(pieces[token] ?? "")} looks at</h4>
    <div class="tokens looks" role="group" aria-label="token that looks">${all.map((piece, at) => html`
      <button type="button" class="token" key=${at} aria-pressed=${at === token} title=${percent(row[at])} onClick=${() => onPick(at)}>
        <span class="level" style=${{ height: `${Math.round((24 * row[at]) / most)}px` }}></span>${shown(piece)}</button>`)}</div></div>`;
}
