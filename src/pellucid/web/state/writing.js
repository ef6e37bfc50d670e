// The text that is written: its prompt (in an encoder-decoder: its source, and the first tokens of the decoder), the tree of what was generated, and how each part of it was made.

import { useCallback, useEffect, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { events, post } from "/web/server/api.js";
import { readFields } from "/web/server/data.js";
import { Tree } from "/web/state/tree.js";
import { Streamed } from "/web/picture/flow.js";

const EMPTY = { source: null, prompt: [], pieces: [], characters: [], tree: new Tree(), leaf: 0, text: "", made: [], finish: null, notices: [], live: null, dropped: 0, began: 0 };
const ALTERNATIVES = 12;

/** The body of a request for tokens. */
export function asked(model, form, edits, more) {
  const { temperature, top_k, top_p, seed, max_tokens } = form;
  return { model, edits, temperature, top_k, top_p, seed, max_tokens, alternatives: ALTERNATIVES, ...more };
}

/** What the model reads by a form: a text, a message, or the messages of a chat. */
export function promptOf(form, info) {
  return form.chat && info?.chat ? { messages: form.messages ?? [{ role: "user", content: form.text }] } : { prompt: form.text };
}

/**
 * The text of the page, and how to write it. `onError` gets an error, and returns whether the page shows it itself.
 * `watched()` are the fields of the values that the stream carries with each token; `run.live` has them. `run.began` is the
 * number of tokens that were there when the run began.
 *
 * A part is {from, token, count, form, edits}: after a node of the tree, and with `token` as the first (none: the model's
 * own), so many tokens came. The same parts give the same text, because the same request gives the same tokens. A node of the
 * tree has the part that its alternatives came with.
 */
export function useWriting({ model, info, onError, watched }) {
  const [run, setRun] = useState(EMPTY), [running, setRunning] = useState(false), [failed, setFailed] = useState(null), stopper = useRef(null);
  const fail = (error) => error.name !== "AbortError" && !onError(error) && setFailed(error);
  const stop = useCallback(() => stopper.current?.abort(), []);
  useEffect(() => stop, []);
  const clear = useCallback(() => {
    stop();
    stopper.current = null;
    setRunning(false);
    setRun(EMPTY);
  }, []);

  /** Do something that ends with the next of its kind. Returns what it returns, or undefined. */
  const alone = async (work) => {
    stop();
    const mine = (stopper.current = new AbortController()), isLast = () => stopper.current === mine;
    setRunning(true);
    setFailed(null);
    let found;
    try {
      found = await work(mine.signal, isLast);
    } catch (error) {
      if (isLast()) fail(error);
    }
    if (isLast()) setRunning(false);
    return found;
  };

  /** Ask for one part's tokens after what is there, and add them as they come. Returns the text with them. */
  const add = async (begin, part, body, signal, isLast) => {
    const made = { ...part, count: 0 };
    const fields = watched(), live = new Streamed(fields, part.edits), known = begin.prompt.length + begin.tree.path(begin.leaf).length;
    let state = { ...begin, made: [...begin.made, made], finish: null, notices: [], live, dropped: 0, began: known }, planned = 0, ended = false;
    const draw = () => {
      planned ||= requestAnimationFrame(() => {
        planned = 0;
        if (isLast()) setRun({ ...state });
      });
    };
    try {
      for await (const event of events("POST", "/look/generate", { ...body, ...fields }, signal)) {
        if (event.type === "prompt" && !state.prompt.length) state = { ...state, source: event.source ?? null, prompt: event.ids, pieces: event.pieces, characters: event.characters, began: event.ids.length };
        if (event.type === "prompt") live.names(event.norms ?? []);
        if (event.type === "values") live.take(event);
        if (event.type === "dropped") state = { ...state, dropped: state.dropped + event.frames };
        if (event.type === "token") {
          made.count++;
          state = { ...state, leaf: state.tree.add(state.leaf, { ...event, part }).id };
        }
        if (event.type === "end") {
          ended = true;
          state = { ...state, finish: event.finish_reason, notices: event.notices };
        }
        if (event.type === "error" || event.error) throw new Error(event.error?.message ?? event.message);
        draw();
      }
      if (!ended) throw new Error("The server stopped before the end of the text.");
    } finally {
      cancelAnimationFrame(planned);
      if (isLast()) setRun({ ...state });
    }
    return state;
  };

  const first = (form) => ({ ...EMPTY, tree: new Tree(), text: form.text });
  const begun = (begin, part, other) => {
    if (part.token === null && !part.from) return [begin, promptOf(part.form, info)];
    const upTo = (leaf) => readFields({ source: begin.source, promptLength: begin.prompt.length }, [...begin.prompt, ...begin.tree.path(leaf).map((one) => one.token)]);
    if (part.token === null) return [{ ...begin, leaf: part.from }, upTo(part.from)];
    const known = begin.tree.alternative(part.from, part.token) ?? other;
    if (!known) throw new Error("This model makes another text than the address describes: the model is not the same.");
    const leaf = begin.tree.add(part.from, known).id;
    return [{ ...begin, leaf }, upTo(leaf)];
  };

  /** Generate a text, or read a sentence of an encoder. A text that `isShown`, rather than made anew, may be one that the server remembers. */
  const write = (form, edits, isShown = false) => alone(async (signal, isLast) => {
    const begin = first(form);
    if (info.generates) return add(begin, { from: 0, token: null, form, edits }, asked(model, form, edits, { ...promptOf(form, info), ...(isShown && { remembered: true }) }), signal, isLast);
    const found = await post("/look/trace", { model, prompt: form.text, points: ["embed[tokens=0; dims=0]"] }, signal);
    return isLast() && setRun({ ...begin, prompt: found.prompt, pieces: found.pieces, characters: found.characters, made: [{ from: 0, token: null, count: 0, form, edits }] });
  });

  /** Continue with another token after a node; `other` describes it, if it is not among the alternatives. */
  const branch = (from, token, form, edits, other) => alone((signal, isLast) => {
    const part = { from, token, form, edits }, [begin, prompt] = begun(run, part, other);
    return add(begin, part, asked(model, form, edits, prompt), signal, isLast);
  });

  /** Add tokens after the end of the text. The seed moves on with the text: each token has a random number of its own. */
  const more = (form, edits, count) => alone((signal, isLast) => {
    const depth = run.tree.path(run.leaf).length, part = { from: run.leaf, token: null, form: { ...form, max_tokens: count, seed: (form.seed + depth) % 2 ** 32 }, edits }, [begin, prompt] = begun(run, part);
    return add(begin, part, asked(model, part.form, edits, prompt), signal, isLast);
  });

  /** Make parts again, and show the branch that ends at `leaf`. */
  const again = (parts, leaf) => alone(async (signal, isLast) => {
    let state = first(parts[0].form);
    for (const part of parts) {
      const [begin, prompt] = begun(state, part);
      // A part that was stopped before its first token had none.
      state = part.count ? await add(begin, part, asked(model, { ...part.form, max_tokens: part.count }, part.edits, { ...prompt, remembered: true }), signal, isLast) : { ...begin, made: [...begin.made, part] };
    }
    if (isLast()) setRun({ ...state, live: null, leaf: state.tree.nodes.has(leaf) ? leaf : state.leaf });
  });

  // The values that came are of the last part that was written.
  const follow = (leaf) => setRun({ ...run, live: null, leaf: run.tree.end(leaf).id });
  return { run, running, failed, setFailed, stop, clear, write, more, branch, again, follow };
}
