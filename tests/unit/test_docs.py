"""The documentation: links on GitHub, and the pages of the site. ``make docs`` builds the site itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import Command

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from website import check, commands, contents, docstrings, llms, pages, reference  # noqa: E402
from website.links import links, relinked  # noqa: E402

from pellucid import trace  # noqa: E402
from pellucid.cli.command import CommandGroup, known_commands  # noqa: E402

ADDRESS = "https://example.org/pellucid"


@pytest.fixture(scope="module")
def site() -> dict[str, contents.SitePage]:
    return {page.place: page for page in contents.site_pages()}


def anchors(source: str) -> Iterator[str]:
    """The anchors that GitHub gives to the headings of a page, and the anchors that the page declares."""
    text, seen = (re.sub(r"^```.*?^```", "", pages.read(source), flags=re.MULTILINE | re.DOTALL), dict[str, int]())
    yield from re.findall(r'<a id="([^"]+)">', text)
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        yield f"{slug}-{seen[slug]}" if slug in seen else slug
        seen[slug] = seen.get(slug, 0) + 1


@pytest.mark.parametrize("source", pages.sources())
def test_links_lead_somewhere(source: str) -> None:
    for link in links(pages.read(source)):
        file, anchor = pages.linked_file(source, link)
        if anchor and file.endswith(".md"):
            assert anchor[1:] in anchors(file), link


def test_every_page_is_in_the_navigation_once(site: dict[str, contents.SitePage]) -> None:
    entries = [
        entry
        for page in site.values()
        for tree in re.findall(r"^```\{toctree\}\n(.*?)```", page.for_sphinx, re.MULTILINE | re.DOTALL)
        for entry in re.findall(r"^/(.+)$", tree, re.MULTILINE)
    ]
    assert sorted([*entries, "index", "contents"]) == sorted(site)


@pytest.mark.parametrize("name", list(known_commands()))
def test_the_page_of_a_command_has_its_help(name: str, command: Command) -> None:
    entry = known_commands()[name]
    parts = [[name, part] for part in entry.parts] if isinstance(entry, CommandGroup) else [[name]]
    for for_site in (True, False):
        text = commands.page(name, for_site)
        for part in parts:
            options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", command(*part, "--help").answer, re.MULTILINE)
            assert options[-1] == "--help"
            _, _, own = text.partition(f"pellucid {' '.join(part)} [OPTIONS]")
            assert [option for option in options[:-1] if option not in own] == []


def test_help_is_shown_as_it_is() -> None:
    assert commands.escaped("a_b* `c_d*` <e> [f]") == r"a\_b\* `c_d*` \<e\> \[f\]"


def test_every_public_name_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.unlisted() == []
    assert len(set(reference.names())) == len(reference.names())
    assert [name for name in reference.names() if not docstrings.first_sentence(reference.resolved(name))] == []
    monkeypatch.setattr(trace, "__all__", [*trace.__all__, "new_lens"])
    assert reference.unlisted() == ["pellucid.trace.new_lens"]


def test_omitted_members_exist() -> None:
    for name, omitted in reference.OMITTED.items():
        of = reference.resolved(name)
        assert [member for member in omitted.split() if not callable(getattr(of, member, None))] == []


def test_the_reference_without_sphinx_has_signatures_and_members(site: dict[str, contents.SitePage]) -> None:
    text = site["api/llm"].markdown
    assert "generate(self, prompt: 'PromptInput" in text
    assert "`points`: The values of a run that can be traced" in text
    assert "top_p" in site["api/options"].markdown


def test_docstrings_become_restructuredtext() -> None:
    text = """Record ``values``(x) of a |y| * z_, as ``Trace``:

    with llm.trace("a_") as t:
        t["*"]

After the code.

Args:
    name: a *name*."""
    assert "\n".join(docstrings.to_rst(text.split("\n"), {"Trace": "pellucid.trace.trace.Trace"})) == (
        r"""Record ``values``\ (x) of a \|y\| \* z\_, as :py:obj:`Trace <pellucid.trace.trace.Trace>`:

.. code-block:: python

    with llm.trace("a_") as t:
        t["*"]

After the code.

