// The stages of the pipeline, in its order. A new one is a file and a line here.

import { attention } from "/web/stages/attention.js";
import { attribution } from "/web/stages/attribution.js";
import { beams } from "/web/stages/beams.js";
import { blocks } from "/web/stages/blocks.js";
import { detokenizer } from "/web/stages/detokenizer.js";
import { embeddings } from "/web/stages/embeddings.js";
import { experts, feedforward, recurrent } from "/web/stages/feedforward.js";
import { lens } from "/web/stages/lens.js";
import { positions } from "/web/stages/positions.js";
import { sampling } from "/web/stages/sampling.js";
import { tokens } from "/web/stages/tokens.js";

export const STAGES = [tokens, embeddings, positions, blocks, attention, feedforward, experts, recurrent, lens, attribution, sampling, beams, detokenizer];
