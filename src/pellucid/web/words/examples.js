// Texts to begin with: nobody meets an empty form.

import { html } from "/web/vendor/htm-preact-3.1.1.module.js";

const plain = { chat: false, max_tokens: 12, temperature: 0.7, top_k: 0, top_p: 0.95, seed: 1 };

/**
 * Where an example looks is found, for each model and text: the chosen token is `word`, or the last of the prompt, and the head
 * is the head that reads `key` there (else the head that reads most specifically, in the block where the answer turns).
 * `at` is the place beside that. The first example is the page's first picture.
 */
const GENERATED = [
  { id: "fact", title: "The capital of France is", about: "a fact that the model knows", form: { ...plain, text: "The capital of France is" }, at: {} },
  { id: "attention", title: "… because it was too", about: "which word does “it” look at?", form: { ...plain, text: "The animal didn't cross the street because it was too" }, word: "it", key: "animal", at: {} },
  // One token alone: the draw after the prompt is what the order of the words decides.
  { id: "order", title: "The dog bites the man", about: "order: who bites whom?", form: { ...plain, text: "The dog bites the man. The man bites the", max_tokens: 1, temperature: 1 }, at: { panel: "positions" } },
  { id: "similar", title: "king, queen", about: "words with similar vectors", form: { ...plain, text: "king queen man woman prince princess Paris France", max_tokens: 8 }, at: { panel: "embeddings" } },
  { id: "pieces", title: "unbelievably", about: "words that the tokenizer cuts into pieces", form: { ...plain, text: "Running is unbelievably tokenizable" }, at: { panel: "tokens" } },
];

/** Sources for encoder-decoders. A T5 reads the task in the text. */
const TRANSLATED = [
  { id: "attention", title: "The animal didn't cross …", about: "which words of the source does each word of the answer look at?", form: { ...plain, max_tokens: 40, text: "The animal didn't cross the street because it was too tired." },
    at: { panel: "source" } },
  { id: "task", title: "translate English to German: …", about: "for T5, whose text begins with the task", form: { ...plain, max_tokens: 40, text: "translate English to German: The house is wonderful." },
    at: { panel: "source" } },
  { id: "pieces", title: "running, unbelievably", about: "words that the tokenizer cuts into pieces", form: { ...plain, max_tokens: 40, text: "Running is unbelievably difficult." },
    at: { panel: "tokens" } },
];

/** Sentences for encoders. */
const READ = [
  { id: "similar", title: "A cat sits on the mat …", about: "two sentences of similar words", form: { ...plain, text: "A cat sits on the mat. A kitten rests on the rug." },
    at: { panel: "embeddings" } },
  { id: "order", title: "The dog bites the man", about: "order: are the words in another order the same sentence?", form: { ...plain, text: "The dog bites the man." },
    at: { panel: "positions" } },
  { id: "attention", title: "The bank of the river …", about: "one word with two meanings: what does “bank” look at?", form: { ...plain, text: "The bank of the river is steep. The bank lends money." },
    word: "bank", key: "river", at: { panel: "attention" } },
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

/** The examples, side by side; `current` is the text of the form. */
export function Examples({ info, current, isBusy, onChoose }) {
  return html`<div class="chips" role="group" aria-label="examples">${examplesOf(info).map((one) => html`<button type="button" key=${one.id} aria-pressed=${one.form.text === current} disabled=${isBusy} title=${one.about} onClick=${() => onChoose(one)}>${one.title}</button>`)}</div>`;
}
