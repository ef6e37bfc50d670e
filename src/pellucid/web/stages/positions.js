// position: how the model knows where a token stands.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/data.js";
import { Picture, colour, heat, lines, signedShade } from "/web/draw.js";
import { State } from "/web/show.js";

const SAYS = {
  rotary: "Pairs of components of queries and keys are rotated by an angle that grows with the position; fast pairs first. What counts in a score is the difference of two positions.",
  added: "A vector for each position is added to the embedding.",
  alibi: "Scores fall with the distance between two tokens (ALiBi), in each head at another rate: look at the patterns.",
  none: "There is no position: the order of the tokens is in the causal mask, or in recurrent states.",
};

export const positions = {
  id: "positions",
  title: "Positions",
  about: "Attention itself does not know the order of tokens; this is what tells it.",
  has: () => true,
  View,
};

function View({ look, width }) {
  const { info } = look, angles = Object.keys(info.points).find((one) => one.startsWith("position.angles"));
  const wanted = info.position === "rotary" ? [angles] : info.position === "added" ? ["embed", "position"] : [];
  const state = useTrace(look, { points: wanted.filter(Boolean) });
  return html`<div><p class="note">${SAYS[info.position]}</p>
    ${wanted.length > 0 && html`<${State} state=${state}>
      ${state.arrays && info.position === "rotary" && html`<${Angles} of=${state.arrays[angles]} width=${width} />`}
      ${state.arrays && info.position === "added" && html`<${Added} embed=${state.arrays.embed} sum=${state.arrays.position} width=${width} />`}
    <//>`}</div>`;
}

function Angles({ of, width }) {
  const [rows, columns] = of.shape, pairs = columns / 2, some = [0, 1, 2, 4, 8, 16, 32].filter((one) => one < pairs);
  const names = ["accent", "warm", "minus", "cool", "soft", "ink", "faint"];
  const paint = (context, w, h) => {
    const series = some.map((pair, i) => ({ values: Array.from({ length: rows }, (_, t) => of.values[t * columns + pair]), colour: colour(names[i]) }));
    lines(context, series, [0, 4, w, h - 8], -1, 1);
  };
  return html`<div><${Picture} width=${width} height=${150} paint=${paint} of=${[of, width]}
      label=${`cosines of the angles of pairs ${some.join(", ")} at ${rows} positions`} />
    <ul class="legend">${some.map((pair, i) => html`<li key=${pair}><span class=${`mark ${names[i]}`}></span>cosine of pair ${pair}</li>`)}</ul></div>`;
}

function Added({ embed, sum, width }) {
  const [rows, dims] = sum.shape, shownDims = Math.min(dims, 192), vectors = new Float32Array(rows * shownDims);
  let most = 1e-9;
  for (let t = 0; t < rows; t++) for (let d = 0; d < shownDims; d++) {
    const x = sum.values[t * dims + d] - embed.values[t * dims + d];
    vectors[t * shownDims + d] = x;
    most = Math.max(most, Math.abs(x));
  }
  const paint = (context, w, h) => heat(context, vectors, rows, shownDims, [0, 0, w, h], signedShade(most));
  return html`<${Picture} width=${width} height=${Math.min(320, Math.max(60, rows * 8))} paint=${paint} of=${[sum, width]}
    label=${`the vectors that are added at ${rows} positions, as a heat map`} />`;
}
