// The picture: which scene is shown, the values that it draws, and the cards below it.

import { html, useEffect, useMemo, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { sentenceOf } from "/web/panels/changes.js";
import { chain, settingsOf } from "/web/panels/sampling.js";
import { Block } from "/web/picture/block.js";
import { MAX_CANDIDATES } from "/web/picture/columns.js";
import { useCosts } from "/web/picture/costs.js";
import { Export } from "/web/picture/export.js";
import { useFlow } from "/web/picture/flow.js";
import { titleOf } from "/web/picture/graph.js";
import { Head } from "/web/picture/head.js";
import { AllHeads } from "/web/picture/heads.js";
import { ROW, UNIT, fills, rowsOf, sections } from "/web/picture/layout.js";
import { useRunning } from "/web/picture/running.js";
import { Vector } from "/web/picture/vector.js";
import { Stack } from "/web/picture/lanes.js";
import { Lead } from "/web/picture/lead.js";
import { useLens } from "/web/picture/lens.js";
import { Questions } from "/web/picture/questions.js";
import { AFTER, Scrubber, sayingOf, useReplay } from "/web/picture/replay.js";
import { Section, scalesOf } from "/web/picture/whole.js";
import { Why, useWhy } from "/web/picture/why.js";
import { useAnswer } from "/web/server/data.js";
import { VIEWS } from "/web/state/place.js";
import { TOUR } from "/web/words/tour.js";
import { isBrowsers } from "/web/parts/keys.js";
import { nameOf, shown } from "/web/parts/text.js";

const MOVES = [[".stage", "ArrowLeft", "ArrowRight"], [".candidate", "ArrowUp", "ArrowDown"], [".logit", "ArrowUp", "ArrowDown"]]; // parts that the arrow keys go through
const LEAST_ROWS = 8, MOST_ROWS = 26, AROUND = 470, CARD = 200, FRAME = 18; // rows; pixels of the page around the rows, of a card that is read beside the picture, and of the picture's edges

/**
 * `text` is what is drawn: {ids, labels, promptLength, path, isRunning}. `look` is the text whose values are read; it is shorter
 * while tokens come, whose values are in `live`. `onDraw(position, token)` makes the text branch. `onReplay(isOn)` is called when a
 * replay begins and ends. `source(at)` says where the picture comes from, `pin` is the button that keeps it,
 * `title` names it where there are two, whose scales are `common` then. In presentation mode the drawings are `scale` times as large: style.css stretches them.
 */
export function Picture({ look: whole, text, live, at, choose, edit, onDraw, width: wide, height, scale: larger, pinned, source, pin, title, common, found, isSearching, isExample, onReplay, lesson }) {
  const width = (wide - FRAME) / larger, look = useStep(whole, text, at);
  const { info } = look, count = text.ids.length, room = Math.max(LEAST_ROWS, Math.min(MOST_ROWS, Math.floor((height - (AROUND + (at.stop ? CARD : 0)) * Math.sqrt(larger)) / (ROW * larger))));
  const seen = info.generates && at.view === "whole" ? Math.min(count, at.token + 1) : count, rows = useMemo(() => rowsOf(seen, room, at.token), [seen, room, at.token]), inside = rows.filter((row) => row.t !== undefined);
  const first = inside[0]?.t ?? 0, last = inside.at(-1)?.t ?? 0, readable = Math.max(0, look.ids.length - 1), isRead = at.token <= readable, isMoving = text.isRunning && at.token + 1 >= Math.min(text.promptLength + 1, count); // a token of the prompt stays as it is when its next token is there
  const place = { ...at, token: Math.min(at.token, readable) }, flow = useFlow(isSearching || (isMoving && live) ? { ...look, isOff: true } : look, place, Math.min(first, readable), Math.min(last, readable), live);
  const before = useFlow({ ...look, edits: [], isOff: !look.edits.length }, place, Math.min(first, readable), Math.min(last, readable), null);
  // Until the logits are read, the probabilities are those that came with the token: of the settings and the changes of then.
  const next = text.path[at.token + 1 - text.promptLength], logits = isRead ? flow.logits : null, came = !logits && next?.part && JSON.stringify(next.part.edits) === JSON.stringify(look.edits) ? next : null;
  const settings = fills(info) ? PLAIN : came ? settingsOf(came.part, {}) : settingsOf(look, at), drawn = info.generates && at.token + 1 < count ? text.ids[at.token + 1] : null;
  const likely = useMemo(() => candidatesOf(logits, came, info.vocabulary, settings), [logits, came, settings.temperature, settings.topK, settings.topP]);
  const candidates = useMemo(() => likely.slice(0, Math.min(MAX_CANDIDATES, room)), [likely, room]);
  const old = useMemo(() => look.edits.length && isRead && before.logits ? new Map(chain(before.logits, info.vocabulary, settings, 200).map((one) => [one.token, one])) : null, [before.logits, isRead, settings.temperature, settings.topK, settings.topP]);
  const unnamed = candidates.filter((one) => !(one.token in look.names) && one.piece === undefined), named = useAnswer(look, "/look/pieces", unnamed.length && !isMoving ? { model: look.model, ids: likely.map((one) => one.token) } : null);
  const pieces = new Map(likely.map((one, i) => [one.token, one.piece ?? look.names[one.token] ?? named.value?.pieces[i]]));
  const own = useSteady(scalesOf(rows, flow, info), `${look.model}|${look.ids.slice(0, 8)}`);
  const scales = useCommon(own, look.model, common), parts = useMemo(() => sections(info, at.block, width), [info, at.block, width]);
  const answer = drawn ?? (isRead ? candidates[0]?.token ?? null : null), { lens, isWaiting: isLensWaiting } = useLens(look, at.token, answer, (token) => pieces.get(token), count > 0 && isRead && !isMoving && !isSearching);
  const against = likely.find((one) => one.token !== answer)?.token, why = useWhy(look, at.token, answer, against, isRead && !text.isRunning && !isSearching && at.view === "whole" && !pinned && !flow.isWaiting && (!!lens || !isLensWaiting), isExample || !!lesson);
  const columns = useMemo(() => parts.flatMap((one) => one.columns.filter((column) => column.id !== "text" || one.first)), [parts]), replay = useReplay(columns, info.generates), beat = replay.moment ? replay.moment.stage.key : null, after = replay.moment ? AFTER.indexOf(replay.moment.stage.id) : 9;
  useEffect(() => onReplay?.(replay.isOn), [replay.isOn]);
  useEffect(() => {
    if (replay.isOn) replay.stop(); // another token or text is another step
  }, [text.ids, at.token, at.view]);
  const costs = useCosts({ look, at, choose, parts }), running = useRunning(look.model, costs.isOn && !look.recorded), keep = () => pin.onClick({ look: whole, text, at, source });
  const lanes = { look, flow, at: live && isMoving ? at : place, choose, lens, costs: costs.blocks, isMoving, isHidden: replay.isOn, unknown: replay.moment?.stage.part ? at.block : -1 }, isInside = at.view === "whole" && !parts[0].isNarrow, isMap = at.view === "whole" && parts[0].isNarrow && !pinned; // on a phone the blocks stay above the parts of one
  const scene = {
    running, toured: TOUR[at.stop - 1]?.stage,
    replay, phase: after, rows, ids: text.ids, labels: text.labels, promptLength: text.promptLength, at, choose, edit, look, flow, before: look.edits.length ? before : null, candidates, drawn: after >= 3 ? drawn : null, isRead, beat, size: UNIT, form: settings, old,
    kept: likely.kept, isGiven: at.token + 1 < text.promptLength, drawnLabel: drawn === null || after < 3 ? null : shown(text.labels[at.token + 1] ?? ""), nameOf: (token) => pieces.get(token), stop: inside.some((row) => row.t === at.token) ? at.token : first, isMoving, ...scales, costs, lanes, why, tries: info.generates && !!logits && !isMoving && at.view === "whole",
    onDraw: (one) => (!info.generates ? choose({ point: "project.logits", dim: one.token, key: -1 }) : one.token === drawn ? choose({ token: at.token + 1 }) : onDraw?.(at.token, one)),
  };
  const onKeyDown = (event) => {
    const [kind, back, on] = MOVES.find(([one]) => event.target.closest(one)) ?? [], move = { [back]: -1, [on]: 1 }[event.key];
    if (kind && move && !isBrowsers(event)) {
      const all = [...box.current.querySelectorAll(kind)];
      event.preventDefault();
      all[all.indexOf(event.target.closest(kind)) + move]?.focus();
      return;
    }
    if ("+-".includes(event.key) && !isBrowsers(event) && !event.target.matches("input, textarea")) zoom(event.key === "+" ? 1 : -1);
    const by = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key], to = event.key === "Home" ? 0 : event.key === "End" ? count - 1 : by && at.token + by;
    if (to === undefined || isBrowsers(event) || !event.target.closest(".column.text")) return;
    event.preventDefault();
    follows.current = true;
    choose({ token: Math.max(0, Math.min(count - 1, to)) });
  };
  const box = useRef(null), follows = useRef(false);
  useEffect(() => {
    // The keyboard stays on the chosen token when the rows move below it, also where its row is gone.
    if (follows.current || document.activeElement?.closest?.(".column.text")) box.current.querySelector(".token.chosen")?.focus({ preventScroll: true });
    follows.current = false;
  }, [at.token, first]);
  const from = useRef(at.view);
  useEffect(() => {
    // Nearer: what comes grows; farther: it shrinks. The picture tells in which direction it went.
    const [before, now] = [VIEWS.indexOf(from.current), VIEWS.indexOf(at.view)], still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    from.current = at.view;
    if (before !== now && !still) for (const one of box.current.querySelectorAll(":scope > svg:not(.stack), :scope > div")) one.animate([{ transform: `scale(${now > before ? 0.86 : 1.14})`, opacity: 0.2 }, { transform: "none", opacity: 1 }], { duration: 260, easing: "ease-out" });
  }, [at.view]);
  const onWheel = (event) => {
    if (!event.ctrlKey || Math.abs(event.deltaY) < 4) return;
    event.preventDefault();
    zoom(Math.sign(-event.deltaY));
  };
  const swipe = useSwipe(box, at.view === "whole" && parts.length > 1);
  const zoomed = useRef(0), zoom = (by) => {
    if (performance.now() - zoomed.current < 350) return;
    zoomed.current = performance.now();
    const views = VIEWS.filter((one) => one !== "heads" || hasHeads(info)).filter((one) => one !== "head" || info.blocks[at.block]?.heads).filter((one) => one !== "vector" || at.point in info.points);
    choose({ view: views[Math.max(0, Math.min(views.length - 1, views.indexOf(at.view) + by))] });
  };
  return html`<figure class=${`picture-box view-${at.view} ${pinned ? "pinned" : ""}`} ref=${box} aria-busy=${!!(flow.isWaiting || before.isWaiting || named.waiting || isLensWaiting)} onKeyDown=${onKeyDown} onWheel=${onWheel} ...${swipe}>
    ${title && html`<p class="picture-title">${title}</p>`}
    <${Crumbs} at=${at} look=${look} labels=${text.labels} choose=${choose} pinned=${pinned}>${count > 0 && html`<span class="acts">${costs.choice}
      ${pin && html`<button type="button" disabled=${text.isRunning} title=${pin.label} onClick=${keep}>${pin.name}</button>`}
      ${source && html`<${Export} seen=${{ look: whole, text, at: place }} source=${source} pinned=${pinned} replay=${at.view === "whole" && !pinned && !text.isRunning ? replay : null} />`}</span>`}<//>
    ${count > 0 && at.view === "whole" && (replay.isOn ? html`<${Saying} of=${sayingOf(replay.moment, { look, at, flow, lens, candidates, nameOf: (token) => pieces.get(token), text })} />` : html`<${Lead} look=${look} text=${text} at=${at} candidates=${candidates} kept=${likely.kept} settings=${settings} lens=${lens} flow=${flow} nameOf=${(token) => pieces.get(token)} choose=${choose} found=${found} />`)}
    ${count > 0 && info.blocks.length > 0 && isMap && html`<div class="map"><${Stack} ...${lanes} width=${width} /></div>`}
    ${count > 0 && costs.note}
    ${look.edits.length > 0 && html`<p class="note changed" role="status">Changed: ${sentenceOf(look.edits)}. ${at.view === "whole" ? "Dashed grey lines are the values before the change." : "The values are those with the change."}${edit && html` <button type="button" class="quiet" onClick=${() => look.edits.forEach((one) => edit(one.point, null))}>Undo</button>`}</p>`}
    ${flow.error && html`<p class="error" role="alert">${flow.error.message}</p>`}
    ${count === 0 ? html`<p class="empty">Write a text, or choose an example.</p>`
    : at.view === "heads" ? html`<${AllHeads} look=${look} at=${place} choose=${choose} labels=${text.labels} width=${width} />`
    : at.view === "block" ? html`<${Block} look=${look} at=${place} choose=${choose} width=${width} />`
    : at.view === "head" ? html`<${Head} look=${look} at=${place} choose=${choose} labels=${text.labels} width=${width} room=${room} />`
    : at.view === "vector" ? html`<${Vector} look=${look} at=${place} choose=${choose} width=${width} height=${height / larger - AROUND} />`
    : parts.map((section, n) => html`<${Section} key=${`${section.columns.length}-${n}`} section=${section} scene=${scene} width=${width} sections=${parts} index=${n} />`)}
    ${count > 0 && at.view === "whole" && !pinned && !text.isRunning && html`<${Scrubber} replay=${replay} />`}
    ${count > 0 && info.blocks.length > 0 && !isInside && !isMap && html`<${Stack} ...${lanes} width=${width} />`}
    ${count > 0 && at.view === "whole" && !pinned && !replay.isOn && !at.panel && html`<${Why} why=${why} look=${look} text=${text} answer=${answer} against=${against} nameOf=${(token) => pieces.get(token)} edit=${edit} choose=${choose} />`}
    ${lesson && count > 0 && !text.isRunning && !replay.isOn && html`<${Questions} own=${lesson} at=${place} text=${text} flow=${flow} lens=${lens} kept=${likely.kept} settings=${settings} why=${why} nameOf=${(token) => pieces.get(token)} answer=${answer} />`}</figure>`;
}

