"""How user turns begin: a few words of many kinds, which the model goes on from by itself.

They are lines of `openings.txt`, in sections.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    sections: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line:
            continue
        if line.startswith("["):
            name = line.strip("[]")
            sections[name] = ()
        else:
            sections[name] += ("" if line == "-" else line.replace("\\n", "\n"),)
    return sections


_SECTIONS: Final = _read(Path(__file__).with_name("openings.txt"))
FREE: Final = ("",)
ASK: Final = _SECTIONS["ask"]
RECKON: Final = _SECTIONS["reckon"]
EXPLAIN: Final = _SECTIONS["explain"]
WRITE: Final = _SECTIONS["write"]
ARTICLE: Final = _SECTIONS["article"]
SUMMARISE: Final = _SECTIONS["summarise"]
QUESTION: Final = _SECTIONS["question"]
REWORK: Final = _SECTIONS["rework"]
FOLLOW_UP: Final = _SECTIONS["follow up"]
# How often a text in each language is to be translated.
_LANGUAGES: Final = {"German": 6, "English": 3, "French": 1, "Spanish": 1, "Italian": 1}


def fill(random: Random, opening: str) -> str:
    """An opening with its names, numbers and places drawn."""
    if "{" not in opening:
        return opening
    return opening.format(
        name=random.choice(_SECTIONS["names"]),
        other=random.choice(_SECTIONS["names"]),
        number=random.choice((random.randint(2, 12), random.randint(10, 100), random.randint(100, 2000))),
        thing=random.choice(_SECTIONS["things"]),
        topic=random.choice(_SECTIONS["topics"]),
        place=random.choice(_SECTIONS["places"]),
    )


def translation(random: Random) -> str:
    """An opening that asks for a translation, with the first words of what is to be translated."""
    source = random.choices(tuple(_LANGUAGES), tuple(_LANGUAGES.values()))[0]
    target = random.choice(("German", "French", "Spanish")) if source == "English" else "English"
    words = random.choice(_SECTIONS[f"of {source}"])
    return random.choice(_SECTIONS["into"]).format(of=source, to=target, words=words)
