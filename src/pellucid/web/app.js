// The page: a text, the picture of its way through the model, and each stage in depth.

import { html, render, useEffect, useMemo, useRef, useState } from "/web/vendor/htm-preact-3.1.1.module.js";
import { GraphFile } from "/web/graph/file.js";
import { useChat } from "/web/page/chat.js";
import { Form } from "/web/page/form.js";
import { LessonHead } from "/web/page/lesson.js";
import { Header, Key } from "/web/page/header.js";
import { useScreen, useTourKeys } from "/web/page/screen.js";
import { Branches, Text } from "/web/page/text.js";
import { Changes } from "/web/panels/changes.js";
import { grouped } from "/web/panels/effect.js";
import { Live } from "/web/panels/requests.js";
import { Timings } from "/web/panels/timings.js";
import { Panels, STAGES } from "/web/panels.js";
import { Guarded, Still } from "/web/parts/show.js";
import { counted, labelled } from "/web/parts/text.js";
import { streamed } from "/web/picture/flow.js";
import { sections } from "/web/picture/layout.js";
import { NumberCard } from "/web/picture/number.js";
import { Pictures } from "/web/picture/pinned.js";
import { get, storage } from "/web/server/api.js";
import { openFile } from "/web/server/opened.js";
import { readRun } from "/web/server/recorded.js";
import { FORM, fromAddress, toAddress } from "/web/state/address.js";
import { useFinding } from "/web/state/finding.js";
import { usePlace, within } from "/web/state/place.js";
import { asked, promptOf, useWriting } from "/web/state/writing.js";
import { AboutCard } from "/web/words/about.js";
import { Examples, examplesOf } from "/web/words/examples.js";
import { TOUR } from "/web/words/tour.js";

const OWN = "pellucid.page"; // where this tab keeps the address of its text while it is reloaded
const LONG = 4000; // characters of a text from which on patterns are not streamed
const QUIET = 400; // milliseconds before the address follows a form

function App({ report }) {
  const [first] = useState(report && { run: report }), [opened, setOpened] = useState(first), [failed, setFailed] = useState(null), [pinned, setPinned] = useState(null);
  const open = async (file) => {
    setFailed(null);
    try {
      setOpened(await openFile(file));
    } catch (error) {
      setFailed(error);
    }
  };
  useDrop(open);
  const onFile = { onFile: open, fileError: failed, pinned, setPinned }, onClose = opened === first ? null : () => setOpened(first), { run, graph } = opened ?? {};
  // The page of the server stays what it is while a file is open.
  return html`${run && html`<${Recorded} key=${`run ${run.number}`} recorded=${run} ...${onFile} onClose=${onClose} />`}
    ${graph && html`<${OpenGraph} key=${`graph ${graph.number}`} graph=${graph} ...${onFile} onClose=${onClose} />`}
    ${!report && html`<${Served} isHidden=${!!opened} ...${onFile} />`}`;
}

/** Files that are dropped on the page are opened. */
function useDrop(open) {
  const now = useRef(open);
  now.current = open;
  useEffect(() => {
    const isFile = (event) => event.dataTransfer?.types.includes("Files"), over = (event) => isFile(event) && event.preventDefault();
    const drop = (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      if (event.dataTransfer.files.length) now.current(event.dataTransfer.files[0]);
    };
    addEventListener("dragover", over);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", over);
      removeEventListener("drop", drop);
    };
  }, []);
}

/** An attribution graph of a file. */
function OpenGraph({ graph, onFile, fileError, onClose }) {
  const { tools } = useScreen();
  return html`<${Header} file=${graph.name} onFile=${onFile} onClose=${onClose} tools=${tools} /><${Guarded} body=${() => html`<${GraphFile} graph=${graph} error=${fileError} />`} />`;
}

/** The tour: which stop is open, and how to go on. */
function tourTool(at, choose) {
  return { name: at.stop ? `Tour ${at.stop}/${TOUR.length}` : "Tour", label: "a walk through the picture in nine stops", pressed: at.stop > 0, onClick: () => choose({ stop: at.stop ? 0 : 1 }) };
}

