// What the picture finds by itself: what the model would say after each block, the block where the answer turns, and the head that reads most there.

import { changed, readFields, useAnswer } from "/web/server/data.js";
import { fills } from "/web/picture/layout.js";
import { shown } from "/web/parts/text.js";

const SAID = { " ": "space", "\n": "line end", ".": "full stop", ",": "comma" };
/** A token as words speak of it: signs that are hard to see have names. */
export const spokenOf = (piece) => SAID[piece] ?? shown(piece);

const MOST = 2048, TABLE = 160; // the last place where the lens is read; tokens of the table that a file has

/**
 * What the model would say if it stopped after each block, at position `token`, and the rank of the token `answer`:
 * {rows: [{id, name, p, rank, mine}], answer, name, vocabulary, turn}; null where it cannot be read. `mine` is the
 * probability of the answer, and `turn` the block that multiplies it most.
 */
export function useLens(look, token, answer, nameOf, isOn) {
  const { info, recorded } = look, canRead = isOn && info.generates && !fills(info) && answer !== null && token < look.ids.length && token < (recorded ? TABLE : MOST);
  const body = recorded ? { model: look.model, ...readFields(look, look.ids.slice(0, TABLE)), top: 3 } : { model: look.model, ...readFields(look, look.ids.slice(0, token + 1)), top: 1, token: answer, position: token };
  const state = useAnswer(look, "/look/lens", canRead ? changed(look, body) : null), found = state.value, place = recorded ? token : 0;
  if (!canRead || !found?.ids?.[0]?.[place]) return { isWaiting: !!state.waiting };
  const names = { ...found.texts, ...look.names }, name = (id) => spokenOf(names[id] ?? `#${id}`);
  const rows = found.ids.slice(1).map((ids, layer) => {
    const id = ids[place][0], at = recorded ? ids[place].indexOf(answer) + 1 : found.ranks[layer + 1][0][0];
    return { id, name: name(id), p: found.probabilities[layer + 1][place][0], rank: at || undefined, mine: recorded ? (at ? found.probabilities[layer + 1][place][at - 1] : undefined) : found.wanted[layer + 1][0][0] };
  });
  // A file may lack the probability of the answer after some blocks: then nobody knows where it turns.
  const isWhole = rows.every((one) => one.mine > 0);
  let [turn, best] = [null, 0];
  for (let layer = 1; isWhole && layer < rows.length; layer++) {
    const gain = Math.log(rows[layer].mine / rows[layer - 1].mine);
    if (gain > best) [turn, best] = [layer, gain];
  }
  return { lens: { rows, answer, name: shown(nameOf(answer) ?? names[answer] ?? `#${answer}`), vocabulary: info.vocabulary, turn }, isWaiting: !!state.waiting };
}

/** How specifically a head of a pattern (H, T, T) reads `key` for token `t`: {head, key, weight, score, others}. */
export function readingOf({ heads: values, count }, head, t, key) {
  const column = Array.from({ length: count }, (_, row) => values.row(head, row)[key]), rows = column.map((weight, row) => ({ weight, row })).filter(({ weight, row }) => row !== t && row !== key && row > 0 && weight > 0);
  const mean = rows.length ? rows.reduce((sum, { weight }) => sum + weight, 0) / rows.length : 0;
  return { head, key, weight: column[t], score: column[t] - mean, others: rows.sort((a, b) => b.weight - a.weight).slice(0, 2) };
}

/** The head that reads most specifically for token `t`: its weight on a key minus the mean weight of other tokens' rows on the same key. */
export function specificHead(patterns, t) {
  const { heads: values, count } = patterns;
  if (!values || values.shape[1] !== count || t >= count) return null;
  let [best, most] = [null, 0];
  for (let head = 0; head < values.shape[0]; head++) {
    const sums = new Float64Array(count), counts = new Float64Array(count), own = values.row(head, t);
    for (let row = 1; row < count; row++) {
      if (row === t) continue;
      values.row(head, row).forEach((weight, key) => {
        if (key === row || !(weight > 0)) return;
        sums[key] += weight;
        counts[key] += 1;
      });
    }
    for (let key = 0; key < count; key++) {
      const score = own[key] - (counts[key] ? sums[key] / counts[key] : 0);
      if (key !== t && score > most) [best, most] = [[head, key], score];
    }
  }
  return best && readingOf(patterns, best[0], t, best[1]);
}
