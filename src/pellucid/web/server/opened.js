// The kinds of files that the page opens: recorded runs, and attribution graphs as JSON.

import { MOST_BYTES, parseGraph } from "/web/graph/read.js";
import { openRun } from "/web/server/recorded.js";
import { GRAPH_ERRORS } from "/web/words/graph.js";

const HEAD = 64; // bytes that tell the kind

/** {run} or {graph} of a file. Throws an Error whose message says what is wrong. */
export async function openFile(file) {
  if (!isJson(new Uint8Array(await file.slice(0, HEAD).arrayBuffer()))) return { run: await openRun(file) };
  if (file.size > MOST_BYTES) throw new Error(`${file.name} ${GRAPH_ERRORS.bytes(MOST_BYTES)}`);
  return { graph: parseGraph(await file.text(), file.name) };
}

/** Whether a file begins as a JSON object. A recorded run begins with the size of its header, whose last bytes are 0. */
function isJson(head) {
  return !head.includes(0) && /^[\s\ufeff]*[{[]/.test(new TextDecoder().decode(head));
}