/** A run of a file: what it holds is all there is to see. */
function Recorded({ recorded, onFile, fileError, onClose, pinned, setPinned }) {
  const { facts, arrays, info, text } = recorded, [place, choose] = usePlace(info.encoder.length ? { panel: "source" } : {}), { width, height, scale, isPresented, tools } = useScreen();
  const path = text.tree.path(text.leaf), ids = [...text.prompt, ...path.map((one) => one.token)], pieces = labelled(facts.pieces, text.characters), readable = Math.max(1, ids.length - (path.length ? 1 : 0)); // the last token was not read
  const look = { model: "", info, ids, pieces, source: recorded.source, promptLength: text.prompt.length, text: facts.question ?? "", path, edits: [], recorded, names: namesOf(ids, facts.pieces, path) }, at = within(place, ids.length, info.blocks, readable - 1);
  const panels = STAGES.filter((one) => one.has(info) && (!one.asks || recorded.answers.has(one.asks)))
    .map((one) => ({ ...one, body: () => html`<${one.View} look=${look} width=${(width - 34) / scale} at=${at} choose=${choose} edit=${null} open=${opens(choose, panelsOf(panels))} />` }));
  useTourKeys(isPresented, at, choose);
  const drawn = { ids, labels: pieces, promptLength: text.prompt.length, path, isRunning: false };
  return html`<${Header} info=${info} file=${recorded.name} onFile=${onFile} onClose=${onClose} tools=${[tourTool(at, choose), ...tools]} />
    <main><section class="write" aria-labelledby="replay-title"><h2 id="replay-title">A recorded run</h2>
      <p class="note">${counted(Object.keys(arrays).length)} recorded points of ${facts.model.name}. ${facts.finish_reason
        ? `The text ended: ${facts.finish_reason}.` : ""}${facts.edits.length > 0 ? ` Changed: ${facts.edits.join(", ")}.` : ""}</p>
      ${(facts.notes ?? []).map((note, i) => html`<p class="note" key=${i}>${note}</p>`)}
      ${fileError && html`<p class="error" role="alert">${fileError.message}</p>`}
      <${Text} labels=${pieces} path=${path} promptLength=${text.prompt.length} at=${at} choose=${choose} running=${false} /></section>
      <${Guarded} body=${() => html`<${Pictures} look=${look} text=${drawn} live=${null} at=${at} choose=${choose} edit=${null} width=${width} height=${height} scale=${scale}
        pinned=${pinned} setPinned=${setPinned} source=${() => ({ file: recorded.name })} />`} />
      <${NumberCard} look=${look} at=${at} choose=${choose} labels=${pieces} edit=${null} />
      <${Levels} isToured=${at.stop > 0} panels=${html`<${Panels} panels=${panels} open=${at.panel} choose=${choose} model=${info.model} isToured=${at.stop > 0} />`} card=${html`<${AboutCard} look=${look} at=${at} choose=${choose} labels=${pieces} />`} /></main>`;
}

/** The open panel below the picture, and the explanation of what is chosen; during the tour its card is nearer to the picture. */
function Levels({ isToured, panels, card }) {
  const cards = html`<div class="cards" key="cards">${card}</div>`;
  return isToured ? html`${cards}${panels}` : html`${panels}${cards}`;
}

const panelsOf = (panels) => panels.map((one) => one.id);

