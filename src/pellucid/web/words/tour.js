// The tour: nine stops that follow the flow, with the user's own sentence. `say`, `at` and `answer` get {look, labels, at}.

import { partsOf } from "/web/picture/layout.js";
import { shown } from "/web/parts/text.js";

const quoted = (label) => `“${shown(label ?? "").replace(/^·/, "")}”`;
const sizes = ({ look, at }) => look.info.blocks[at.block] ?? {};

export const TOUR = [
  {
    id: "tokens", title: "Text becomes tokens", stage: "tokens",
    say: ({ look, labels }) => `The model has no letters. Your text is ${look.ids.length} tokens, and each token is a number: ${quoted(labels[0])} is ${look.ids[0]}. A common word is one token; a rare word is cut into several.`,
    todo: "Write “running unbelievably” and press Run. Open Tokens below the picture.", question: "Is “running” one token here, or two?",
    answer: () => "It depends on the vocabulary: look at the rows. BERT's vocabulary cuts it into run and ##ning; larger vocabularies have it as one piece.",
    at: () => ({ view: "whole", panel: "tokens" }),
  },
  {
    id: "embedding", title: "Tokens become vectors", stage: "embed",
    say: ({ look }) => `Each number selects a row of a matrix: a vector of ${look.info.width} numbers, the strip of colours. Words with similar use have similar vectors.`,
    todo: "Choose the example “king and queen” and open Embeddings: look at the nearest tokens.", question: "Does the strip of a word change when the word stands elsewhere?",
    answer: () => "No. The embedding of a token is the same everywhere; position and context come later.",
    at: () => ({ view: "whole", panel: "embeddings" }),
  },
  {
    id: "position", title: "Order", stage: "position",
    say: ({ look }) => ({
      rotary: "Here the position turns the queries and keys by an angle, like the hand of a clock: one step for each token.", added: "Here a vector for each position is added to the embedding.", alibi: "Here the scores of attention fall with the distance of two tokens.",
    })[look.info.position] ?? "Without positions, “dog bites man” and “man bites dog” have the same vectors in another order.",
    todo: "Choose the example “The dog bites the man”, then press “Without positions” in the Positions panel.", question: "Why can the model not do without positions?",
    answer: () => "Attention compares vectors, not places. Without positions only the causal mask tells which tokens came before.",
    at: () => ({ view: "whole", block: 0, panel: "positions" }),
  },
  {
    id: "attention", title: "Attention: where does a token look?", stage: "pattern",
    say: ({ labels, at }) => `The arcs show from which tokens ${quoted(labels[at.token])} takes, in head ${at.head} of block ${at.block}. A thick arc is a large weight; the weights of a row sum to 1.`,
    todo: "Choose the example “… because it was too …”, select “it”, and find a head that looks at “animal”: the map of all heads is in Attention.", question: "What does “it” take from “animal”?",
    answer: () => "Its value vector, in the proportion of the weight. So the vector of “it” gets to know what it stands for.",
    at: () => ({ view: "whole", panel: "attention" }),
  },
  {
    id: "number", title: "One weight, by hand", stage: "pattern",
    say: ({ look, at }) => `Each weight is softmax(q · k / √${sizes({ look, at }).head_width ?? "K"}). The table shows the query, all keys, the scores and the weights of one head.`,
    todo: "Click a weight: its formula appears with its inputs. Click the score, then the query.", question: "Why is the sum of the products divided by a root?",
    answer: ({ look, at }) => `A sum of ${sizes({ look, at }).head_width ?? "K"} products is large; the root keeps the softmax from choosing one token alone.`,
    at: ({ look, at }) => ({ view: look.info.blocks[at.block]?.heads ? "head" : "block", key: Math.max(0, Math.min(1, at.token)), point: look.info.blocks[at.block]?.heads ? `blocks.${at.block}.attention.pattern` : "" }),
  },
  {
    id: "feedforward", title: "Wider and back", stage: "neurons",
    say: ({ look, at }) => `After attention each vector goes alone through the feed-forward: ${look.info.width} numbers become ${sizes({ look, at }).hidden?.toLocaleString() ?? "many"} neurons and ${look.info.width} again. Most of what the model knows is in these weights.`,
    todo: "Click the tallest bar in the feed-forward, then ⊘ to take this neuron out.", question: "Does another token's vector change when you take the neuron out?",
    answer: () => "In this block only the tokens whose neuron was active change. In later blocks attention carries the difference on.",
    at: ({ look, at }) => ({ view: "whole", panel: partsOf(look.info, at.block).includes("feedforward") ? (sizes({ look, at }).mixture ? "experts" : "feedforward") : "recurrent" }),
  },
  {
    id: "blocks", title: "Block after block", stage: "add",
    say: ({ look }) => `The same happens ${look.info.blocks.length} times, with other weights. The bars below the picture show how long the vector is after each block, and how much attention and the feed-forward add.`,
    todo: "Click the bars from left to right, and open the Logit lens: what would the model say after each block?", question: "From which block on does the model know its answer?",
    answer: () => "Look at the last column of the lens: the first row where the drawn token stands.",
    at: ({ look }) => ({ view: "whole", block: look.info.blocks.length - 1, panel: look.info.generates ? "lens" : "blocks" }),
  },
  {
    id: "sampling", title: "From scores to a draw", stage: "softmax",
    say: ({ look }) => (look.info.generates ? `The last vector gives a score for each of ${look.info.vocabulary.toLocaleString()} tokens. Temperature sharpens or flattens the probabilities; top-k and top-p cut the unlikely tokens.` : "This model draws no token: it makes one vector of the text."),
    todo: "Move the temperature to 0, then to 2. Click another token in the column softmax to draw it instead.", question: "At which temperature is the draw certain?",
    answer: () => "At 0: only the token with the highest score can be drawn. That is greedy decoding.",
    at: () => ({ view: "whole", token: -1, panel: "sampling" }),
  },
  {
    id: "loop", title: "And round again", stage: "draw",
    say: ({ look }) => (look.info.generates ? "The drawn token is appended to the text, and the model reads it: that is the whole loop. A beam search follows several texts at once and keeps the likeliest." : "An encoder has no loop: it reads all tokens at once."),
    todo: "Press Step a few times, then Slow. Open Beams for the tree of texts.", question: "What does the model remember from one token to the next?",
    answer: () => "The keys and values of all tokens (the cache), or the states of recurrent layers. Nothing else: the text is all it has.",
    at: () => ({ view: "whole", token: -1, panel: "beams" }),
  },
];
