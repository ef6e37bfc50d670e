// The requests that run on the server, whatever client made them, and the values of one as it computes them.

import { html, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { array, events, get } from "/web/server/api.js";
import { Picture, colour, heat, lines, shade } from "/web/parts/draw.js";
import { lengths } from "/web/server/recorded.js";
import { counted, joined, number, shown } from "/web/parts/text.js";

const EVERY = 1000, MOST_TOKENS = 2000, MOST_PAST = 120;

/** Curves of what the model does, from one second to the next. */
function Curves({ model, width }) {
  const past = useRef([]), [, draw] = useState(0);
  useEffect(() => {
    let over = false, timer, last = null;
    const turn = async () => {
      try {
        const now = { ...(await get(`/look/state/${encodeURIComponent(model)}`)), time: performance.now() };
        if (over) return;
        if (now.loaded) {
          const passed = last && (now.time - last.time) / 1000, share = (name) => (last ? (now[name] - last[name]) / passed : 0);
          past.current = [...past.current, { ...now, busy: Math.min(1, share("step_seconds")), rate: share("steps") }].slice(-MOST_PAST);
          last = now;
          draw((n) => n + 1);
        }
      } catch {
        // The list of requests says what is wrong.
      }
      if (!over) timer = setTimeout(turn, EVERY);
    };
    turn();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [model]);
  const all = past.current, now = all.at(-1);
  if (!now) return null;
  const series = [["steps per second", "rate", "accent"], ["requests running", "running", "warm"], ["requests waiting", "waiting", "minus"]];
  return html`<div><dl class="facts-list"><dt>pages of the cache in use</dt><dd>${counted(now.pages_in_use)} of ${counted(now.pages)}</dd>
      <dt>prefix cache: pages for shared beginnings</dt><dd>${(now.prefix_cache_bytes / 1e6).toFixed(1)} MB</dd>
      <dt>share of the time that the model computes</dt><dd>${(100 * now.busy).toFixed(0)} %</dd><dt>threads</dt><dd>${now.threads}</dd></dl>
    <${Picture} width=${width} height=${90} of=${[all, width]} label=${`the last ${all.length} seconds: ${now.rate.toFixed(0)} steps per second, ${now.running} requests run, ${now.waiting} wait`}
      paint=${(context, w, h) => series.forEach(([, key, name]) => {
        const most = Math.max(1, ...all.map((one) => one[key]));
        lines(context, [{ values: all.map((one) => one[key]), colour: colour(name) }], [0, 4, (w * all.length) / MOST_PAST, h - 8], 0, most);
      })} />
    <ul class="legend">${series.map(([text, key, name]) => html`<li key=${key}><span class=${`mark ${name}`}></span>${text}: ${now[key].toFixed(0)}, at most ${Math.max(...all.map((one) => one[key])).toFixed(0)}</li>`)}</ul></div>`;
}

export function Live({ model, width }) {
  const [list, setList] = useState([]), [error, setError] = useState(null), [watched, setWatched] = useState(null);
  useEffect(() => {
    let over = false, timer;
    const turn = async () => {
      try {
        const found = await get("/v1/requests");
        if (!over) {
          setList(found.data);
          setError(null);
        }
      } catch (failed) {
        if (!over) setError(failed);
      }
      if (!over) timer = setTimeout(turn, EVERY);
    };
    turn();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, []);
  return html`<div><${Curves} model=${model} width=${width} />${error && html`<p class="error" role="alert">${error.message}</p>`}
    ${list.length === 0 && !watched && html`<p class="empty"
      role="status">No request is running. Requests of other clients appear here while they run, as far as your key may see them.</p>`}
    ${list.length > 0 && html`<div class="scroll" role="region" aria-label="a wide part that scrolls" tabindex="0"><table class="plain">
      <caption>requests that are running</caption><thead><tr><th>id</th><th>model</th><th>route</th><th class="num">prompt</th><th class="num">tokens</th><th class="num">seconds</th><th></th>
      </tr></thead>
      <tbody>${list.map((one) => html`<tr key=${one.id}><td>${one.id}</td><td>${one.model}</td><td>${one.route}</td><td class="num">${one.prompt_tokens}</td><td class="num">${one.completion_tokens}</td><td class="num">${one.seconds.toFixed(1)}</td>
        <td><button type="button" class="quiet" onClick=${() => setWatched(one.id)}>watch</button></td></tr>`)}</tbody></table></div>`}
    ${watched && html`<${Watched} key=${watched} id=${watched} onClose=${() => setWatched(null)} />`}</div>`;
}

function Watched({ id, onClose }) {
  const state = useRef({ tokens: [], norms: [], dropped: 0, status: "waiting" }), [, draw] = useState(0);
  useEffect(() => {
    const stop = new AbortController(), one = state.current;
    let planned = 0;
    const redraw = () => {
      planned ||= requestAnimationFrame(() => {
        planned = 0;
        draw((n) => n + 1);
      });
    };
    (async () => {
      try {
        for await (const event of events("GET", `/v1/requests/${encodeURIComponent(id)}/trace?points=${encodeURIComponent("blocks.*.residual")}`, undefined, stop.signal)) {
          if (event.type === "begin") one.points = event.points.map((point) => point.name);
          if (event.type === "token" && one.tokens.length < MOST_TOKENS) one.tokens.push(event);
          if (event.type === "values") keep(one, event);
          if (event.type === "dropped") one.dropped += event.frames;
          one.status = event.type === "end" ? "ended" : "running";
          redraw();
        }
      } catch (error) {
        if (error.name !== "AbortError") one.error = error;
        redraw();
      }
    })();
    return () => stop.abort();
  }, []);
  const { tokens, norms, points, dropped, status, error } = state.current, last = norms.at(-1);
  return html`<section class="watched" aria-label=${`request ${id}`}><div class="bar"><h4>Request ${id} ${status}</h4><button type="button" onClick=${onClose}>close</button></div>
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
    <p class="text">${shown(joined(tokens.map(({ text, character }) => ({ piece: text, character }))))}</p>
    ${dropped > 0 && html`<p class="note">The page skipped ${dropped} readings because it was slower than the request.</p>`}
    ${last && html`<p class="note">Length of the residual stream after the last block: ${number(last.at(-1) ?? NaN)}</p>
      <${Picture} width=${300} height=${Math.min(240, points.length * 8)} of=${[norms.length]} label=${`lengths of the residual stream after ${points.length} blocks, for the last tokens`}
        paint=${(context, w, h) => {
          const some = norms.slice(-60), cells = new Float32Array(60 * points.length).fill(NaN);
          some.forEach((column, t) => column.forEach((value, l) => (cells[l * 60 + t] = value)));
          heat(context, cells, points.length, 60, [0, 0, w, h], shade("paper", "accent", 0, Math.max(...some.flat().filter(Number.isFinite), 1e-9)));
        }} />`}</section>`;
}

function keep(one, event) {
  const layer = one.points.indexOf(event.point), found = array(event), sizes = lengths(found);
  for (let n = 0; n < found.shape[0]; n++) {
    const position = event.first + n - (one.first ??= event.first);
    if (position < 0) continue;
    const column = (one.norms[position] ??= []);
    column[layer] = sizes.values[n];
  }
}