/** The models of a server. */
function Served({ isHidden, onFile, fileError, pinned, setPinned }) {
  const [isOwn] = useState(ownAddress), said = useMemo(() => fromAddress(location.hash), []), [models, setModels] = useState(null), [model, setModel] = useState(null), [info, setInfo] = useState(null), [error, setError] = useState(null), [turn, setTurn] = useState(0);
  const [agreed, setAgreed] = useState(false), [form, setForm] = useState({ ...FORM, ...said.form }), [edits, setEdits] = useState(said.edits ?? []), { width, height, scale, isPresented, tools } = useScreen(), now = useRef({});
  const address = (place, run) => toAddress({ model, form, at: place, edits, made: run.made, leaf: run.leaf, lesson: said.lesson });
  const write = (place, isStep) => now.current.isReady && history[isStep ? "pushState" : "replaceState"](null, "", address(place, now.current.run)[0]);
  const read = () => {
    const found = fromAddress(location.hash);
    return found.model === model && JSON.stringify(found.made) === JSON.stringify(fromAddress(address(now.current.at, now.current.run)[0]).made) ? found.at : null;
  };
  const [wanted, choose] = usePlace(said.at, write, read);
  // Without a key that counts nothing can be asked: the page asks for one.
  const onError = (one) => one.status === 401 && (setError(one), true);
  const writing = useWriting({ model, info, onError, watched: () => streamed(info, now.current.at, now.current.form.text.length > LONG) }), { run, running } = writing;
  const finding = useFinding({ model, choose }), [isExample, setExample] = useState(false), chat = useChat(model, run, (one) => begin(() => writing.write(one, edits)), writing.clear);
  const begin = (what, keepsPlace) => {
    said.made = null;
    setExample(false);
    if (!keepsPlace) choose({ token: -1, key: -1, dim: -1, source: -1, temperature: -1, top_k: -1, top_p: -1 }); // what the sliders try ends with a run
    if (!keepsPlace && !info.generates && form.text !== run.text) setEdits([]); // changes of an encoder are about one sentence
    what();
  };
  const retry = () => {
    setError(null);
    setTurn((n) => n + 1);
  };

  useEffect(() => {
    get("/look/models").then((found) => {
      setModels(found.models);
      setError(null);
      const names = found.models.map((one) => one.name);
      if (said.model && !names.includes(said.model)) {
        said.made = null;
        writing.setFailed(new Error(`This link is about the model ${said.model}, which the server does not have.`));
      }
      setModel((before) => before ?? (names.includes(said.model) ? said.model : names[0]));
    }, setError);
  }, [turn]);

  // Any site can open this page at an address: what the address asks for begins with a click.
  const asksToLoad = !agreed && said.model === model && models?.find((one) => one.name === model)?.loaded === false;
  useEffect(() => {
    if (!model || asksToLoad) return undefined;
    const stop = new AbortController();
    writing.clear();
    setInfo(null);
    const begun = (found) => {
      if (found.encoder.length && !now.current.wanted?.panel) choose({ panel: "source" });
      setInfo(found);
    };
    get(`/look/models/${encodeURIComponent(model)}`, stop.signal).then(begun, (one) => one.name !== "AbortError" && setError(one));
    return () => stop.abort();
  }, [model, turn, asksToLoad]);

  const offered = info && said.model === model && said.made?.[0]?.form.text ? said.made : null;
  const again = () => begin(() => (info.generates ? writing.again(offered, said.leaf) : writing.write(offered[0].form, edits)), true);
  const { tree, leaf } = run, path = tree.path(leaf), [isReplayed, setReplayed] = useState(false);
  const text = useMemo(() => {
    const pieces = [...run.pieces, ...path.map((one) => one.piece)];
    const source = run.source && { ids: run.source.ids, pieces: labelled(run.source.pieces, run.source.characters) };
    return { source, ids: [...run.prompt, ...path.map((one) => one.token)], labels: labelled(pieces, [...run.characters, ...path.flatMap((one) => one.character ?? [])]), promptLength: run.prompt.length, path, isRunning: running };
  }, [run, running]);
  // While tokens come, values are read of the text as it was when the run began; those of the tokens come with them.
  const began = running ? Math.max(1, run.began) : text.ids.length, look = useMemo(() => ({
    model, info, edits, form, ids: text.ids.slice(0, began), pieces: text.labels.slice(0, began), source: text.source, promptLength: text.promptLength, text: run.text,
      path: text.path,
    names: namesOf(text.ids, text.labels, text.path),
  }), [model, info, edits, form, began, running, running ? run.prompt : text]);
  // The usual token is the token after which the last one was drawn. While the text grows, it is the chosen token, or one of the prompt is.
  const usual = text.ids.length - (text.path.length ? 2 : 1);
  const at = useMemo(() => within(running && wanted.token >= text.promptLength ? { ...wanted, token: -1 } : wanted, text.ids.length, info?.blocks ?? [], usual), [wanted, running, usual, text.ids.length, info]);
  useTourKeys(isPresented, at, choose);
  now.current = { at, wanted, run, form, address, isReady: !!info && !offered && !running };
  useEffect(() => {
    if (!info || running || offered) return undefined;
    const timer = setTimeout(() => history.replaceState(null, "", address(now.current.wanted, now.current.run)[0]), QUIET); // the place may be another by then
    return () => clearTimeout(timer);
  }, [model, info, form, edits, run.made, run.leaf, running, offered]);

  // A reload keeps the text and the picture, also in the middle of a run.
  const isReloaded = isOwn && !!offered && !running;
  useEffect(() => {
    if (isReloaded) again();
  }, [isReloaded]);
  useEffect(() => {
    const keep = () => now.current.run.made.length && storage.setItem(OWN, now.current.address(now.current.wanted, now.current.run)[0]);
    addEventListener("pagehide", keep);
    return () => removeEventListener("pagehide", keep);
  }, []);

  // The page opens on a finished picture. An address says what is asked instead, and a link of others begins with a click.
  const isFirst = info && !offered && !run.prompt.length && !running && said.model === undefined;
  useEffect(() => {
    if (isFirst) now.current.example?.(examplesOf(info)[0]);
  }, [info, isFirst]);

  const { lesson } = said, edit = info && !info.notice && !lesson ? (point, change) => setEdits((all) => [...all.filter((one) => one.point !== point),
    ...(change ? [{ ...change, point }] : [])]) : null; // where nothing can be read, nothing can be changed; the run of a class stays what it is
  const changeModel = (name) => {
    said.made = null;
    setError(null);
    setEdits([]);
    setModel(name);
  };
  const header = (more) => html`<${Header} models=${models} model=${model} onModel=${changeModel} onFile=${onFile} ...${more} />`;
  if (isHidden) return null;
  if (error) return html`${header()}<main><p class="error" role="alert">${error.message}</p>
    ${error.status === 401 ? html`<${Key} onKey=${retry} />` : html`<button type="button" onClick=${retry}>Try again</button>`}</main>`;
  if (asksToLoad) return html`${header()}<main><p role="status">This link is about ${model}, which the server has not loaded. <button type="button"
    onClick=${() => setAgreed(true)}>Load it</button></p></main>`;
  if (!info) return html`${header()}<main><p class="empty" role="status">${model ? `Loading ${model} …` : "Asking the server for its models …"}</p></main>`;

  const source = (place, questions = lesson) => {
    const [hash, isWhole] = toAddress({ model, form, at: place, edits, made: run.made, leaf: run.leaf, lesson: questions });
    return { address: `${location.origin}/${hash}`, isWhole };
  };
  const isSame = run.text === form.text && run.prompt.length > 0;
  const on = {
    run: () => begin(() => writing.write(form, edits)),
    step: () => begin(() => (isSame ? writing.more(form, edits, 1) : writing.write({ ...form, max_tokens: 1 }, edits))),
    stop: writing.stop,
  };
  const example = (one) => {
    const next = { ...form, ...one.form };
    setForm(next);
    begin(() => writing.write(next, [], true));
    setEdits([]);
    setExample(true);
    const { panel, ...place } = one.at ?? {}, hasPanel = STAGES.some((stage) => stage.id === panel && stage.has(info));
    choose({ view: "whole", block: Math.floor(info.blocks.length / 2), head: 0, ...place, ...(hasPanel && { panel }) });
    finding.find(one);
  };
  now.current.example = example;
  // Another token at a place of the text: after the prompt's end it is a branch of the tree.
  const drawInstead = (position, { token, piece, plain }) => {
    const node = path[position + 1 - text.promptLength];
    if (!node) return;
    const taken = tree.siblings(node).find((other) => other.token === token);
    choose({ token: -1 });
    if (taken) writing.follow(taken);
    else writing.branch(node.parent, token, form, edits, { token, piece: piece ?? look.names[token] ?? "", text: piece ?? "", probability: plain, alternatives: node.alternatives, part: node.part });
  };
  const open = opens(choose, STAGES.filter((one) => one.has(info)).map((one) => one.id)), inside = (width - 34) / scale;
  const panels = [
    ...STAGES.filter((one) => one.has(info)).map((one) => ({ ...one, body: () => (look.ids.length
      ? html`<${one.View} look=${look} width=${inside} at=${{ ...at, token: Math.min(at.token, look.ids.length - 1) }} choose=${choose} edit=${edit} open=${open} />`
      : html`<p class="empty">${info.generates ? "Run a text first." : "Read a sentence first."}</p>`) })),
    ...(edit ? [{ id: "changes", title: edits.length ? `Changes (${grouped(edits).length})` : "Changes",
      about: `What you change in the model while it computes, and what the changes do to ${info.generates ? "the text" : "what the model makes of the sentence"}. Other requests on the server are not affected.`,
      body: () => html`<${Changes} edits=${edits} onEdit=${edit} at=${at} ask=${asked(model, form, edits, promptOf(form, info))} look=${{ ...look, text: form.text }} />` }] : []),
    // The steps of an encoder-decoder cannot be profiled.
    ...(info.encoder.length || lesson ? [] : [{ id: "timings", title: "Timings", about: "Where the time of a step goes: the time of each operation, measured on this machine, and the bytes of weights that it reads.",
      body: () => html`<${Timings} model=${model} info=${info} />` }]),
    ...(lesson ? [] : [{ id: "live", title: "Requests", about: "The requests that are running on this server now, as far as your key may see them.",
      body: () => html`<${Live} model=${model} width=${inside} />` }]),
  ];
  const still = (of, body) => html`<${Still} isStill=${running} of=${[info, form, edits, width, height, scale, ...of]} body=${body} />`, readToken = Math.min(at.token, look.ids.length - 1);
  return html`${still([at.stop, isPresented, model], () => header({ info, tools: [tourTool(at, choose), ...tools] }))}
    <main>
      ${lesson ? html`<${LessonHead} form=${form} model=${model} begin=${offered && again} running=${running} />` : still([form.chat ? run : null, running, writing.failed, fileError, run.dropped, run.made.at(-1)], () => html`<${Form} info=${info} form=${form} setForm=${setForm} on=${on} chat=${chat} running=${running} error=${writing.failed ?? fileError} dropped=${run.dropped}
        made=${run.made.at(-1)} count=${text.ids.length} edits=${edits} finish=${run.finish} notices=${run.notices}
        offer=${offered && again} link=${run.made.length > 0 && (() => Object.values(source(at)))} classLink=${info.generates && run.made.length > 0 && ((questions) => Object.values(source(at, questions)))} />`)}
      ${!lesson && html`<${Examples} info=${info} current=${form.text} isBusy=${running} onChoose=${example} />`}
      ${text.ids.length > 0 && html`<${Text} labels=${isReplayed ? text.labels.slice(0, at.token + 1) : text.labels} path=${isReplayed ? text.path.slice(0, Math.max(0, at.token + 1 - text.promptLength)) : text.path} promptLength=${text.promptLength} at=${at} choose=${choose} running=${running} generates=${info.generates} />`}
      <${Branches} tree=${tree} running=${running} current=${leaf} onFollow=${(node) => { choose({ token: -1 }); writing.follow(node); }} />
      ${(text.ids.length > 0 || !offered) && still([at, finding.isSearching, finding.head, finding.isSearching || at.token + 1 < Math.min(text.promptLength + 1, text.ids.length) || text, pinned], () => html`<${Pictures} look=${look} text=${text} live=${run.live} at=${at} choose=${choose} edit=${edit} onDraw=${running || lesson ? undefined : drawInstead} lesson=${lesson} width=${width} height=${height} scale=${scale} onReplay=${setReplayed} found=${finding.head} isSearching=${finding.isSearching} isExample=${isExample}
        pinned=${pinned} setPinned=${setPinned} source=${source} />`)}
      ${still([look, isExample, readToken, at.block, at.head, at.point, at.key, at.source, at.dim, at.view, at.panel, at.stop], () => html`<${Guarded} body=${() => html`<${NumberCard} look=${look} at=${{ ...at, token: readToken }} choose=${choose} labels=${text.labels} edit=${edit} />`} />
        <${Levels} isToured=${at.stop > 0} panels=${html`<${Panels} panels=${panels} open=${at.panel} choose=${choose} notice=${info.notice} model=${info.model} isToured=${at.stop > 0 || isExample} />`} card=${html`<${AboutCard} look=${look} at=${at} choose=${choose} labels=${text.labels} onExample=${example} />`} />`)}
    </main>`;
}

/** Whether this tab is reloaded: then its own address, which may be newer than that of the browser, stands there again. */
function ownAddress() {
  const kept = storage.getItem(OWN), isReload = performance.getEntriesByType("navigation")[0]?.type === "reload";
  storage.removeItem(OWN);
  if (!kept || !isReload) return false;
  history.replaceState(null, "", kept);
  return true;
}

/** A function that opens the first of some panels that is there. */
function opens(choose, known) {
  return (...ids) => {
    const panel = ids.find((one) => known.includes(one));
    if (panel) choose({ panel });
  };
}

/** The texts of tokens that are known already, by their numbers. */
function namesOf(ids, pieces, path) {
  const found = {};
  pieces.forEach((piece, i) => (found[ids[i]] = piece));
  for (const node of path) for (const one of node.alternatives ?? []) found[one.token] = one.piece;
  return found;
}

// A report is this page with a run in it (trace/report.py).
const held = document.getElementById("run"), app = document.getElementById("app");
(held ? readRun(held) : Promise.resolve(null)).then(
  (report) => {
    render(html`<${App} report=${report} />`, app);
    document.querySelector("#app > p.empty")?.remove();
  },
  (error) => (app.textContent = `The report cannot be opened: ${error.message}`),
);
