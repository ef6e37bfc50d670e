// Short explanations of the stages and the words of the field.

/** By the id of a column of the picture: [title, explanation, what to try]. */
export const STAGE_WORDS = {
  text: ["Text", "The text as the model reads it: one row for each token. Choose a row, and everything else shows this token.",
    "Press the up and down arrows on a row."],
  tokens: ["Tokens", "The tokenizer cuts the text into pieces of its vocabulary and replaces each piece with its number. The model sees only these numbers.", "Open Tokens below to see how a word is cut."],
  embed: ["Embedding", "Each number selects a row of a matrix: a vector of D numbers. The same token has the same vector wherever it stands.", "Click a strip to see all its numbers."],
  position: ["Position", "Attention alone does not know which token comes first. A position is added to the vectors, or turns the queries and keys by an angle.", "Open Positions below."],
  norm: ["Norm", "Scales the vector to a standard length, so that the numbers stay in the same range in all blocks.",
    "Click a number of a norm to see its formula."],
  qkv: ["Queries, keys, values", "Three vectors, made from each token's vector: the query says what a token looks for, the key what it offers, the value what it gives.", "Open the block to see their sizes."],
  pattern: ["Attention pattern", "The query of a token is compared with the keys of the tokens that it sees. The softmax turns these scores into weights: how much it takes from each token. The weights of one token sum to 1.", "Click an arc for its formula. Attention below finds the heads that look at a certain token."],
  add: ["Residual", "The output of attention or of the feed-forward is added to the token's vector, the residual stream. A large circle is a large change.",
    "Click the bars below the picture to move to another block."],
  neurons: ["Feed-forward", "Each vector alone becomes many neurons, passes an activation, and becomes narrow again. No token sees another token here.",
    "Click a bar for its neuron, and take it out."],
  experts: ["Experts", "A router chooses a few feed-forwards for each token and adds their outputs with weights.",
    "Open Experts below, and take an expert out."],
  state: ["State", "A recurrent layer keeps a state of fixed size: each token changes the state and reads from it.", "Open Recurrent layers below."],
  logits: ["Logits", "The last vector is compared with a vector for each token of the vocabulary. This gives a score, the logit, to each possible next token.",
    "Choose another row: the model predicts a next token after every token."],
  softmax: ["Softmax and sampling", "The softmax turns the scores into probabilities that sum to 1. Temperature, top-k and top-p decide which tokens may be drawn.", "Click another token to draw it instead."],
  draw: ["Draw", "One token is drawn at random by its probability and appended to the text. Then the model reads it, and everything begins again.",
    "Press Step to make one more token."],
  pooled: ["Vector of the text", "An encoder reads all tokens at once and makes one vector of the text. It writes no text.", "Read another sentence."],
};

export const GLOSSARY = [
  ["B, T, D", "sequences, tokens, and the width of the model's vectors"],
  ["H, G, K", "attention heads, heads of keys and values, and the width of a head"],
  ["F, V, L", "neurons of a feed-forward, tokens of the vocabulary, and blocks (layers)"],
  ["residual stream", "the vector of a token on its way through the blocks; each part adds to it"],
  ["head", "one of several attentions side by side, each with its own queries, keys and values"],
  ["logit", "the score of a token before the softmax"],
  ["attribution", "how much each part of the model adds to a logit"],
  ["logit lens", "the prediction that the model would make if it ended after a block"],
  ["softmax", "turns scores into positive numbers that sum to 1"],
  ["temperature", "divides the logits: below 1 the likely tokens become likelier, at 0 only the likeliest is drawn"],
  ["top-k, top-p", "keep the k likeliest tokens, or the likeliest tokens that together have the probability p"],
  ["quantised", "stored with few bits for each weight; the picture shows the quantised model's own values"],
  ["operation", "one step of the computation, such as a product with a matrix"],
  ["⊘", "take a part out: its output becomes zero"],
];
