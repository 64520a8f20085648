"""The pages that people read: links lead somewhere, named files and tests exist, tables and lines render."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = ("bench", "deploy", "docs", "drafter_svc", "gateway", "paceline", "protos", "tests", "verifier_svc")
WIDTH = 110
# Files of other projects.
FOREIGN = ("bench_serving.py", "benchmark_serving.py")

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\s]+)`")
FILE = re.compile(r"[\w.-]+(/[\w.-]+)*\.(py|md|proto|lua|toml|png)")
FOLDER = re.compile(rf"({'|'.join(FOLDERS)})(/[\w.-]+)*/?")
TEST = re.compile(r"test_\w+")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


@cache
def paths() -> frozenset[str]:
    """Every file and folder of the repository's own, and every shorter tail of its path."""
    tails: set[str] = set()
    tops = [ROOT / folder for folder in FOLDERS]
    for path in (*ROOT.iterdir(), *tops, *(each for top in tops for each in top.rglob("*"))):
        parts = path.relative_to(ROOT).parts
        tails.update("/".join(parts[start:]) for start in range(len(parts)))
    return frozenset(tails)


@cache
def names_of_tests() -> frozenset[str]:
    sources = (path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    return frozenset(name for source in sources for name in re.findall(r"def (test_\w+)\(", source))


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines that are not code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, line


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = (line.lstrip("#").strip() for _, line in prose(text) if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_to_a_file_or_a_heading_resolves(page: Path) -> None:
    dead = []
    for number, line in prose(page.read_text()):
        for target in LINK.findall(line):
            if target.startswith(("https://", "http://")):
                continue
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            if not linked.exists() or (anchor and anchor not in anchors(linked.read_text())):
                dead.append((number, target))
    assert not dead


# The changelog tells what was.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_name)
def test_every_file_folder_and_test_that_is_named_exists(page: Path) -> None:
    missing = []
    for number, line in prose(page.read_text()):
        for word in CODE.findall(line):
            known = word.rstrip("/") in paths() or word in FOREIGN
            if FILE.fullmatch(word) or (FOLDER.fullmatch(word) and "/" in word):
                if not known:
                    missing.append((number, word))
            elif TEST.fullmatch(word) and word not in names_of_tests():
                missing.append((number, word))
    assert not missing


@every_page
def test_the_rows_of_a_table_have_one_number_of_cells(page: Path) -> None:
    uneven, width = [], 0
    for number, line in prose(page.read_text()):
        if not line.lstrip().startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        if not width:
            width = cells
        if cells != width or not line.rstrip().endswith("|"):
            uneven.append((number, line[:60]))
    assert not uneven


@every_page
def test_a_table_begins_with_its_head(page: Path) -> None:
    lines = [line.strip() for _, line in prose(page.read_text())]
    starts = [
        row
        for row, line in enumerate(lines)
        if line.startswith("|") and not (row and lines[row - 1][:1] == "|")
    ]
    headless = [
        lines[row][:60]
        for row in starts
        if not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", (lines[row + 1 :] or [""])[0])
    ]
    assert not headless


@every_page
def test_lines_are_as_wide_as_the_codes(page: Path) -> None:
    """Tables, and lines that are one long link or word, may be wider."""
    wide = [
        number
        for number, line in prose(page.read_text())
        if len(line) > WIDTH and not line.lstrip().startswith("|") and " " in line.strip().lstrip("-* ")
    ]
    assert not wide
