// The replay: one step of the model from the left to the right. What lies right of the front has not happened and is not drawn.

import { html, useEffect, useMemo, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { number, percent, shown } from "/web/parts/text.js";
import { STAGE_WORDS } from "/web/words/glossary.js";

/** How long a stage lasts beside the others, by the ids of columns and of what happens after the logits. */
const WEIGHTS = { text: 0.7, tokens: 0.7, embed: 0.9, position: 0.7, slices: 2.2, norm: 0.35, qkv: 0.7, pattern: 1.8, source: 1, state: 1, neurons: 1, experts: 1, add: 0.35, logits: 1, plain: 0.7, warm: 0.8, cut: 0.7, draw: 0.7, loop: 1.4, pooled: 1, labels: 1 };
const NAMES = { text: "text", embed: "embedding", pattern: "attention", neurons: "feed-forward", experts: "experts", logits: "logits", plain: "softmax", draw: "draw" };
export const SECONDS = [8, 60];
export const AFTER = ["plain", "warm", "cut", "draw", "loop"]; // in place, after the front has reached the softmax

/** The stages of a step: [{id, key, weight, start, end, block}], from 0 to 1. */
function stagesOf(columns, generates) {
  const stages = [];
  for (const one of columns) {
    const last = stages.at(-1);
    if (one.id === "slice" && last?.id === "slices" && last.layers.at(-1) + 1 === one.layer) last.layers.push(one.layer);
    else if (one.id === "slice") stages.push({ id: "slices", key: one.key, layers: [one.layer] });
    else if (one.id === "softmax") stages.push(...AFTER.filter((id) => generates || id === "plain").map((id) => ({ id, key: id })));
    else if (one.id !== "draw") stages.push({ id: one.id, key: one.key, part: one.part });
  }
  const sum = stages.reduce((all, one) => all + WEIGHTS[one.id], 0);
  let at = 0;
  for (const one of stages) {
    one.start = at;
    at += WEIGHTS[one.id] / sum;
    one.end = at;
  }
  return stages;
}

/**
 * The replay of a step. `t` runs from 0 to 1, where the picture is finished. `on(listener)` calls the listener with `t` for each
 * frame; the page is drawn again only when another stage begins, or another block.
 */
export function useReplay(columns, generates) {
  const stages = useMemo(() => stagesOf(columns, generates), [columns, generates]), now = useRef({ t: 1, listeners: new Set() }), [moment, setMoment] = useState(null), [isPlaying, setPlaying] = useState(false), [seconds, setSeconds] = useState(SECONDS[0]);
  const momentOf = (t) => {
    if (t >= 1) return null;
    const index = Math.max(0, stages.findIndex((one) => t < one.end)), stage = stages[index] ?? stages.at(-1), share = (t - stage.start) / (stage.end - stage.start);
    return { index, stage, share, layer: stage.layers && stage.layers[Math.min(stage.layers.length - 1, Math.floor(share * stage.layers.length))] };
  };
  const seek = (t) => {
    now.current.t = Math.max(0, Math.min(1, t));
    const found = momentOf(now.current.t);
    setMoment((before) => (before?.index === found?.index && before?.layer === found?.layer ? before : found));
    if (!found) setPlaying(false);
    for (const one of now.current.listeners) one(now.current.t);
  };
  useEffect(() => {
    if (!isPlaying) return undefined;
    // Without motion the stages come one by one.
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      const next = () => {
        const stage = stages.find((one) => one.end > now.current.t + 1e-4);
        seek(stage ? stage.end - 1e-5 : 1);
      };
      const timer = setInterval(next, (1000 * seconds) / stages.length);
      return () => clearInterval(timer);
    }
    let last = performance.now(), planned = requestAnimationFrame(function frame(time) {
      const passed = Math.min(100, time - last); // a hidden tab stands still
      last = time;
      planned = requestAnimationFrame(frame);
      seek(now.current.t + passed / (1000 * seconds));
    });
    return () => cancelAnimationFrame(planned);
  }, [isPlaying, seconds, stages]);
  useEffect(() => now.current.t < 1 && seek(now.current.t), [stages]);
  return {
    stages, moment, isOn: moment !== null, isPlaying, seconds, setSeconds, momentOf, seek, t: () => now.current.t,
    play: () => {
      if (now.current.t >= 1) seek(0);
      setPlaying(true);
    },
    pause: () => setPlaying(false),
    stop: () => seek(1),
    on: (listener) => {
      now.current.listeners.add(listener);
      return () => now.current.listeners.delete(listener);
    },
  };
}

/** Where the front is in a section's pixels: [x, the column that it is in]; `Infinity` once it is through, -1 before it comes. */
export function frontOf(moment, columns, sections, index) {
  if (!moment) return [Infinity];
  const { stage, share } = moment, id = AFTER.includes(stage.id) ? "softmax" : stage.id;
  const isHere = (one) => (stage.layers ? one.id === "slice" && stage.layers.includes(one.layer) : AFTER.includes(stage.id) ? one.id === "softmax" : one.key === stage.key);
  const mine = columns.filter(isHere);
  if (!mine.length) return [sections.slice(0, index).some((one) => one.columns.some(isHere)) ? -1 : Infinity];
  if (id === "softmax") return [Infinity];
  const from = mine[0].x, to = mine.at(-1).x + mine.at(-1).width;
  return [from + (to - from) * share, mine[0]];
}

