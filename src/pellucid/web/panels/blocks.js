// blocks: the residual stream through all layers, and what each part adds.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour } from "/web/parts/draw.js";
import { Choose, State, Tokens } from "/web/parts/show.js";
import { number } from "/web/parts/text.js";

const PARTS = ["attention", "feedforward", "recurrent"];
const SERIES = { residual: ["soft", "residual stream"], attention: ["accent", "attention adds"], feedforward: ["warm", "feed-forward adds"], recurrent: ["cool", "recurrent layer adds"] };
const ROW = 15, LABEL = 34, VALUE = 58;

export const blocks = {
  id: "blocks",
  title: "Blocks",
  about: "Every block reads the residual stream and adds to it: first what attention gathers from other tokens, then what the feed-forward makes of it.",
  has: (info) => info.blocks.length > 0,
  View,
};

function View({ look, width, at, choose, open }) {
  const { info } = look, norms = ["blocks.*.residual"];
  const names = Object.keys(info.points), has = (name) => names.some((one) => one.endsWith(`.${name}`));
  // A norm after a part makes what is added; before it, the output is.
  for (const part of PARTS) for (const name of [`${part}.output`, `${part}.post_norm`]) if (has(name)) norms.push(`blocks.*.${name}`);
  const state = useTrace(look, { norms });
  return html`<div><p class="note">Lengths of the vectors at one token. Choose a block to look into it.</p>
    <div class="bar"><${Choose} label="block" value=${at.block} most=${info.blocks.length - 1} onChange=${(block) => choose({ block })} /></div>
    <${Tokens} pieces=${look.pieces} chosen=${at.token} onChoose=${(token) => choose({ token })} label="token whose vectors are measured" />
    <${State} state=${state}>${state.arrays && html`<${Flow} arrays=${state.arrays} look=${look} token=${at.token} block=${at.block} width=${width}
      onPick=${(block) => { choose({ block }); open("attention"); }} onStep=${(block) => choose({ block })} />`}<//>
    <ul class="legend">${Object.entries(SERIES).filter(([key]) => key === "residual" || norms.some((one) => one.includes(`.${key}.`))).map(([key, [name, text]]) => html`
      <li key=${key}><span class=${`mark ${name}`}></span>${text}</li>`)}</ul></div>`;
}

function Flow({ arrays, look, token, block, width, onPick, onStep }) {
  const rows = look.info.blocks.map((_, layer) => {
    const of = (name) => arrays[`blocks.${layer}.${name}`]?.values[token];
    return { residual: of("residual"), ...Object.fromEntries(PARTS.map((part) => [part, of(`${part}.post_norm`) ?? of(`${part}.output`)])) };
  });
  const most = Math.max(...rows.flatMap((one) => Object.values(one).filter(Number.isFinite)), 1e-9), room = width - LABEL - VALUE;
  const paint = (context, w) => rows.forEach((one, layer) => {
    const y = layer * ROW;
    if (layer === block) {
      context.fillStyle = colour("chosen");
      context.fillRect(0, y, w, ROW);
    }
    context.fillStyle = colour("ink");
    context.fillText(String(layer), 4, y + 11);
    context.fillStyle = colour("soft");
    context.fillRect(LABEL, y + 1, (one.residual / most) * room, 12);
    let top = y + 3;
    for (const key of PARTS) {
      if (!Number.isFinite(one[key])) continue;
      context.fillStyle = colour(SERIES[key][0]);
      context.fillRect(LABEL, top, (one[key] / most) * room, 4);
      top += 5;
    }
    context.fillStyle = colour("faint");
    context.fillText(number(one.residual), w - VALUE + 6, y + 11);
  });
  const at = (x, y) => {
    const layer = Math.floor(y / ROW), one = rows[layer];
    if (!one) return "";
    return `block ${layer}: ${Object.entries(one).filter(([, value]) => Number.isFinite(value)).map(([key, value]) => `${SERIES[key][1]} ${number(value)}`).join(", ")}`;
  };
  return html`<${Picture} width=${width} height=${rows.length * ROW} paint=${paint} at=${at} of=${[arrays, token, block, width]}
    onPick=${(x, y) => onPick(Math.max(0, Math.min(rows.length - 1, Math.floor(y / ROW))))} slider=${{ value: block, most: rows.length - 1, text: at(0, block * ROW), onChange: onStep }}
    label=${`lengths of the residual stream after ${rows.length} blocks, from ${number(rows[0].residual)} to ${number(rows.at(-1).residual)}`} />`;
}