Args:
    name: a \*name\*."""
    )


def test_links_of_a_page_get_the_targets_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """# A
[Serving](../serving.md#the-page), [here](#a), [../serving.md](../serving.md), [code](../../src/pellucid),
[file](../../LICENSE), ![picture](../images/run.png), [PyPI](https://pypi.org), `[no](link.md)`

    [no](link.md)
"""
    monkeypatch.setattr(pages, "read", lambda name: source if name == "docs/guides/add-a-command.md" else "# Serving\n")
    assert (
        pages.staged("docs/guides/add-a-command.md", ADDRESS)
        == f"""# A
[Serving](../serving.md#the-page), [here](#a), [Serving](../serving.md), [code]({ADDRESS}/tree/main/src/pellucid),
[file]({ADDRESS}/blob/main/LICENSE), ![picture](../images/run.png), [PyPI](https://pypi.org), `[no](link.md)`

    [no](link.md)
"""
    )
    source = "[gone](gone.md)"
    with pytest.raises(pages.BrokenLink, match=r"docs/guides/add-a-command\.md: gone\.md: no such file"):
        pages.staged("docs/guides/add-a-command.md", ADDRESS)


def test_code_is_no_link() -> None:
    text = "[`a`](b)\n\n```\n[c](d)\n```\n\n[e [f]](g) `[h](i)` [j](mailto:k)\n"
    assert links(text) == ["b", "g"]
    assert relinked(text, lambda link, _: link.upper()) == text.replace("(b)", "(B)").replace("(g)", "(G)")


def test_places_of_pages() -> None:
    sources = ("README.md", "docs/README.md", "SECURITY.md", "docs/guides/a.md", "docs/decisions/README.md")
    assert [pages.place(source) for source in sources] == [
        *("index", "contents", "security", "guides/a", "decisions/index")
    ]


def test_llms_txt_has_the_form_of_llmstxt_org(site: dict[str, contents.SitePage]) -> None:
    text = llms.short(list(site.values()))
    assert re.match(r"# Pellucid\n\n> .+\n\n", text)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert sections[-1].startswith("Optional\n")
    listed = []
    for section in sections:
        _, _, lines = section.partition("\n\n")
        for line in lines.strip().splitlines():
            match = re.fullmatch(r"- \[(.+)\]\(([\w/-]+)\.md\): .+", line)
            assert match, line
            listed.append(match[2])
    assert set(listed) <= set(site)
    assert {"index", "serving", "api/index", "versions"} <= set(listed)


def test_llms_full_txt_has_the_pages_that_are_not_optional(site: dict[str, contents.SitePage]) -> None:
    text = llms.full(list(site.values()))
    for place in ("serving", "guides/see-sampling", "commands/run", "api/llm"):
        assert site[place].markdown.strip() in text
    assert site["log"].markdown.strip() not in text


def test_the_check_of_the_site_finds_broken_links_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h1 id="c d">B</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#c%20d">ok</a> <a href="https://pypi.org">ok</a> <img src="data:,x">'
        '<a href="gone.html">1</a> <a href="b.html#e">2</a> <a href="#f">3</a>'
        '<script src="https://example.org/x.js"></script> <link rel="stylesheet" href="x.css">'
    )
    assert sorted(check.problems(tmp_path)) == [
        "a.html: #f: no such place in the page",
        "a.html: b.html#e: no such place in the page",
        "a.html: gone.html: no such file",
        "a.html: loads https://example.org/x.js from the network",
        "a.html: x.css: no such file",
    ]


def test_only_pyproject_has_the_address_of_the_repository() -> None:
    address = pages.repository().removeprefix("https://")
    suffixes = (".md", ".py", ".js", ".toml", ".yml", ".html")
    named = [
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "tests", "bench", "docs", ".github")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
        and not any(part.startswith(".") for part in path.relative_to(ROOT / folder).parts)  # bench/.peers
        and address in path.read_text(encoding="utf-8")
    ]
    assert named == []
    urls = re.findall(r'^\w+ = "(https://.+)"$', pages.read("pyproject.toml"), re.MULTILINE)
    assert urls
    assert [url for url in urls if not url.startswith(pages.repository())] == []