/** What the replay says at a stage, with the numbers of the picture. */
export function sayingOf({ stage, layer }, { look, at, flow, lens, candidates, nameOf, text }) {
  const name = (token) => shown(nameOf(token) ?? `#${token}`), label = shown(text.labels[at.token] ?? ""), first = candidates[0];
  if (stage.id === "slices") {
    const before = lens?.rows[layer - 1], size = (of) => number(flow.residual(of, at.token) ?? NaN);
    return [`Block ${layer} of 0 to ${look.info.blocks.length - 1}: what is right of it does not exist yet`, `The vector of ${label} has the length ${size(layer - 1)} before block ${layer} and ${size(layer)} after it.${before ? ` If the model stopped before block ${layer}, it would say ${before.name} (${percent(before.p)}).` : ""}`];
  }
  const after = { plain: ["Softmax", first && `The scores become probabilities that sum to 1: ${name(first.token)} has ${percent(first.plain)}.`], warm: ["Temperature", first && `Temperature reshapes them: ${name(first.token)} has ${percent(first.warm)} now.`], cut: ["Cuts", "Top-k and top-p cut the unlikely tokens; what is left sums to 1 again."], loop: ["And round again", "The drawn token flies to the end of the text, and the model reads it."] }[stage.id];
  const [title, words] = after ?? STAGE_WORDS[stage.id] ?? [stage.id, ""];
  return [`${title}${stage.part ? `, block ${at.block}` : ""}`, words ?? ""];
}

/** Play, the scrubber, and how long a step takes. */
export function Scrubber({ replay }) {
  const { stages, isPlaying, moment, seconds } = replay, slider = useRef(null), marks = stages.filter((one, i) => NAMES[one.id] && stages.findIndex((other) => other.id === one.id) === i);
  useEffect(() => replay.on((t) => slider.current && (slider.current.value = Math.round(t * 1000))), [replay.stages]);
  return html`<div class="scrubber"><button type="button" class="play" onClick=${isPlaying ? replay.pause : replay.play}>${isPlaying ? "Pause" : "▶ Replay"}</button>
    <span class="track"><input type="range" min="0" max="1000" defaultValue="1000" ref=${slider} aria-label="moment of the step" aria-valuetext=${moment ? `${moment.stage.id}${moment.layer === undefined ? "" : `, block ${moment.layer}`}` : "finished"} onInput=${(event) => {
      replay.pause();
      replay.seek(+event.target.value / 1000);
    }} /><span class="marks" aria-hidden="true">${marks.map((one) => html`<i key=${one.key} style=${{ left: `${(one.start * 100).toFixed(2)}%` }}>${NAMES[one.id]}</i>`)}</span></span>
    <span class="group" role="group" aria-label="length of the replay">${SECONDS.map((one) => html`<button type="button" key=${one} aria-pressed=${one === seconds} onClick=${() => replay.setSeconds(one)}>${one} s</button>`)}</span>
    ${replay.isOn && html`<button type="button" onClick=${replay.stop}>End</button>`}</div>`;
}

const TRAIL = 4; // dots behind a pulse

/** The front and the pulses of a section, moved for each frame without a new drawing. `weights` are what the chosen token reads: [[row, weight], …]. */
export function Front({ replay, columns, sections, index, rows, y, height, weights, chosen, clip }) {
  const group = useRef(null);
  const move = () => {
    const moment = replay.momentOf(replay.t()), [x, column] = frontOf(moment, columns, sections, index), svg = group.current?.ownerSVGElement, isAt = Number.isFinite(x) && x >= 0;
    if (!svg) return;
    svg.querySelector(`#${clip} rect`)?.setAttribute("width", Number.isFinite(x) ? Math.max(0, x).toFixed(1) : 10000);
    group.current.setAttribute("visibility", isAt ? "visible" : "hidden");
    if (isAt) group.current.querySelector(".edge").setAttribute("d", `M${x.toFixed(1)} 44V${height}`);
    const isReading = column?.id === "pattern", share = moment?.share ?? 0;
    group.current.querySelector(".pulses").setAttribute("transform", `translate(${isAt ? x.toFixed(1) : 0} 0)`);
    for (const chip of group.current.querySelectorAll(".chip")) {
      chip.setAttribute("visibility", isReading && isAt ? "inherit" : "hidden");
      if (isReading) chip.setAttribute("transform", `translate(${x.toFixed(1)} ${(y(+chip.dataset.from) + (y(chosen) - y(+chip.dataset.from)) * eased(share)).toFixed(1)})`);
    }
    const flight = svg.querySelector(".flight"), way = svg.querySelector(".loop .way");
    if (flight && way) {
      const isFlying = moment?.stage.id === "loop", at = isFlying && way.getPointAtLength(way.getTotalLength() * share);
      flight.setAttribute("visibility", isFlying ? "visible" : "hidden");
      if (isFlying) flight.setAttribute("transform", `translate(${at.x.toFixed(1)} ${at.y.toFixed(1)})`);
    }
  };
  useEffect(() => {
    move();
    return replay.on(move);
  });
  const shownRows = rows.map((row, i) => [row, i]).filter(([row]) => row.t !== undefined);
  return html`<g class="wavefront" ref=${group} aria-hidden="true"><path class="edge" /><g class="pulses">${shownRows.map(([row, i]) => html`<g key=${row.t} class=${i === chosen ? "chosen" : ""}>${Array.from({ length: TRAIL }, (_, n) => html`<circle key=${n} cx=${-7 * n} cy=${y(i)} r=${4.5 - n} opacity=${1 - n / TRAIL} />`)}</g>`)}</g>
    ${weights.map(([from, weight]) => html`<g key=${from} class="chip" data-from=${from}><circle r=${(2 + 6 * Math.sqrt(weight)).toFixed(1)} /></g>`)}</g>`;
}

/** The height of a point of an arc at a share of its way: level at both ends. */
function eased(share) {
  return share * share * (3 - 2 * share);
}
