"""Names that users of llama.cpp, Ollama, vLLM and transformers type: options and commands, and what they mean here.

``translation.py`` replaces them before Typer reads a command line. docs/commands.md lists them. An option has one of
three fates: it is the other name of an option or argument (``to``), it stands for words (``words``), or it is explained
in a line on standard error (``why``). An explained option has no effect, unless it is ``refused``.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class OtherOption(Struct, frozen=True):
    """An option of other engines.

    Attributes:
        names: its names, separated by spaces.
        to: the targets, separated by commas; the first that the command has is meant. A target is an option, or an
            argument such as ``MODEL``. The text after the target, such as ``hf:``, is put before the value.
        value: stands for the value in documents; "" if the option has no value, "[X]" if the value may be missing.
        words: the words that replace the option, by its value in lower case ("" without a value).
        why: the reason why the option has no effect or is refused, and what to type instead.
        refused: a line of ``why`` ends the command.
    """

    names: str
    to: str = ""
    value: str = ""
    words: Mapping[str, tuple[str, ...]] = {}
    why: str = ""
    refused: bool = False


NOTHING: tuple[str, ...] = ()
CPU = "the model runs on the CPU, with the cores of --threads"
ALWAYS = "this is always so"
FOUND = "the format of tool calls and reasoning is found in the chat template"
DIVIDED = "one process runs the model, with the cores of --threads; --cluster ADDRESS --stages N divides it"
STEPS = "requests run together in steps of a measured size; --queue limits the waiting requests"
OWN_WEIGHTS = "the weights keep the types of the file: choose another file, such as hf:owner/name:Q8_0"
OWN_TYPE = "the weights keep the types of the file; --precise computes as with float32"

STEERED = "pellucid run and chat take it; pellucid serve --vectors FOLDER names vectors for the field steer of requests"

OPTIONS = (
    OtherOption("-m --model --model-name --model-path --model-name-or-path", to="MODEL", value="MODEL"),
    OtherOption("-hf -hfr --hf-repo", to="MODEL hf:", value="OWNER/NAME[:TAG]"),
    OtherOption("-p --prompt -q --quick", to="PROMPT,TEXT", value="TEXT"),
    OtherOption("-f --file", to="PROMPT @,FILE,--file", value="FILE"),
    OtherOption("-sys --system-prompt", to="--system", value="TEXT"),
    OtherOption("-sysf --system-prompt-file", to="--system @", value="FILE"),
    OtherOption(
        "-n --n-predict --predict --max-tokens --num-predict", to="--max-new-tokens", value="N", words={"-1": NOTHING}
    ),
    OtherOption("-c --ctx-size --max-model-len --num-ctx", to="--context", value="N", words={"0": NOTHING}),
    OtherOption("-t --num-thread", to="--threads", value="N"),
    OtherOption("--temp", to="--temperature", value="T"),
    OtherOption("--repeat-penalty", to="--repetition-penalty", value="X"),
    OtherOption("-s --random-seed", to="--seed", value="N", words={"-1": NOTHING}),
    OtherOption("-r --reverse-prompt", to="--stop", value="TEXT"),
    OtherOption("-j", to="--json-schema", value="SCHEMA"),
    OtherOption("-jf --json-schema-file", to="--json-schema @", value="FILE"),
    OtherOption("--grammar-file", to="--grammar @", value="FILE"),
    OtherOption("--typical", to="--typical-p", value="P"),
    OtherOption("--min-tokens --min-length", to="--min-new-tokens", value="N"),
    OtherOption("--chat-template-file", to="--chat-template", value="FILE"),
    OtherOption("-ctk --cache-type-k --kv-cache-dtype", to="--kv-cache", value="TYPE", words={"auto": NOTHING}),
    OtherOption("-md --model-draft --speculative-model", to="--draft", value="MODEL"),
    OtherOption("-cnv --conversation", words={"": ("--chat",)}),
    OtherOption("-no-cnv --no-conversation --no-chat", words={"": ("--raw",)}),
    OtherOption("--do-sample", value="[BOOL]", words={"": NOTHING, "true": NOTHING, "false": ("--temperature", "0")}),
    OtherOption("--greedy", words={"": ("--temperature", "0")}),
    OtherOption(
        "--format",
        value="json",
        words={"json": ("--json-schema", '{"type": "object"}'), "text": NOTHING},
        why="the formats are json and text; --json-schema SCHEMA takes a schema, or @FILE",
        refused=True,
    ),
    OtherOption("--control-vector-scaled", to="--control-vector", value="FILE:SCALE"),
    OtherOption("--positive-file", to="--positive", value="FILE"),
    OtherOption("--negative-file", to="--negative", value="FILE"),
    # Servers
    OtherOption("--api-key", to="--key", value="KEY"),
    OtherOption("-a --served-model-name", to="--alias", value="NAME"),
    OtherOption("--allowed-origins --cors-allow-origins", to="--allow-origin", value="ORIGIN"),
    # Batches and benchmarks
    OtherOption("-i --input-file", to="IN", value="FILE"),
    OtherOption("-o --output-file", to="OUT", value="FILE"),
    OtherOption("--base-url --url", to="URL", value="URL"),
    OtherOption("-p --n-prompt --input-len --random-input-len", to="--prompt", value="N"),
    OtherOption("-n --n-gen --output-len --random-output-len", to="--tokens", value="N"),
    OtherOption("-d --n-depth", to="--depth", value="N"),
    OtherOption("-r --repetitions --num-iters", to="--rounds", value="N"),
    OtherOption("--num-prompts", to="--requests", value="N"),
    OtherOption("--request-rate", to="--rate", value="X", words={"inf": NOTHING}),
    OtherOption("--max-concurrency", to="--clients", value="N"),
    OtherOption("-o --output", value="FORMAT", words={"json": ("--json",), "md": NOTHING, "markdown": NOTHING}),
    # Without effect
    OtherOption("-ngl --n-gpu-layers --gpu-layers --num-gpu", value="N", words={"0": NOTHING}, why=CPU),
    OtherOption(
        "--gpu-memory-utilization", value="X", why="no GPU is used; --cache-memory limits the prefix cache in gigabytes"
    ),
    OtherOption("--device --device-map -dev", value="D", words={"cpu": NOTHING, "auto": NOTHING}, why=CPU),
    OtherOption("--dtype --torch-dtype", value="TYPE", words={"auto": NOTHING}, why=OWN_TYPE),
    OtherOption("-ctv --cache-type-v", value="TYPE", why="--kv-cache is the type of keys and of values"),
    OtherOption("-fa --flash-attn", value="[on|off|auto]", why="attention needs no switch"),
    OtherOption("--attn-implementation", value="NAME", why="attention needs no switch"),
    OtherOption("--mmap --no-mmap --mlock", why="weights are packed into memory, and stay there"),
    OtherOption("--trust-remote-code", why="no code of a model's repository runs"),
    OtherOption("--enable-prefix-caching --enable-chunked-prefill -cb --cont-batching", why=ALWAYS),
    OtherOption("--enforce-eager", why="there are no CUDA graphs"),
    OtherOption("--enable-auto-tool-choice --jinja", why=FOUND),
    OtherOption("--tool-call-parser --reasoning-parser --reasoning-format", value="NAME", why=FOUND),
    OtherOption("--max-num-seqs -np --parallel", value="N", why=STEPS),
    OtherOption("-b --batch-size -ub --ubatch-size --max-num-batched-tokens", value="N", why=STEPS),
    OtherOption("--backend --endpoint-type --dataset-name", value="NAME", why="random words go to OpenAI's API"),
    OtherOption("--embedding --embeddings", why="sentence encoders serve vectors without a switch"),
    OtherOption("--metrics --slots --props --no-webui", why="/metrics, /slots, /props and the page need no switch"),
    OtherOption("--keepalive", value="TIME", why="the model is loaded for one command; pellucid serve keeps it"),
    OtherOption("-e --escape --no-escape", why="the prompt is taken as it is; $'...' of the shell has escapes"),
    OtherOption(
        "-st --single-turn --no-display-prompt --color --simple-io -mli --multiline-input --no-warmup --log-disable "
        "--nowordwrap --disable-log-requests --disable-log-stats --no-perf -co -i --interactive",
        words={"": NOTHING},
    ),
    OtherOption(
        "--task", value="TASK",
        words={"text-generation": NOTHING, "generate": NOTHING, "auto": NOTHING},
        why="pellucid run and chat make text, pellucid embed makes vectors", refused=True,
    ),
    OtherOption(
        "--tensor-parallel-size -tp --pipeline-parallel-size -pp --data-parallel-size -dp",
        value="N", words={"1": NOTHING}, why=DIVIDED,
    ),
    # Refused, because the result would not be the one that was asked for
    OtherOption(
        "-q --quantization", value="METHOD", words={"gguf": NOTHING, "none": NOTHING}, why=OWN_WEIGHTS, refused=True
    ),
    OtherOption("--load-in-4bit --load-in-8bit", why=OWN_WEIGHTS, refused=True),
    OtherOption("-hff --hf-file", value="FILE", why="name the file with the model: hf:owner/name/FILE", refused=True),
    OtherOption("--revision", value="NAME", words={"main": NOTHING}, why="the hub's revision is main", refused=True),
    OtherOption(
        "--lora --lora-modules --enable-lora", value="[FILE]", why="merge the adapter into the model first",
        refused=True,
    ),
    OtherOption("--control-vector --control-vector-scaled", value="FILE", why=STEERED, refused=True),
    OtherOption("-mm --mmproj --image", value="FILE", why="only the text part of a model is loaded", refused=True),
    OtherOption(
        "--think --hidethinking", value="[BOOL]", refused=True,
        why="the prompt decides on reasoning (/no_think for Qwen 3); requests to pellucid serve have the field think",
    ),
    OtherOption(
        "--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx", value="X",
        why="the file states the rotary scaling; --context extends the context up to its limit", refused=True,
    ),
)  # fmt: skip

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "ls": ("list",),
    "show": ("info",),
    "download": ("pull",),
    "delete": ("rm",),
    "remove": ("rm",),
    "server": ("serve",),
    "cli": ("run",),
    "generate": ("run",),
    "complete": ("run", "--raw"),
    "completion": ("run", "--raw"),
    "embedding": ("embed",),
    "cvector-generator": ("vector",),
    "perplexity": ("eval", "perplexity"),
    "run-batch": ("batch",),
    "env": ("info", "--machine"),
    "collect-env": ("info", "--machine"),
    "version": ("--version",),
    "-v": ("--version",),
}
"""Commands of other engines, and the words that replace them."""

PARTS: Mapping[str, str] = {"latency": "model", "throughput": "model"}
"""Parts of ``bench`` in vLLM."""

REFUSED_COMMANDS: Mapping[str, str] = {
    "create": "a model is its file. pellucid run has --system, --chat-template and the options of a Modelfile; "
    "pellucid serve --alias NAME=FILE serves a file under a name",
    "cp": "pellucid serve --alias NAME=MODEL serves a model under another name",
    "push": "models are only fetched; hf upload (of huggingface-hub) sends files to the hub",
    "login": "hf auth login (of huggingface-hub) logs in to the hub",
    "signin": "hf auth login (of huggingface-hub) logs in to the hub",
    "quantize": "files keep their types; llama.cpp's llama-quantize writes other types",
    "convert": "safetensors and GGUF are loaded as they are",
}
"""Commands of other engines that have no counterpart, and what to do."""
