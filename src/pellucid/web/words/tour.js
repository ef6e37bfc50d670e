// The tour: nine stops that follow the flow, with the user's own sentence. `say`, `at` and `answer` get {look, labels, at};
// `example` is the id of an example that suits the stop; `encoder` has what is otherwise for models that write no text, `source` for
// encoder-decoders.

import { made } from "/web/words/examples.js";
import { partsOf } from "/web/picture/layout.js";
import { counted, shown } from "/web/parts/text.js";

const quoted = (label) => `“${shown(label ?? "").replace(/^·/, "")}”`;
const sizes = ({ look, at }) => look.info.blocks[at.block] ?? {};
const hiddenOf = (scene) => (sizes(scene).hidden ? counted(sizes(scene).hidden) : "many");

export const TOUR = [
  {
    id: "tokens", title: "Text becomes tokens", stage: "tokens",
    say: ({ look, labels }) => `The model does not read letters. It reads tokens, and each token is a number: your text of ${look.source?.ids.length ?? look.promptLength} tokens begins with ${quoted((look.source?.pieces ?? labels)[0])}, number ${(look.source ?? look).ids[0]}. A common word is one token; a rare word is cut into several.`,
    example: "pieces", todo: "Look at Tokens below the picture: it shows how each word is cut.", question: "Which words are one token here?",
    answer: () => "It depends on the vocabulary: count the rows. Common words such as “Running” are one token in most vocabularies; “tokenizable” is cut in most of them.",
    at: () => ({ view: "whole", panel: "tokens" }),
  },
  {
    id: "embedding", title: "Tokens become vectors", stage: "embed",
    say: ({ look }) => `Each number selects a row of a matrix: a vector of ${look.info.width} numbers. The strip of colours shows its first numbers. Words that are used alike have similar vectors.`,
    example: "similar", todo: "Select “queen”: Embeddings below shows the nearest tokens.", question: "Does the strip of a word change when the word stands elsewhere?",
    answer: () => "No. A token has the same embedding everywhere; position and context come later.",
    encoder: { todo: "Select “cat”: Embeddings below shows the nearest tokens." }, source: { todo: "Select a word: Embeddings below shows the nearest tokens." },
    at: () => ({ view: "whole", panel: "embeddings" }),
  },
  {
    id: "position", title: "Order", stage: "position",
    say: ({ look }) => ({
      rotary: "Here the position turns the queries and keys by an angle, like the hand of a clock: one step per token.",
        added: "Here a vector for each position is added to the embedding.", alibi: "Here the scores of attention fall with the distance of two tokens.", relative: "Here the distance of two tokens changes their score.",
    })[look.info.position] ?? "Without positions, “dog bites man” and “man bites dog” have the same vectors in another order.",
    example: "order", todo: "Press “Without positions” below: what happens to “dog” in the column softmax?", question: "Why can the model not do without positions?",
    answer: () => "Attention compares vectors, not places. Without positions the model hardly knows who bites whom.",
    encoder: { todo: "Look at “Does the order matter?” below: the same words in another order, with and without positions." },
    source: { todo: "Read in Positions below how this model knows the order." },
    at: () => ({ view: "whole", block: 0, panel: "positions" }),
  },
  {
    id: "attention", title: "Attention: where does a token look?", stage: "pattern",
    say: ({ labels, at }) => `The arcs show from which tokens ${quoted(labels[at.token])} takes something, in head ${at.head} of block ${at.block}. A thick arc is a large weight; the weights of one token sum to 1.`,
    example: "attention", todo: "Select “it”. In Attention below click “animal”, then the strongest head of the list.", question: "What does “it” take from “animal”?",
    answer: () => "The value vector of “animal”, multiplied by the weight. So the vector of “it” learns what “it” stands for.",
    encoder: {
      todo: "Select “bank”. In Attention below click “river”, then the strongest head of the list.", question: "Why is it useful that “bank” looks at “river”?",
      answer: () => "It takes the value vector of “river”, multiplied by the weight. So the vector of this “bank” becomes another one than that of the bank that lends money.",
    },
    source: {
      say: ({ look, labels, at }) => `A token of the answer looks twice. In the column pattern it looks at the answer so far: the arcs lead to ${quoted(labels[at.token])}. In the column source it looks at the ${look.source?.ids.length} tokens of the source, which an encoder has read: the column shows the one with the largest weight. The weights of one token sum to 1.`,
      todo: "Choose a word of the answer. In Source below click a word of the source, then the darkest cell of the map of heads.", question: "What does a word of the answer take from a word of the source?",
      answer: () => "The value vector of that word, multiplied by the weight. The encoder has made it from the whole source, so it holds the word in its context.",
      at: () => ({ view: "whole", panel: "source" }),
    },
    at: () => ({ view: "whole", panel: "attention" }),
  },
  {
    id: "number", title: "One weight, by hand", stage: "pattern",
    say: ({ look, at }) => `Each weight is softmax(q · k / √${sizes({ look, at }).head_width ?? "K"}). The table shows the query, all keys, the scores and the weights of one head.`,
    todo: "Click a weight: its formula appears with its inputs. Click the score, then the query.", question: "Why does the formula divide by a root?",
    answer: ({ look, at }) => `A sum of ${sizes({ look,
      at }).head_width ?? "K"} products becomes large. Without the root the softmax would give nearly all its weight to one token.`,
    at: ({ look, at }) => ({ view: look.info.blocks[at.block]?.heads ? "head" : "block", panel: "" }),
  },
  {
    id: "feedforward", title: "Wider and back", stage: "neurons",
    say: ({ look, at }) => `After attention each vector goes alone through the feed-forward: ${look.info.width} numbers become ${hiddenOf({ look, at })} neurons, and these become ${look.info.width} numbers again. Much of what a model knows is in these weights.`,
    todo: "Click the tallest bar in the feed-forward for its formula, then ⊘ to take the neuron out.",
      question: "Does another token's vector change when you take the neuron out?",
    answer: () => "In this block no token changes another. In later blocks attention carries the difference to other tokens.",
    at: ({ look, at }) => ({ view: "whole", panel: partsOf(look.info, at.block).includes("feedforward") ? (sizes({ look, at }).mixture ? "experts" : "feedforward") : "recurrent" }),
  },
  {
    id: "blocks", title: "Block after block", stage: "add",
    say: ({ look }) => `The same happens ${look.info.blocks.length} times, with other weights. The bars below the picture show how long the vector is after each block, and how much attention and the feed-forward add.`,
    todo: "Click the bars from left to right. The Logit lens below shows what the model would say after each block.",
      question: "From which block on is the drawn token the likeliest?",
    answer: () => "Go down the column of the chosen token in the lens: look for the first row with the drawn token.",
    encoder: {
      todo: "Click the bars from left to right. Blocks below shows the lengths as numbers.", question: "Which block changes the vector most?",
      answer: () => "Look for the longest bars of attention and of the feed-forward.",
    },
    at: ({ look }) => ({ view: "whole", block: look.info.blocks.length - 1, panel: look.info.generates ? "lens" : "blocks" }),
  },
  {
    id: "sampling", title: "From scores to a draw", stage: "softmax",
    say: ({ look }) => (look.info.generates ? `The last vector gives a score for each of ${counted(look.info.vocabulary)} tokens. The softmax turns the scores into probabilities. A low temperature sharpens them, a high one flattens them; top-k and top-p cut the unlikely tokens.` : `This model draws no token: it makes ${made(look.info)} of the text.`),
    todo: "Move the temperature in the panel below to 2, then to 0. Click another token in the column softmax to draw it instead.",
      question: "At which temperature is the draw certain?",
    answer: () => "At 0: then only the token with the highest score may be drawn (greedy decoding).",
    encoder: { todo: "Read another sentence and compare the vectors of its tokens.", question: "" },
    at: () => ({ view: "whole", token: -1, panel: "sampling" }),
  },
  {
    id: "loop", title: "And round again", stage: "draw",
    say: ({ look }) => (look.info.generates ? "The drawn token is appended to the text, the model reads it, and everything begins again: that is the whole loop. A beam search follows several texts at once and keeps the likeliest." : "An encoder has no loop: it reads all tokens at once."),
    todo: "Press Step a few times, then Replay below the picture. Beams below shows a tree of texts.", question: "What does the model remember from one token to the next?",
    answer: () => "The keys and values of all tokens (the cache), and in models with recurrent layers their states. All of it follows from the text.",
    encoder: { todo: "Read another sentence.", question: "" },
    at: () => ({ view: "whole", token: -1, panel: "beams" }),
  },
];
