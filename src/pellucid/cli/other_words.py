"""Names that users of llama.cpp, Ollama, vLLM and transformers type: options and commands, and what they mean here.

``translation.py`` replaces them before Typer reads a command line. docs/commands.md lists them. An option has one of
three fates: it is the other name of an option or argument (``to``), it stands for words (``words``), or it is explained
in a line on standard error (``why``). An explained option has no effect, unless it is ``refused``. The file is
over 420 lines because all words of the other programs are here.
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
ALWAYS_SO = "there is nothing to choose"
OWN_TYPE = "the weights keep the types of the file; --precise computes as with float32"

STEERED = "pellucid run and chat take it; pellucid serve --vectors FOLDER names vectors for the field steer of requests"

NO_COUNTERPART = (
    # llama.cpp
    "--print-token-count --interactive-first -if "
    "--adaptive-target --adaptive-decay --backend-sampling -bs --tags --reuse-port --cors-methods --cors-headers "
    "--cors-credentials --no-cors-credentials --ui-config --webui-config --ui-config-file --webui-config-file "
    "--ui-mcp-proxy --webui-mcp-proxy --mcp-servers-json --tools-runtime --agent -ag --media-path --models-preset "
    "--models-autoload --no-models-autoload --cache-idle-slots --no-cache-idle-slots --checkpoint-min-step -cms "
    "--kv-unified-per-slot --skip-chat-parsing --no-skip-chat-parsing --log-prompts-dir --log-jsonl --no-log-jsonl "
    "--slot-prompt-similarity -sps --reasoning-preserve --reasoning-budget-message --yarn-ext-factor "
    "--yarn-attn-factor --yarn-beta-slow --yarn-beta-fast --grp-attn-n -gan --grp-attn-w -gaw --lora-scaled "
    "--lora-init-without-apply --draft-p-min --draft-p-split --spec-draft-p-min --spec-draft-n-min --dump-kv-cache "
    "-dkvc --no-mmproj --mmproj-auto --no-mmproj-auto --mmproj-offload --no-mmproj-offload --image-min-tokens "
    "--image-max-tokens --docker-repo -dr --hf-file-v -hffv --model-vocoder -mv --attention "
    "--output-err -oe "
    # vLLM
    "--enable-log-outputs --disable-frontend-multiprocessing --chat-template-content-format --guided-decoding-backend "
    "--structured-outputs-config --max-logprobs --logprobs-mode --async-scheduling --response-role "
    "--enable-expert-parallel --enable-server-load-tracking --enable-force-include-usage --enable-request-id-headers "
    "--return-tokens-as-token-ids --enable-prompt-tokens-details --enable-tokenizer-info-endpoint "
    "--exclude-tools-when-tool-choice-none --tool-parser-plugin --tool-server --log-config-json --max-log-len "
    "--disable-cascade-attn --disable-sliding-window --disable-hybrid-kv-cache-manager --long-prefill-token-threshold "
    "--max-long-partial-prefills --num-lookahead-slots --scheduler-delay-factor --preemption-mode "
    "--calculate-kv-scales -caching-hash-algo --override-pooler-config --override-generation-config "
    "--pooler-config --logits-processor-pattern --logits-processors --kv-transfer-config --kv-events-config "
    "--ec-transfer-config --compilation-config-level --additional-config --worker-cls --worker-extension-cls "
    "--otlp-traces-endpoint --collect-detailed-traces --show-hidden-metrics-for-version --max-loras --max-lora-rank "
    "--max-cpu-loras --lora-dtype --fully-sharded-loras --enable-prompt-embeds --mm-processor-kwargs "
    "--mm-processor-cache-gb --media-io-kwargs --allowed-local-media-path --allowed-media-domains "
    "--interleave-mm-strings --skip-mm-profiling --skip-tokenizer-init --tokenizer-revision --code-revision "
    "--hf-config-path --model-loader-extra-config --ignore-patterns --use-tqdm-on-load --pt-load-map-location "
    "--enable-sleep-mode --enable-eplb --num-redundant-experts --data-parallel-address --data-parallel-rank "
    "--data-parallel-backend --data-parallel-rpc-port --data-parallel-size-local --headless --nnodes --node-rank "
    "--master-addr --master-port --enable-dbo --ray-workers-use-nsight --max-parallel-loading-workers "
    "--enable-ssl-refresh --ssl-ca-certs --ssl-cert-reqs --h11-max-header-count --disable-mm-preprocessor-cache "
    "--guided-decoding-disable-fallback --enable-reasoning --dataset-path --sonnet-input-len --sharegpt-output-len "
    "--random-range-ratio --random-prefix-len --burstiness --percentile-metrics --metric-percentiles --goodput "
    "--save-detailed --append-result --metadata --label --profile-result "
    "--endpoint --ready-check-timeout-sec --num-warmups --output-tmp-dir --enable-metrics "
    # llm, transformers, hf, sentence-transformers
    "--schemas --async-models --param --chain-limit --cl --tools-debug --td --tools-approve --ta --at "
    "--attachment-type --schema-multi --fragment --sf --system-fragment -R --hide-reasoning --key-name --binary "
    "--metadata-json --sql --attach --encoding --plain --count --save-folder "
    "--examples-path --generation-config-path --host-user --private --commit-message --commit-description "
    "--create-pr --every --dry-run --sort --search --author --filter --revisions --show-warnings "
    "--precision --normalize-scores --default-prompt-name --chunk-size --pool-device --multi-process "
    "--aggregation-strategy --labels --candidate-labels --framework --feature --model-kwargs --bnb-4bit-quant-type "
    "-ptc --experimental --penalty-alpha --use-cache --generate-flags --prefill-assistant --no-prefill-assistant "
    "--embd-gemma-default --enable-prompt-adapter --enable-offline-docs --performance-mode --attention-backend "
    "--stream-interval -O -cc --reload --input-validation --non-blocking --compile --processor --output-value "
    "--activation-fn -mmp -embd -nopo --num-prompts --dataset --async-engine --profile --logprobs --dir --limit "
    "--no-trunc --local-dir-use-symlinks --force-generate"
)
"""Options that change nothing here, or whose subject does not exist here."""

OPTIONS = (
    OtherOption("-m --model --model-name --model-path --model-name-or-path", to="MODEL", value="MODEL"),
    OtherOption("-hf -hfr --hf-repo", to="MODEL hf:", value="OWNER/NAME[:TAG]"),
    OtherOption("-p --prompt -q --quick", to="PROMPT,TEXT", value="TEXT"),
    OtherOption("-f --file", to="PROMPT @,FILE,--file,TEXT @", value="FILE"),
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
    OtherOption("--documents", to="TEXT...", value="TEXT"),
    OtherOption("--max-seq-length --max-length", to="--context", value="N"),
    OtherOption("-m", to="--model", value="MODEL"),
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
    OtherOption("-i --input", to="--file", value="FILE"),
    OtherOption("-npp", to="--prompt", value="N"),
    OtherOption("-ntg", to="--tokens", value="N"),
    OtherOption("-npl", to="--batch", value="N"),
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
    OtherOption("--output-json", value="FILE", refused=True,
                why="--json prints the figures for programs: write > FILE after the command"),
    OtherOption("-v --log-verbose -u --usage --stats -vp --verbose-prompt", words={"": ("--verbose",)}),
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
    OtherOption("--models-max --sleep-idle-seconds --model-timeout", value="N",
                why="--memory GIGABYTES limits the loaded models together"),
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
    OtherOption("--metrics --slots --props --no-slots --no-webui --webui --ui --no-ui",
                why="/metrics, /slots, /props and the page need no switch"),
    OtherOption("--keepalive", value="TIME", why="the model is loaded for one command; pellucid serve keeps it"),
    OtherOption("--ignore-eos --return-documents --no-progress", words={"": NOTHING}),
    OtherOption("--completion-window", value="TIME", words={"24h": NOTHING}, why="a batch begins at once"),
    OtherOption("-e --escape --no-escape", why="the prompt is taken as it is; $'...' of the shell has escapes"),
    OtherOption(
        "-st --single-turn --no-display-prompt --color --simple-io -mli --multiline-input --no-warmup --log-disable "
        "--nowordwrap --disable-log-requests --disable-log-stats --no-perf -co -i --interactive "
        "--stdin --show-count --no-parse-special",
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
    OtherOption("-v --verbose --log-verbose -u --usage --stats", words={"": NOTHING}),
    OtherOption("--convert-to-tensor --convert-to-numpy --async --quiet --force --force-download --resume-download "
                "--use-fast --no-cache-dir --num-workers --max-workers --num-iters-warmup --n-gen-warmup --delay "
                "--seed-tts --disable-tqdm", value="[X]", why=ALWAYS_SO),
    # Refused, because the result would not be the one that was asked for
    OtherOption(
        "-q --quantization", value="METHOD", words={"gguf": NOTHING, "none": NOTHING}, why=OWN_WEIGHTS, refused=True
    ),
    OtherOption("--host --port", value="X", refused=True,
                why="the address of a server is one word: pellucid bench serve http://HOST:PORT, or --url"),
    OtherOption("--url --base-url --server-base --openai-api-key", value="URL", refused=True,
                why="this command loads the model itself; pellucid bench serve URL, ps and stop ask a server"),
    OtherOption("-l", value="ID+BIAS", refused=True, why="--logit-bias takes JSON: --logit-bias '{\"15043\": 1}'"),
    OtherOption("--chunks --ppl-stride --ppl-output-type --hellaswag --winogrande --multiple-choice --kl-divergence "
                "--kl-divergence-base --all-logits --save-all-logits", value="[X]", refused=True,
                why="pellucid eval perplexity has --window and --stride; pellucid eval kl --against compares models"),
    OtherOption("--prompt-cache --prompt-cache-all --prompt-cache-ro --lookup-cache-static -lcs --lookup-cache-dynamic "
                "-lcd", value="[FILE]", refused=True, why="a server keeps the beginnings of prompts in memory"),
    OtherOption("--config --api-server-count --middleware --lora-path --quantize --draft-quantize", value="FILE",
                refused=True, why="each option is given on the command line; pellucid COMMAND --help lists them"),
    OtherOption("--repo-type --type", value="TYPE", words={"model": NOTHING}, refused=True,
                why="only models are fetched; hf download --type fetches data sets and spaces"),
    OtherOption("--in-prefix --in-suffix --in-prefix-bos", value="[TEXT]", refused=True,
                why="the chat template marks the turns; --raw takes a prompt as it is"),
    OtherOption("--infill --spm-infill", refused=True,
                why="--raw takes a prompt with the model's own tokens for the gap, as its documentation gives them"),
    OtherOption("--embd-output-format -f --format", value="FORMAT", words={"json": ("--json",)}, refused=True,
                why="--json prints vectors for programs, and --file FILE --out FILE writes .npy"),
    OtherOption("--embd-separator --cls-separator", value="TEXT", refused=True,
                why="each text is one word of the command line, or one line of --file FILE"),
    OtherOption("-pg -pps", value="[N]", refused=True,
                why="--prompt N and --tokens N are measured one after the other"),
    OtherOption("--runner --convert", value="NAME", words={"auto": NOTHING, "generate": NOTHING}, refused=True,
                why="the model's file states its task; --task NAME chooses another"),
    OtherOption("--no-bos", refused=True, why="the tokens are shown that the model's file adds, as a prompt has them"),
    OtherOption("--force-model", value="MODEL", refused=True, why="name the models: pellucid serve MODEL"),
    OtherOption("--header --extra-body --save-result --result-dir --result-filename", value="[X]", refused=True,
                why="each request has the same body; --json > FILE keeps the figures"),
    OtherOption("--prompts --prefix --prepend", value="[TEXT]", refused=True,
                why="--prompt NAME puts a prompt of the model before each text; other words belong to the text"),
    OtherOption(NO_COUNTERPART, value="[X]", refused=True,
                why="there is no such choice: leave it out (pellucid COMMAND --help lists the options)"),
    OtherOption("--temp --temperature --top-k --top-p --min-p --repeat-penalty --repetition-penalty --presence-penalty "
                "--frequency-penalty -n --n-predict --max-tokens -s --seed --default-seed --grammar --json-schema",
                value="X", refused=True,
                why="each request states how it samples: temperature, top_p, seed, max_tokens"),
    OtherOption("--num-beams --length-penalty --early-stopping --use-beam-search --n", value="[X]", refused=True,
                why="pellucid beams MODEL PROMPT searches for the most likely texts"),
    OtherOption("--num-return-sequences", value="N", refused=True,
                why="pellucid sample MODEL PROMPT makes several texts"),
    OtherOption("--eos-tokens --eos-token-ids", value="TOKENS", refused=True, why="--stop TEXT ends the answer"),
    OtherOption("--no-cont-batching --no-enable-prefix-caching --no-enable-chunked-prefill", refused=True,
                why="this is always on, and changes no bit of an answer"),
    OtherOption("--enable-cors --allow-credentials --allowed-methods --allowed-headers", value="[X]", refused=True,
                why="--allow-origin ORIGIN lets the page of an origin call the server"),
    OtherOption("--workers", value="N", words={"1": NOTHING}, refused=True,
                why="one process runs all requests together; --replicas N with --cluster runs more"),
    OtherOption("--width --height --steps --negative", value="X", refused=True, why="only text is generated"),
    OtherOption("-bf --binary-file", value="FILE", refused=True, why="the prompt @FILE is the text of a file"),
    OtherOption("--key --user --api-key", value="X", refused=True, why="this command needs no key"),
    OtherOption("--query", value="TEXT", refused=True,
                why="all models are listed: write | grep TEXT after the command"),
    OtherOption("--options", refused=True, why="each command has its options: pellucid run --help"),
    OtherOption("--files", value="FOLDER", refused=True, why="--file FILE has a text in each line; .jsonl has ids"),
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
    OtherOption("-c --continue --cid --save -d --database --store --collection --log", value="[X]", refused=True,
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
    "bench sweep": "pellucid bench serve URL --rate X measures a rate; pellucid capacity simulates many",
    "bench mm-processor": "only the text part of a model is loaded",
    "bench startup": "pellucid bench MODEL measures the speed of a loaded model",
    "add-new-model-like": "docs/guides/add-a-family.md shows how a family is added",
    "add-fast-image-processor": "only text models are loaded",
    "lfs-enable-largefiles": "models are only fetched; the hf program manages repositories of the hub",
    "endpoints": "commands run on this machine; the hf program runs endpoints",
    "webhooks": "models are only fetched; the hf program manages webhooks of the hub",
    "buckets": "models are only fetched; the hf program manages buckets of the hub",
    "papers": "models are only fetched; the hf program shows papers of the hub",
    "discussions": "models are only fetched; the hf program shows discussions of the hub",
    "skills": "llms.txt (make docs) describes the program for assistants",
    "upload-large-folder": "models are only fetched; hf upload (of huggingface-hub) sends files to the hub",
    "semantic-search": "pellucid rerank MODEL QUERY @FILE orders texts by their relevance",
    "paraphrase-mining": "pellucid embed MODEL --file FILE --out FILE writes vectors to compare",
    "token-count": "pellucid tokenize MODEL TEXT numbers the tokens",
    "template-analysis": "pellucid info MODEL shows whether a model has a chat template",
    "parallel": "pellucid batch IN OUT --model MODEL runs many requests together",
    "lookup": "speculative decoding by prompt lookup needs no switch",
    "speculative": "pellucid run MODEL PROMPT --draft MODEL proposes tokens",
    "fit-params": "pellucid plan MODEL shows the memory that a model takes",
    "show-template": "pellucid info MODEL shows the facts of a model",
    "convert-hf-to-gguf": "safetensors and GGUF are loaded as they are",
    "convert-lora-to-gguf": "merge the adapter into the model first",
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
