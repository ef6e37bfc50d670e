"""guidellm: every request of several concurrent clients is answered."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPTS = [f"Tell me {number} facts about the sea." for number in range(2, 14)]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        prompts, report = Path(name) / "prompts.txt", Path(name) / "report.json"
        prompts.write_text("\n".join(PROMPTS) + "\n")
        subprocess.run(
            [
                *(sys.executable, "-m", "guidellm", "run", "--disable-console"),
                *("--backend", f"kind=openai_http,target={sys.argv[1]},model=smollm2"),
                *("--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=12"),
                *("--data", f"kind=text_file,path={prompts}", "--output", f"kind=json,path={report}"),
            ],
            check=True,
        )
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] == len(PROMPTS), totals
    assert totals["errored"] == 0, totals


if __name__ == "__main__":
    main()
