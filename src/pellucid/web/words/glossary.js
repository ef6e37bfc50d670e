// Short explanations of the stages and the words of the field.

/** By the id of a column of the picture: [title, explanation, what to try]. */
export const STAGE_WORDS = {
  text: ["Text", "The text as the model reads it, one row for each token. Choose a row: everything else shows that token.", "Press the up and down arrows on a row."],
  tokens: ["Tokens", "The tokenizer cuts the text into pieces of its vocabulary and replaces each piece with its number. The model sees only these numbers.", "Open Tokens below to see how a word is cut."],
  embed: ["Embedding", "Each number selects a row of a matrix: a vector of D numbers. The same token has the same vector wherever it stands.", "Click a strip to see all its numbers."],
  position: ["Position", "Attention alone does not know which token comes first. A position is added to the vectors, or turns the queries and keys by an angle.", "Open Positions below."],
  norm: ["Norm", "Brings the vector to a standard length before a part reads it, so that numbers neither grow nor vanish from block to block.", "Click a number of a norm to see its formula."],
  qkv: ["Queries, keys, values", "Three products of each vector. The query says what a token looks for, the key what it offers, the value what it hands over.", "Open the block to see their sizes."],
  pattern: ["Attention pattern", "The query of a token is compared with the keys of the tokens before it. The softmax of these scores says how much it takes from each token. Each row of weights sums to 1.", "Click an arc for its number; choose another head above the picture."],
  add: ["Residual", "The part's output is added to the stream. A large circle means that the part changed the vector much.", "Click the bars below the picture to move to another block."],
  neurons: ["Feed-forward", "Each vector alone is widened to many neurons, passes an activation, and is narrowed again. No token sees another token here.", "Click a bar for its neuron, and take it out."],
  experts: ["Experts", "A router chooses a few feed-forwards for each token and adds their outputs with weights.", "Compare the experts of two tokens."],
  state: ["State", "A recurrent layer keeps a state of fixed size: each token changes the state and reads from it.", "Open Recurrent layers below."],
  logits: ["Logits", "The last vector is compared with a vector for each token of the vocabulary: a score for each possible next token.", "Choose another row: each token has a prediction after it."],
  softmax: ["Softmax and sampling", "Temperature, top-k and top-p decide which tokens may be drawn; the softmax makes the scores probabilities that sum to 1.", "Click another token to draw it instead."],
  draw: ["Draw", "One token is drawn by its probability, appended to the text, and the model reads on: round again.", "Press Step to make one more token."],
  pooled: ["Vector of the text", "An encoder reads all tokens at once and makes one vector of the text. It draws no token.", "Compare two sentences."],
};

export const GLOSSARY = [
  ["B, T, D", "sequences, tokens, and the width of the model's vectors"],
  ["H, G, K", "attention heads, heads of keys and values, and the width of a head"],
  ["F, V, L", "neurons of a feed-forward, tokens of the vocabulary, and blocks (layers)"],
  ["residual stream", "the vector of a token on its way through the blocks; each part adds to it"],
  ["head", "one of several attentions side by side, each with its own queries, keys and values"],
  ["logit", "the score of a token before the softmax"],
  ["softmax", "turns scores into positive numbers that sum to 1"],
  ["temperature", "divides the logits: below 1 the likely tokens become likelier, at 0 only the likeliest is drawn"],
  ["top-k, top-p", "keep the k likeliest tokens, or the likeliest tokens that together have the probability p"],
  ["quantised", "weights with few bits; the picture shows the values of the quantised model"],
  ["operation", "one compiled step of the plan, such as a product with a matrix"],
  ["⊘", "take a part out: its output becomes zero"],
];
