// What the changes do, in one line: to the likeliest token after the chosen one, or to the vector of a sentence.

import { html, useMemo } from "/web/vendor/htm-preact-3.1.1.module.js";
import { chain } from "/web/panels/sampling.js";
import { useAnswer, useTrace } from "/web/server/data.js";
import { scoresOf, softmaxAt } from "/web/parts/numbers.js";
import { outputColumn } from "/web/picture/layout.js";
import { number, percent, shown } from "/web/parts/text.js";

const LOGITS = "project.logits", MODEL = { temperature: 1, topK: 1, topP: 1 }; // the model's own probabilities, of the likeliest token alone

/** Changes that belong together, as one: those of the positions. */
export function grouped(edits) {
  const isPosition = (one) => one.point.startsWith("position"), some = edits.filter(isPosition);
  return [...(some.length ? [some] : []), ...edits.filter((one) => !isPosition(one)).map((one) => [one])];
}

/** The line, where there are changes. `choose` opens the panel of the changes; without it there is no button. */
export function Effect({ look, at, choose }) {
  if (!look.edits.length || look.recorded || !look.ids.length) return null;
  const Shown = { logits: OfToken, labels: OfLabels, pooled: OfVector }[outputColumn(look.info)];
  return html`<p class="effect" role="status"><${Shown} look=${look} at=${at} />
    ${choose && html`${" "}<button type="button" class="quiet" onClick=${() => choose({ panel: "changes" })}>all about the changes</button>`}</p>`;
}

/** The values of a point with the changes and without them. */
function useBoth(look, point, name) {
  const isOn = name in look.info.points, asks = isOn ? { points: [point] } : {};
  const [now, before] = [useTrace(look, asks), useTrace({ ...look, edits: [] }, asks)];
  return {
    now: now.arrays?.[name]?.values,
    before: before.arrays?.[name]?.values, isWaiting: !!(now.waiting || before.waiting), error: now.error ?? before.error,
  };
}

function OfToken({ look, at }) {
  const token = Math.max(0, Math.min(at.token, look.ids.length - 1)), { vocabulary } = look.info,
    { now, before, isWaiting, error } = useBoth(look, `${LOGITS}[tokens=${token}]`, LOGITS);
  const found = useMemo(() => {
    if (!now || !before) return null;
    const [was, is] = [before, now].map((logits) => chain(logits, vocabulary, MODEL, 1)[0]);
    return { was, is, after: softmaxAt(now, was.token).probability };
  }, [now, before]);
  const tokens = found ? [found.was.token, found.is.token] : [], isUnknown = tokens.some((one) => look.names[one] === undefined);
  const named = useAnswer(look, "/look/pieces", isUnknown ? { model: look.model, ids: tokens } : null);
  if (error) return html`<span class="error">${error.message}</span>`;
  if (!found) return isWaiting ? "Reading the effect …" : null;
  const nameOf = (i) => html`“<span class="piece">${shown(look.names[tokens[i]] ?? named.value?.pieces[i] ?? `#${tokens[i]}`)}</span>”`;
  const count = grouped(look.edits).length, all = count > 1 ? ` with ${count === 2 ? "both" : `all ${count}`} changes` : "";
  return html`The likeliest token ${look.info.generates ? "after" : "at"} “<span class="piece">${shown(look.pieces[token] ?? "")}</span>”: ${nameOf(0)}${" "}
    <b>${percent(found.was.plain)} →${" "}
    ${percent(found.after)}</b>${all}${tokens[1] === tokens[0]
    ? "." : html`; now ${nameOf(1)} is likeliest, ${percent(found.is.plain)}.`} <span class="note">(softmax, before the temperature)</span>`;
}

/** The output of an encoder with the changes and without them: of the text, or of the chosen token. */
function useOutputs(look, at) {
  const { point, each } = look.info.output ?? {}, token = Math.max(0, Math.min(at.token, look.ids.length - 1));
  return useBoth(look, each ? `${point}[tokens=${token}]` : point, point);
}

function OfLabels({ look, at }) {
  const { now, before, isWaiting, error } = useOutputs(look, at), { labels, scale } = look.info.output;
  if (error) return html`<span class="error">${error.message}</span>`;
  if (!now || !before) return isWaiting ? "Reading the effect …" : null;
  const [was, is] = [before, now].map((values) => scoresOf(values.slice(-labels.length), scale)), best = (scores) => scores.indexOf(Math.max(...scores));
  const said = (score) => (scale === "none" ? number(score) : percent(score)), first = best(was), other = best(is);
  return html`The score of <b>${labels[first]}</b>: ${said(was[first])} → ${said(is[first])}${other === first ? "." : html`; now <b>${labels[other]}</b> is highest, ${said(is[other])}.`}`;
}

function OfVector({ look, at }) {
  const { now, before, isWaiting, error } = useOutputs(look, at);
  if (error) return html`<span class="error">${error.message}</span>`;
  if (!now || !before) return isWaiting ? "Reading the effect …" : null;
  const size = (values) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0)), by = size(now.map((x, i) => x - before[i])), long = size(before);
  return html`The vector of the ${look.info.output.each ? "token" : "sentence"} moves by <b>${number(by)}</b>, the length of the difference: ${percent(by / (long || 1))} of its length.`;
}
