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
    OtherOption("-s --system-message --system", to="--system", value="TEXT"),
    OtherOption("-c", to="TEXT,TEXT...", value="TEXT"),
    OtherOption("--content --text --sentence --inputs", to="TEXT,TEXT...,PROMPT", value="TEXT"),
    OtherOption("--query", to="QUERY", value="TEXT"),
    OtherOption("--top-k --top-n", to="--top", value="N"),
    OtherOption("-n --number --limit", to="--top", value="N"),
    OtherOption("--truncate-dim --output-dimension", to="--dimensions", value="N"),
    OtherOption("--prompt-name", to="--prompt", value="NAME"),
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
    OtherOption(
        "-o --output --output-file", value="FORMAT", words={"json": ("--json",), "md": NOTHING, "markdown": NOTHING},
        why="the result goes to standard output: write > FILE after the command", refused=True,
    ),
    OtherOption("--output-json", words={"": ("--json",)}),
    OtherOption("-v --log-verbose -u --usage --stats", words={"": ("--verbose",)}),
    # Names of some steps
    OtherOption("--top-nsigma", to="--top-n-sigma", value="X"),
    OtherOption("--mirostat-lr", to="--mirostat-eta", value="X"),
    OtherOption("--mirostat-ent", to="--mirostat-tau", value="X"),
    OtherOption("--dynatemp-exp", to="--dynatemp-exponent", value="X"),
    OtherOption("--dry-sequence-breaker", to="--dry-sequence-breakers", value="TEXT"),
    OtherOption("--spec-draft-model --draft-model --assistant-model", to="--draft", value="MODEL"),
    OtherOption("-hfd -hfrd --hf-repo-draft --spec-draft-hf", to="--draft hf:", value="OWNER/NAME[:TAG]"),
    OtherOption("-mu --model-url --hf-model", to="MODEL", value="URL"),
    OtherOption("--cors-origins", to="--allow-origin", value="ORIGIN"),
    OtherOption("--schema", to="--json-schema", value="SCHEMA"),
    # Without effect
    OtherOption("-tb --threads-batch -td --threads-draft -tbd --threads-batch-draft --threads-http", value="N",
                why="--threads N sets the threads of prompts and of generation"),
    OtherOption("-C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll -Cb --cpu-mask-batch -Crb --cpu-range-batch "
                "--cpu-strict-batch --prio-batch --poll-batch", value="X",
                why="--threads N sets the threads, and --pin cores binds them"),
    OtherOption("--numa", value="TYPE", why="--pin nodes binds threads to memory nodes"),
    OtherOption("-sm --split-mode -ts --tensor-split -mg --main-gpu -fitt --fit-target -fitc --fit-ctx -ncmoe "
                "--n-cpu-moe --moe-cache -ot --override-tensor -devd --device-draft -ngld --n-gpu-layers-draft --rpc "
                "--cpu-offload-gb --swap-space --num-gpu-blocks-override --kv-cache-memory-bytes --block-size "
                "--max-seq-len-to-capture --compilation-config --num-gpus", value="X", why=CPU),
    OtherOption("-fit --fit", value="[on|off]", why=CPU),
    OtherOption("-cmoe --cpu-moe -kvo --kv-offload -nkvo --no-kv-offload --op-offload --no-op-offload --no-host "
                "--disable-custom-all-reduce --disable-cuda-graph", why=CPU),
    OtherOption("-nr --no-repack --repack --check-tensors -dio --direct-io --use-mmap --swa-full -kvu --kv-unified",
                why="weights are packed and checked in memory, and stay there"),
    OtherOption("-lm --load-mode -lzm --lazy-mode --load-format --config-format --tokenizer-mode --model-impl "
                "--generation-config", value="MODE", words={"auto": NOTHING},
                why="GGUF and safetensors are found by the file, and read into memory"),
    OtherOption("-ctkd --cache-type-k-draft -ctvd --cache-type-v-draft", value="TYPE",
                why="--kv-cache is the type of keys and values of both models"),
    OtherOption("--log-file --log-colors --log-verbosity -lv --verbosity --log-level "
        "--uvicorn-log-level --log-config-file",
                value="X", why="messages go to standard error: write 2> FILE after the command"),
    OtherOption("--log-prefix --log-timestamps --no-log-prefix --no-log-timestamps --verbose-prompt --display-prompt "
                "--perf --warmup --show-timings --no-show-timings -sp --special --progress --offline "
                "--show-progress-bar --no-stream --stream --no-log --no-jinja --disable-uvicorn-access-log "
                "--continuous-batching --enable-log-requests --disable-fastapi-docs -y --yes --insecure",
                words={"": NOTHING}),
    OtherOption("--embd-normalize --normalize-embeddings --normalize", value="[N]",
                words={"": NOTHING, "2": NOTHING, "true": NOTHING},
                why="the model's file decides whether vectors have length 1; cosines do not depend on it"),
    OtherOption("--pooling --pooling-type --similarity-fn-name", value="TYPE", refused=True,
                why="the model's file states the pooling; vectors are compared by cosine"),
    OtherOption("--rerank --reranking", why="POST /v1/rerank needs no switch"),
    OtherOption("-cram --cache-ram", value="N", refused=True,
                why="--cache-memory GIGABYTES limits the prefix cache of a server"),
    OtherOption("-ctxcp --ctx-checkpoints --cache-reuse --slot-save-path --keep --defrag-thold -dt", value="X",
                why="the prefix cache keeps the beginnings of prompts without a switch"),
    OtherOption("--cache-prompt --context-shift --no-context-shift", why="the prefix cache needs no switch"),
    OtherOption("-to --timeout --sse-ping-interval", value="N",
                why="--read-timeout and --shutdown-timeout are the time limits of a server"),
    OtherOption("--models-max", value="N", why="--memory GIGABYTES limits the loaded models together"),
    OtherOption("--executor-backend --distributed-executor-backend --scheduling-policy --max-num-partial-prefills",
                value="X", why=STEPS),
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
    OtherOption("--list-devices", why="the processor is the only device: pellucid info --machine", refused=True),
    OtherOption("-cl --cache-list", why="pellucid list shows the models on this machine", refused=True),
    OtherOption("--ids", why="the ids are in the table; --json prints them for programs", refused=True),
    OtherOption("--modelfile --parameters --license --template", refused=True,
                why="a model has no Modelfile; pellucid info MODEL shows its facts, its chat template and its licence"),
    OtherOption("--ssl-key-file --ssl-cert-file --ssl-keyfile --ssl-certfile", value="FILE", refused=True,
                why="a reverse proxy ends TLS in front of the server (docs/guides/deploy.md)"),
    OtherOption("--api-key-file", value="FILE", refused=True, why="--key KEY, or PELLUCID_KEY in the environment"),
    OtherOption("-hft --hf-token --token", value="TOKEN", refused=True,
                why="set HF_TOKEN in the environment, or log in with hf auth login"),
    OtherOption("--models-dir --local-dir --cache-dir --download-dir", value="FOLDER", refused=True,
                why="PELLUCID_HOME=FOLDER holds pulled models; the hub's cache is HF_HOME"),
    OtherOption("--include --exclude", value="PATTERN", refused=True,
                why="name one file: pellucid pull hf:owner/name/FILE"),
    OtherOption("--uds --path --api-prefix --root-path", value="PATH", refused=True,
                why="--host and --port are the server's address; a reverse proxy adds paths and sockets"),
    OtherOption("--override-kv --hf-overrides --tokenizer --rope-theta", value="X", refused=True,
                why="the model's file decides; change the file"),
    OtherOption("-a --attachment --audio --video --mmproj-url -mmu --limit-mm-per-prompt", value="FILE", refused=True,
                why="only the text part of a model is loaded"),
    OtherOption("-t", value="NAME", refused=True,
                why="there are no stored templates: --system TEXT and the prompt @FILE"),
    OtherOption("-T --tool --tools --functions --mcp-servers-config", value="NAME", refused=True,
                why="requests to pellucid serve carry tools, and clients run them"),
    OtherOption("-c --continue --cid --save --database --store --collection", value="[X]", refused=True,
                why="nothing is stored between commands; pellucid chat MODEL holds a conversation"),
    OtherOption("-x --extract --xl --extract-last", refused=True,
                why="the whole text is printed; --grammar or --regex constrains it to code"),
    OtherOption("--sampler-seq --sampling-seq --sampler-order", value="LETTERS", refused=True,
                why="--samplers NAMES lists the steps by name, such as top_k,top_p,temperature"),
    OtherOption("--reasoning-budget --reasoning --reasoning-effort -rea --chat-template-kwargs "
                "--default-chat-template-kwargs", value="X", refused=True,
                why="requests to pellucid serve have chat_template_kwargs and think"),
    OtherOption("--speculative-config --num-speculative-tokens --spec-type --spec-draft-n-max --draft-max --draft-min "
                "--draft-n --spec-ngram-mod-n-max", value="X", refused=True,
                why="--draft MODEL names a draft model; the number of proposed tokens adapts itself"),
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
    "models": ("list",),
    "models list": ("list",),
    "models ls": ("list",),
    "embed-models": ("list",),
    "embed-models list": ("list",),
    "cache": ("list",),
    "cache list": ("list",),
    "cache ls": ("list",),
    "cache scan": ("list",),
    "scan-cache": ("list",),
    "tags": ("list",),
    "cache rm": ("rm",),
    "delete-cache": ("rm",),
    "cache verify": ("verify",),
    "models info": ("info",),
    "cache info": ("info",),
    "launch render": ("serve",),
    "serving": ("serve",),
    "prompt": ("run",),
    "text-generation": ("run",),
    "simple": ("run", "--raw"),
    "batched-bench": ("bench",),
    "encode": ("embed",),
    "feature-extraction": ("embed",),
    "similarity": ("embed",),
    "embeddings": ("embed",),
    "embed-multi": ("embed",),
    "ner": ("tag",),
    "token-classify": ("tag",),
    "text-classify": ("classify",),
    "qa": ("answer",),
    "fill-mask": ("fill",),
    "detokenize": ("tokenize", "--help"),
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

