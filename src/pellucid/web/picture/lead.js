// The sentence above the picture: what is seen, in words whose numbers are all in the picture.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";
import { ordinal } from "/web/picture/lanes.js";
import { readingOf, specificHead } from "/web/picture/lens.js";
import { PART, counted, percent, shown } from "/web/parts/text.js";

const SHOWN = 9; // tokens of the text that the sentence quotes

/** `kept` tokens can be drawn, of the `candidates` of the chosen token. */
export function Lead({ look, text, at, candidates, kept, settings, lens, flow, nameOf, choose, found }) {
  const { info } = look, count = at.token + 1, quoted = text.labels.slice(Math.max(0, count - SHOWN), count).filter((one) => one !== PART).join("").trim(), first = candidates[0];
  const quote = html`“${count > SHOWN ? "… " : ""}<span class="piece">${quoted}</span>”`;
  if (!info.generates) return html`<div class="lead"><p class="says">The ${counted(text.ids.length)} tokens of this text pass through ${info.blocks.length} blocks, from left to right.</p><p class="note"><${Reads} flow=${flow} at=${at} text=${text} choose=${choose} known=${found} /></p></div>`;
  const name = first && shown(nameOf(first.token) ?? `#${first.token}`), hasPlain = first && Number.isFinite(first.plain);
  return html`<div class="lead" aria-live="off"><p class="says">${!hasPlain ? html`After ${quote} the model draws a token.` : html`After ${quote}, the model gives <b class="answer">${name} ${percent(first.plain)}</b> of the probability.${changedBy(first, kept, settings)}`}</p>
    <p class="note">${counted(count)} ${count === 1 ? "token passes" : "tokens pass"} through ${info.blocks.length} blocks, from left to right. ${lens && html`<${Turn} lens=${lens} choose=${choose} />`} <${Reads} flow=${flow} at=${at} text=${text} choose=${choose} known=${found} /></p></div>`;
}

/** What temperature and cuts make of the likeliest token. */
function changedBy(first, kept, { temperature, topK, topP }) {
  if (temperature === 0) return " Temperature 0 always draws it.";
  const warm = temperature !== 1 && Number.isFinite(first.warm) ? ` Temperature ${temperature} makes it ${percent(first.warm)}` : "";
  const cuts = [topK > 0 && `top-k ${topK}`, topP < 1 && `top-p ${topP}`].filter(Boolean).join(" and ");
  if (!cuts || !kept) return warm && `${warm}.`;
  const left = kept === 1 ? "leaves this token alone" : `leaves ${counted(kept)} tokens`;
  return `${warm ? `${warm}; ` : " "}${warm ? cuts : cuts.replace(/^t/, "T")} ${cuts.includes(" and ") ? left.replace("leaves", "leave") : left}.`;
}

/** The block that multiplies the probability of the answer most. */
function Turn({ lens, choose }) {
  if (lens.turn === null) return null;
  const { turn, rows, name } = lens, [before, after] = [rows[turn - 1], rows[turn]], times = after?.mine / before?.mine;
  if (!(times > 1.5) || !before.rank || !after.rank) return null;
  return html`The answer turns in <button type="button" class="quiet" onClick=${() => choose({ block: turn })}>block ${turn}</button>, which makes <span class="answer">${name}</span> ${counted(times < 10 ? +times.toFixed(1) : +times.toPrecision(2))} times as likely: ${before.rank === after.rank ? `it stays ${ordinal(after.rank)}` : `from ${ordinal(before.rank)} to ${ordinal(after.rank)}`} of ${counted(lens.vocabulary)} tokens.`;
}

/** The chosen arc, the head that was found for an example, or else the head of the unfolded block that reads most specifically for the chosen token; `known` is what was found of it. */
function Reads({ flow, at, text, choose, known }) {
  const { patterns } = flow, isWhole = patterns.heads?.shape[1] === patterns.count && at.token < patterns.count, point = `blocks.${at.block}.attention.pattern`, isChosen = at.point === point && at.key >= 0 && at.key < patterns.count, isFound = known?.layer === at.block && known.head === at.head && known.token === at.token;
  const found = !isWhole ? null : isChosen || isFound ? readingOf(patterns, Math.min(at.head, patterns.heads.shape[0] - 1), at.token, isChosen ? at.key : known.key) : specificHead(patterns, at.token), name = (t) => html`<b class="piece">${shown(text.labels[t] ?? "")}</b>`;
  if (!found || (!isChosen && !isFound && found.weight < 0.2)) return null;
  const too = found.others.filter((one) => one.weight > 0.2), isKnown = known?.layer === at.block && known.head === found.head && known.token === at.token && known.key === found.key;
  return html`Head <button type="button" class="quiet" onClick=${() => choose({ head: found.head, key: found.key, point, dim: -1 })}>${found.head} of block ${at.block}</button> takes ${percent(found.weight)} of what it reads for ${name(at.token)} from ${name(found.key)}.${too.length > 0 && html` Other words look there too: ${too.map((one, n) => html`${n > 0 && ", "}${name(one.row)} ${percent(one.weight)}`)}.`}${isKnown && known.without !== undefined && html` Without this head, <span class="answer">${shown(known.text)}</span> at the end of the text goes from ${percent(known.probability)} to ${percent(known.without)}.`}`;
}
