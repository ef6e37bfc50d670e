// feed-forward: the neurons of a block that a token sets off most, and the experts of a mixture.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour, heat, shade } from "/web/parts/draw.js";
import { ChooseBlock, State, Tokens, nearest } from "/web/parts/show.js";
import { number, percent, shown } from "/web/parts/text.js";

const MOST = 24, MOST_EXPERTS = 64;

export const feedforward = {
  id: "feedforward",
  title: "Feed-forward",
  about: "Each token's vector is widened to many neurons, passed through an activation, and narrowed again; no token sees another here.",
  has: (info) => Object.keys(info.points).some((one) => one.endsWith(".feedforward.hidden")),
  View,
};

function View({ look, width, at, choose, edit }) {
  const layers = look.info.blocks.map((_, layer) => layer).filter((layer) => `blocks.${layer}.feedforward.hidden` in look.info.points);
  const layer = nearest(layers, at.block), name = `blocks.${layer}.feedforward.hidden`;
  const state = useTrace(look, { points: [`${name}[tokens=${at.token}]`] });
  return html`<div><div class="bar"><${ChooseBlock} layers=${layers} value=${layer} onChange=${(block) => choose({ block })} /></div>
    <${Tokens} pieces=${look.pieces} chosen=${at.token} onChoose=${(token) => choose({ token })} label="token whose neurons are shown" />
    <${State} state=${state}>${state.arrays?.[name] && html`<${Neurons} values=${state.arrays[name].values} width=${width} layer=${layer} look=${look} edit=${edit} />`}<//></div>`;
}

function Neurons({ values, width, layer, look, edit }) {
  const order = Array.from(values.keys()).filter((neuron) => Number.isFinite(values[neuron])).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, MOST);
  const sorted = values.filter(Number.isFinite).sort(), most = Math.max(Math.abs(sorted[0]), Math.abs(sorted.at(-1)), 1e-9);
  const paint = (context, w, h) => {
    context.fillStyle = colour("accent");
    for (let x = 0; x < w; x++) {
      const value = sorted[Math.min(sorted.length - 1, Math.floor((x / w) * sorted.length))], size = (Math.abs(value) / most) * (h / 2);
      context.fillRect(x, value >= 0 ? h / 2 - size : h / 2, 1, Math.max(size, 0.5));
    }
  };
  return html`<div><${Picture} width=${width} height=${90} paint=${paint} of=${[values, width]} label=${`${values.length} neurons in order of their values, up to ${number(most)}`} />
    <h4>The strongest neurons</h4><ul class="near">${order.map((neuron) => {
      const point = `blocks.${layer}.feedforward.hidden[dims=${neuron}]`, off = look.edits.some((one) => one.point === point);
      return html`<li key=${neuron}><span class="id">${neuron}</span> <span class="num">${number(values[neuron])}</span>
        ${edit && html`<button type="button" class="quiet" aria-pressed=${off} onClick=${() => edit(point, off ? null : { edit: "ablate" })}>ablate</button>`}</li>`;
    })}</ul></div>`;
}

export const experts = {
  id: "experts",
  title: "Experts",
  about: "In a mixture a router chooses a few feed-forwards, the experts, for each token, and adds their results with weights.",
  has: (info) => info.blocks.some((one) => one.mixture),
  View: Experts,
};

function Experts({ look, width, at, choose }) {
  const layers = look.info.blocks.map((one, layer) => (one.mixture ? layer : -1)).filter((layer) => layer >= 0);
  const layer = nearest(layers, at.block), name = `blocks.${layer}.feedforward`;
  const state = useTrace(look, { points: [`${name}.experts`, `${name}.expert_weights`, `${name}.router`] });
  const { arrays } = state, scores = arrays?.[`${name}.router`];
  return html`<div><div class="bar"><${ChooseBlock} layers=${layers} value=${layer} onChange=${(block) => choose({ block })} /></div>
    <${State} state=${state}>${scores && html`
      <${Picture} width=${width} height=${Math.min(400, scores.shape[0] * 12)} of=${[scores, width]} label=${`the router's scores of ${scores.shape[1]} experts for ${scores.shape[0]} tokens`}
        paint=${(context, w, h) => {
          const low = scores.values.reduce((a, b) => Math.min(a, b)), high = scores.values.reduce((a, b) => Math.max(a, b));
          heat(context, scores.values, scores.shape[0], scores.shape[1], [0, 0, w, h], shade("paper", "accent", low, high));
        }} />
      <table class="plain"><caption>the experts that were chosen in block ${layer}, with their weights</caption><tbody>${look.pieces.slice(0, scores.shape[0]).map((piece, t) => html`
        <tr key=${t}><th scope="row">${shown(piece)}</th><td>${Array.from(arrays[`${name}.experts`].row(t).subarray(0, MOST_EXPERTS), (expert, i) => `${expert} (${percent(arrays[`${name}.expert_weights`].row(t)[i])})`).join(", ")}</td></tr>`)}</tbody></table>`}<//></div>`;
}

export const recurrent = {
  id: "recurrent",
  title: "Recurrent layers",
  about: "A recurrent layer keeps a state of fixed size in place of all keys and values: each token changes it, and reads from it.",
  has: (info) => info.blocks.some((one) => one.recurrent),
  View: Recurrent,
};

function Recurrent({ look, width }) {
  const state = useTrace(look, { norms: ["blocks.*.recurrent.output"] }), names = Object.keys(state.arrays ?? {});
  return html`<div><p class="note">Lengths of what each recurrent layer adds, token by token (a row for each layer).</p>
    <${State} state=${state}>${names.length > 0 && html`<${Picture} width=${width} height=${names.length * 14} of=${[state.arrays, width]}
      label=${`lengths of what ${names.length} recurrent layers add to ${look.pieces.length} tokens`}
      paint=${(context, w) => {
        const most = names.reduce((top, name) => state.arrays[name].values.reduce((a, b) => Math.max(a, b), top), 1e-9), of = shade("paper", "cool", 0, most);
        names.forEach((name, r) => heat(context, state.arrays[name].values, 1, state.arrays[name].shape[0], [0, r * 14, w, 12], of));
      }} />`}<//></div>`;
}
