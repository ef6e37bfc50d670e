// Texts to begin with: nobody meets an empty form.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";

const plain = { chat: false, max_tokens: 20, temperature: 0, seed: 1 };

/** `at(info)` is where the picture looks: the middle of the model where nothing else is known. */
const GENERATED = [
  { id: "fact", title: "The capital of France is …", about: "a fact that the model knows", form: { ...plain, text: "The capital of France is" }, at: (info) => ({ view: "whole", block: middle(info) }) },
  { id: "attention", title: "… because it was too …", about: "which word does “it” look at?",
    form: { ...plain, text: "The animal didn't cross the street because it was too", max_tokens: 8 },
    at: (info) => ({ view: "whole", block: Math.min(13, info.blocks.length - 1), head: 8, token: 8, panel: "attention" }) },
  // One token alone: the draw after the prompt is what the order of the words decides.
  { id: "order", title: "The dog bites the man", about: "order: who bites whom?",
    form: { ...plain, text: "The dog bites the man. The man bites the", max_tokens: 1, temperature: 1 },
    at: (info) => ({ view: "whole", block: 0, panel: info.position === "none" ? "" : "positions" }) },
  { id: "similar", title: "king and queen", about: "words with similar vectors", form: { ...plain, text: "king queen man woman prince princess Paris France", max_tokens: 8 },
    at: () => ({ view: "whole", panel: "embeddings" }) },
  { id: "pieces", title: "running, unbelievably", about: "words that the tokenizer cuts into pieces",
    form: { ...plain, text: "Running is unbelievably tokenizable", max_tokens: 12 }, at: () => ({ view: "whole", panel: "tokens" }) },
];

/** Sources for encoder-decoders. A T5 reads the task in the text. */
const TRANSLATED = [
  { id: "attention", title: "The animal didn't cross …", about: "which words of the source does each word of the answer look at?", form: { ...plain, max_tokens: 40, text: "The animal didn't cross the street because it was too tired." },
    at: (info) => ({ view: "whole", block: middle(info), panel: "source" }) },
  { id: "task", title: "translate English to German: …", about: "for T5, whose text begins with the task", form: { ...plain, max_tokens: 40, text: "translate English to German: The house is wonderful." },
    at: (info) => ({ view: "whole", block: middle(info), panel: "source" }) },
  { id: "pieces", title: "running, unbelievably", about: "words that the tokenizer cuts into pieces", form: { ...plain, max_tokens: 40, text: "Running is unbelievably difficult." },
    at: () => ({ view: "whole", panel: "tokens" }) },
];

/** Sentences for encoders. */
const READ = [
  { id: "similar", title: "A cat sits on the mat …", about: "two sentences of similar words", form: { ...plain, text: "A cat sits on the mat. A kitten rests on the rug." },
    at: (info) => ({ view: "whole", block: middle(info), panel: "embeddings" }) },
  { id: "order", title: "The dog bites the man", about: "order: are the words in another order the same sentence?", form: { ...plain, text: "The dog bites the man." },
    at: (info) => ({ view: "whole", block: 0, panel: info.position === "none" ? "" : "positions" }) },
  { id: "attention", title: "The bank of the river …", about: "one word with two meanings: what does “bank” look at?", form: { ...plain, text: "The bank of the river is steep. The bank lends money." },
    at: (info) => ({ view: "whole", block: middle(info), token: 2, panel: "attention" }) },
];

const MAKES = {
  classify: "scores of labels", tag: "scores of labels for each token", answer: "the scores that an answer begins or ends at each token",
  fill: "scores of tokens for each mask", tokens: "a vector for each token", sparse: "a weight for each token of the vocabulary",
};

/** What an encoder makes of a text, in words. */
export const made = (info) => MAKES[info.task] ?? "one vector";

/** The examples that suit a model. */
export function examplesOf(info) {
  if (info.encoder?.length) return TRANSLATED;
  return info.generates ? GENERATED : READ;
}

function middle(info) {
  return Math.floor(info.blocks.length / 2);
}

export function Examples({ info, onChoose }) {
  return html`<section class="examples" aria-label="examples"><p>Write a text and press <b>${info.generates ? "Run" : "Read"}</b>, or choose an example:</p>
    <div>${examplesOf(info).map((one) => html`<button type="button" key=${one.title} onClick=${() => onChoose(one)}><b>${one.title}</b><span>${one.about}</span>
    </button>`)}</div>
    <p class="note">${info.generates ? "The picture shows the way of each token through the model while the model writes."
      : `This model reads a sentence and makes ${made(info)} of it. It writes no text.`}</p></section>`;
}