PROGRAMS = ("ollama", "vllm", "hf", "huggingface-cli", "transformers", "transformers-cli", "llm")
"""Programs whose name may stay before a command."""

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
    "convert-hf-to-gguf": "safetensors and GGUF are loaded as they are",
    "gguf-split": "split GGUF files are loaded as they are: name the first file",
    "imatrix": "files keep their types; llama.cpp's llama-imatrix measures weights for llama-quantize",
    "export-lora": "merge the adapter into the model with llama.cpp's llama-export-lora first",
    "finetune": "models are only run; pellucid record writes activations for training",
    "train": "models are only run; pellucid record writes activations for training",
    "mtmd-cli": "only the text part of a model is loaded",
    "tts": "only text models are loaded",
    "rpc-server": "pellucid serve MODEL --cluster auto --stages N divides a model among machines",
    "launch": "start pellucid serve MODEL; docs/recipes has the settings of editors and agents",
    "search": "pellucid rerank MODEL QUERY @FILE orders texts by their relevance",
    "similar": "pellucid rerank MODEL QUERY @FILE orders texts by their relevance",
    "models default": "each command names its model: pellucid run MODEL PROMPT",
    "models options": "each command has its options: pellucid run --help",
    "cache prune": "pellucid rm MODEL removes a model; hf cache prune cleans the hub's cache",
    "keys": "pellucid needs no keys; pellucid serve --key KEY protects a server",
    "logs": "nothing is logged; pellucid run --receipt FILE records a run",
    "templates": "there are no stored templates: --system TEXT and the prompt @FILE",
    "schemas": "--json-schema @FILE reads a schema",
    "fragments": "the prompt @FILE reads a file",
    "collections": "pellucid embed MODEL --file FILE --out FILE writes vectors to a file",
    "aliases": "pellucid serve --alias NAME=MODEL serves a model under another name",
    "plugins": "pip install adds plugins, and they are found by themselves",
    "tools": "requests to pellucid serve carry tools, and clients run them",
    "install": "pip install adds packages",
    "uninstall": "pip uninstall pellucid removes the program, pellucid rm MODEL a model",
    "openai": "pellucid run uses models on this machine; pellucid bench serve URL measures a server",
    "auth": "hf auth login (of huggingface-hub) logs in to the hub; HF_TOKEN holds a token",
    "whoami": "hf auth whoami (of huggingface-hub) shows the account of the hub",
    "logout": "hf auth logout (of huggingface-hub) ends the login",
    "signout": "hf auth logout (of huggingface-hub) ends the login",
    "upload": "models are only fetched; hf upload (of huggingface-hub) sends files to the hub",
    "repo": "models are only fetched; the hf program manages repositories of the hub",
    "repos": "models are only fetched; the hf program manages repositories of the hub",
    "spaces": "models are only fetched; the hf program manages spaces of the hub",
    "datasets": "models are only fetched; hf download --type dataset fetches data",
    "jobs": "commands run on this machine; the hf program runs jobs on the hub",
    "update": "pip install --upgrade pellucid updates the program",
    "summarize": 'pellucid run MODEL "Summarize this" @FILE',
    "translate": "pellucid run MODEL TEXT --target-language CODE with a translation model",
    "runner": "pellucid serve starts its own workers",
    "convert": "safetensors and GGUF are loaded as they are",
}
"""Commands of other engines that have no counterpart, and what to do."""
