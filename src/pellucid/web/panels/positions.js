// position: how the model knows where a token stands.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { useTrace } from "/web/server/data.js";
import { Picture, colour, heat, lines, signedShade } from "/web/parts/draw.js";
import { State } from "/web/parts/show.js";
import { number } from "/web/parts/text.js";

const SAYS = {
  rotary: "Pairs of components of queries and keys are rotated by an angle that grows with the position; fast pairs first. What counts in a score is the difference of two positions.",
  added: "A vector for each position is added to the embedding.",
  alibi: "Scores fall with the distance between two tokens (ALiBi), in each head at another rate: heads with a steep line see what is near, the others see far.",
  unknown: "The file does not tell how the model knows positions.",
  none: "There is no position: the order of the tokens is in the causal mask, or in recurrent states.",
};
const NAMES = ["accent", "warm", "minus", "cool", "soft", "ink", "faint"], PAIRS = [0, 1, 2, 4, 8, 16, 32];
const MOST_DIMS = 192, CURVES = 5, FAR = 64; // components of a heat map; curves; tokens of distance

export const positions = {
  id: "positions",
  title: "Positions",
  about: "Attention itself does not know the order of tokens; this is what tells it.",
  has: () => true,
  View,
};

function View({ look, width }) {
  const { info } = look, angles = Object.keys(info.points).filter((one) => one.startsWith("position.angles"));
  const needed = { rotary: angles, added: ["embed", "position"] }[info.position] ?? [], wanted = needed.every((one) => one in info.points) ? needed : [];
  const state = useTrace(look, { points: wanted });
  return html`<div><p class="note">${SAYS[info.position]}</p>
    ${wanted.length > 0 && html`<${State} state=${state}>
      ${state.arrays && info.position === "rotary" && angles.map((one) => html`<${Angles} key=${one} of=${state.arrays[one]} width=${width} title=${angles.length > 1 && titleOf(one, info)} />`)}
      ${state.arrays && info.position === "added" && html`<${Added} embed=${state.arrays.embed} sum=${state.arrays.position} width=${width} />`}
    <//>`}
    ${info.slopes?.length > 0 && html`<${Slopes} slopes=${info.slopes} width=${width} />`}</div>`;
}

/** Lines with their names; `series` are {name, values}. */
function Curves({ series, width, low, high, label, of }) {
  const paint = (context, w, h) => lines(context, series.map(({ values }, i) => ({ values, colour: colour(NAMES[i]) })), [0, 4, w, h - 8], low, high);
  return html`<div><${Picture} width=${width} height=${150} paint=${paint} of=${of} label=${label} />
    <ul class="legend">${series.map(({ name }, i) => html`<li key=${name}><span class=${`mark ${NAMES[i]}`}></span>${name}</li>`)}</ul></div>`;
}

/** Which blocks rotate by some angles: models may have several, for near and for far tokens. */
function titleOf(name, info) {
  const blocks = info.angles?.[name];
  return blocks ? `Blocks ${blocks.join(", ")}` : name;
}

function Angles({ of, width, title }) {
  const [rows, columns] = of.shape, pairs = PAIRS.filter((one) => one < columns / 2);
  const series = pairs.map((pair) => ({ name: `cosine of pair ${pair}`, values: Array.from({ length: rows }, (_, t) => of.values[t * columns + pair]) }));
  return html`<div>${title && html`<h4>${title}</h4>`}<${Curves} series=${series} width=${width} low=${-1} high=${1} of=${[of, width]} label=${`cosines of the angles of pairs ${pairs.join(", ")} at ${rows} positions${title ? `, ${title}` : ""}`} /></div>`;
}

function Added({ embed, sum, width }) {
  const [rows, dims] = sum.shape, shownDims = Math.min(dims, MOST_DIMS), vectors = new Float32Array(rows * shownDims);
  let most = 1e-9;
  for (let t = 0; t < rows; t++) for (let d = 0; d < shownDims; d++) {
    const x = sum.values[t * dims + d] - embed.values[t * dims + d];
    vectors[t * shownDims + d] = x;
    most = Math.max(most, Math.abs(x));
  }
  const column = (d) => Array.from({ length: rows }, (_, t) => vectors[t * shownDims + d]), spread = (values) => Math.max(...values) - Math.min(...values);
  // Those that change most with the position: curves of the others are flat.
  const some = Array.from({ length: shownDims }, (_, d) => [d, spread(column(d))]).sort((a, b) => b[1] - a[1]).slice(0, CURVES).map(([d]) => d).sort((a, b) => a - b);
  const series = some.map((d) => ({ name: `component ${d}`, values: column(d) })), top = Math.max(...series.flatMap((one) => one.values.map(Math.abs)), 1e-9);
  const paint = (context, w, h) => heat(context, vectors, rows, shownDims, [0, 0, w, h], signedShade(most));
  return html`<div><${Curves} series=${series} width=${width} low=${-top} high=${top} of=${[sum, width]} label=${`the ${some.length} components of the added vectors that change most, at ${rows} positions`} />
    <${Picture} width=${width} height=${Math.min(320, Math.max(60, rows * 8))} paint=${paint} of=${[sum, width]}
      label=${`the first ${shownDims} components of the vectors that are added at ${rows} positions, as a heat map`} /></div>`;
}

function Slopes({ slopes, width }) {
  const step = Math.ceil(slopes.length / NAMES.length), some = slopes.map((slope, head) => ({ slope, head })).filter(({ head }) => head % step === 0);
  const series = some.map(({ slope, head }) => ({ name: `head ${head}: ${number(slope)} per token`, values: Array.from({ length: FAR }, (_, distance) => -slope * distance) }));
  const low = -FAR * Math.max(...slopes);
  return html`<${Curves} series=${series} width=${width} low=${low} high=${0} of=${[slopes, width]} label=${`what is added to scores at distances from 0 to ${FAR - 1} tokens, head by head`} />`;
}
