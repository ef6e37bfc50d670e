// The texts of widgets in notebooks.

export const WIDGETS = {
  failed: "The widget cannot be shown:",
  kind: (kind) => `it has no kind ${kind}`,
  attention: "its data must have tokens, and an array (H, T, T) of their weights",
  head: (head) => `head ${head}`,
  looks: "Click a token of the pattern to see its row.",
  run: "A recorded run",
  text: (model, finish) => `${model}${finish ? `; the text ended: ${finish}` : ""}.`,
};
