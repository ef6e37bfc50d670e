"""llm-comply: answers and events of three APIs match the services' published schemas.

All its tests pass except the tests of images, because the models only read text. llm-comply skips tests of reasoning
for models whose names it does not know.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

URL, MODEL = sys.argv[1], "qwen2.5-coder-0.5b"
IMAGES = {"image-input", "chat-image-input", "anth-image-input"}


def failures(form: str) -> dict[str, list[str]]:
    """Problems that llm-comply finds in an API, by test."""
    command = [str(Path(sys.executable).with_name("llm-comply")), "-u", f"{URL}/v1", "-k", "none", "-m", MODEL]
    done = subprocess.run(
        [*command, "--format", form, "--json", "--timeout", "300"], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)
    assert len(found["results"]) >= 9, found
    return {one["id"]: one["errors"] for one in found["results"] if one["status"] == "failed"}


for form in ("openai-chat", "open-responses", "anthropic"):
    wrong = failures(form)
    assert set(wrong) <= IMAGES, (form, wrong)
    assert len(wrong) == 1, (form, wrong)