const FAR = 56; // pixels of a swipe

/** On a phone the stages stand one below the other: a swipe to the left goes to the next, to the right to the one before. Handlers for the box of the picture. */
function useSwipe(box, isOn) {
  const from = useRef(null);
  if (!isOn) return {};
  const ontouchstart = (event) => {
    const [one] = event.touches;
    from.current = event.touches.length > 1 || event.target.closest(".slices, .stack, input, .scroll") ? null : [one.clientX, one.clientY];
  };
  const ontouchend = (event) => {
    const [one] = event.changedTouches, [x, y] = from.current ?? [NaN], [dx, dy] = [one.clientX - x, one.clientY - y];
    from.current = null;
    if (!(Math.abs(dx) > FAR && Math.abs(dx) > 2 * Math.abs(dy))) return;
    const top = box.current.querySelector(".map")?.offsetHeight ?? 0, all = [...box.current.querySelectorAll(".section")];
    const now = all.findLastIndex((section) => section.getBoundingClientRect().top < top + 24), next = all[Math.max(0, now) + (dx < 0 ? (now < 0 ? 0 : 1) : -1)];
    if (next) scrollTo({ top: scrollY + next.getBoundingClientRect().top - top - 8, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  };
  return { ontouchstart, ontouchend }; // in lower case, because a browser without a touch screen has no such properties
}

function Saying({ of: [title, words] }) {
  return html`<div class="lead" role="status"><p class="says">${title}</p><p class="note">${words}</p></div>`;
}

/** What is read for a token of the prompt: the prompt alone. Later tokens change none of its values, and a run need not end first. A panel reads the whole text, so the picture above it does too. */
function useStep(look, { promptLength }, { token, view, panel }) {
  const isShort = look.info.generates && !look.recorded && !look.info.encoder.length && view === "whole" && !panel && token < promptLength && promptLength < look.ids.length;
  return useMemo(() => (isShort ? { ...look, ids: look.ids.slice(0, promptLength), pieces: look.pieces.slice(0, promptLength) } : look), [look, isShort, promptLength]);
}

const PLAIN = { temperature: 1, topK: 0, topP: 1 }; // the model's own probabilities
const LIKELY = 20; // tokens whose texts are asked for: as many as the sampling panel shows, so that one answer serves both

/** The likeliest tokens after a token, with logits where they were read: [{token, logit, plain, warm, last, piece}]. `came` is the token that came next, with its alternatives. */
function candidatesOf(logits, came, vocabulary, settings) {
  if (logits) return chain(logits, vocabulary, settings, LIKELY);
  return (came?.alternatives ?? []).map((one) => ({ token: one.token, logit: NaN, plain: one.probability, warm: NaN, last: one.final_probability, piece: nameOf(one) }));
}

/** Scales that do not jump while the same text is looked at: the largest that there was. */
function useSteady(scales, of) {
  const kept = useRef({});
  if (kept.current.of !== of) kept.current = { of, ...scales };
  kept.current = { of, ...largest(scales, kept.current) };
  return kept.current;
}

/** Scales that pictures of the same model and block share, so that they can be compared; `common` is that of `useCommonScales`. */
function useCommon(own, key, common) {
  const { low, high } = own, known = common?.scales[key];
  useEffect(() => common?.add(key, { low, high }), [key, low, high, !!common]);
  return known ? largest(own, known) : own;
}

const largest = (a, b) => ({ low: Math.min(a.low, b.low), high: Math.max(a.high, b.high) });

/** The largest scales of some pictures, by model and block: {scales, add(key, scales)}. */
export function useCommonScales() {
  const [scales, setScales] = useState({}), add = (key, own) => setScales((all) => {
    const next = all[key] ? largest(own, all[key]) : own;
    return all[key]?.low === next.low && all[key]?.high === next.high ? all : { ...all, [key]: next };
  });
  return { scales, add };
}

const hasHeads = (info) => info.blocks.some((one, layer) => one.heads && `blocks.${layer}.attention.pattern` in info.points);

/** Where the picture is: from the whole down to what is shown. */
function Crumbs({ at, look, labels, choose, pinned, children }) {
  const isInBlock = at.view !== "whole" && at.view !== "heads", hasHead = at.view === "head" || (at.view === "vector" && /attention/.test(at.point));
  const block = look.info.blocks.length > 0 && [`block ${at.block}`, { view: "block" }], steps = [["the whole", { view: "whole" }], ...(at.view === "heads" ? [["all heads", { view: "heads" }]] : []), ...(isInBlock && block && at.point !== "embed" ? [block] : []), ...(hasHead ? [[`head ${at.head}`, { view: "head" }]] : []), ...(at.view === "vector" ? [[titleOf(at.point), { view: "vector" }]] : [])];
  return html`<nav class="crumbs" aria-label=${`how near the ${pinned ? "pinned " : ""}picture is`}>${steps.map(([title, place], i) => html`${i > 0 && html`<span aria-hidden="true">›</span>`}<button type="button" class="quiet" key=${title} aria-current=${i === steps.length - 1 ? "true" : null} onClick=${() => choose(place)}>${title}</button>`)}
    ${["whole", "heads"].includes(at.view) && look.info.blocks.length > 0 && html`<span class="nearer">nearer: ${at.view === "whole" && hasHeads(look.info) && html`<button type="button" class="quiet" onClick=${() => choose({ view: "heads" })}>all heads</button>`}<button type="button" class="quiet" onClick=${() => choose({ view: "block" })}>block ${at.block}</button>${look.info.blocks[at.block]?.heads > 0 && html`<button type="button" class="quiet" onClick=${() => choose({ view: "head" })}>head ${at.head}</button>`}</span>`}
    ${look.info.blocks[at.block]?.heads > 1 && html`<span class="heads"><button type="button" aria-label="the head before" disabled=${at.head === 0} onClick=${() => choose({ head: at.head - 1 })}>‹</button><span>head ${at.head} of ${look.info.blocks[at.block].heads}</span><button type="button" aria-label="the next head" disabled=${at.head >= look.info.blocks[at.block].heads - 1} onClick=${() => choose({ head: at.head + 1 })}>›</button></span>`}
    <span class="chosen-token">token ${at.token}: <b>${shown(labels[at.token] ?? "")}</b></span>${children}</nav>`;
}
