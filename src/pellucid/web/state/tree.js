// The tokens that were generated, as a tree: a branch shares all tokens before it.

import { graphemesOf, joined } from "/web/parts/text.js";

export class Tree {
  constructor() {
    this.nodes = new Map(); // by id; 0 is the prompt
    this.nodes.set(0, { id: 0, parent: null, children: [] });
    this.next = 1;
    this.forks = 0; // nodes with more than one child
  }

  /** A token after another one; the same token is not added twice. */
  add(parent, token) {
    const known = this.nodes.get(parent).children.map((id) => this.nodes.get(id)).find((one) => one.token === token.token);
    if (known) return known;
    const made = { ...token, id: this.next++, parent, children: [] };
    this.nodes.set(made.id, made);
    this.nodes.get(parent).children.push(made.id);
    this.forks += this.nodes.get(parent).children.length === 2;
    return made;
  }

  /** A token that might have come after a node, as the alternatives there describe it. */
  alternative(parent, token) {
    for (const id of this.nodes.get(parent)?.children ?? []) {
      const { alternatives, part } = this.nodes.get(id), found = alternatives?.find((one) => one.token === token);
      if (found) return { ...found, text: found.piece, alternatives, part };
    }
    return undefined;
  }

  /** The tokens from the prompt to a node. */
  path(id) {
    const found = [];
    for (let node = this.nodes.get(id); node && node.id; node = this.nodes.get(node.parent)) found.push(node);
    return found.reverse();
  }

  siblings(node) {
    return this.nodes.get(node.parent).children.map((id) => this.nodes.get(id));
  }

  /** The end of the branch that continues from a node by first children. */
  end(node) {
    let last = node;
    while (last.children.length) last = this.nodes.get(last.children[0]);
    return last;
  }

  /** All ends, each with the text from where its branch begins, and how many branches are before it. */
  leaves() {
    const found = [], open = [{ id: 0, depth: 0, from: 0 }];
    while (open.length) {
      const { id, depth, from } = open.pop(), node = this.nodes.get(id);
      if (!node.children.length && id) {
        const path = this.path(id), start = path.findIndex((one) => one.id === from);
        found.push({ leaf: node, depth, text: graphemesOf(joined(path.slice(Math.max(start, 0), Math.max(start, 0) + 24))).slice(0, 48).join("") });
      }
      node.children.map((child, at) => ({ id: child, depth: depth + (at ? 1 : 0), from: at ? child : from })).reverse().forEach((one) => open.push(one));
    }
    return found;
  }
}
