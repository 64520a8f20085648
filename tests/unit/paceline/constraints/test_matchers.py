"""Constraints of all kinds, compiled for a model's vocabulary: what they allow, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from paceline.constraints.compiler import compiled
from paceline.constraints.constraint import Constraint, ConstraintError, Kind
from paceline.constraints.matcher import GrammarMatcher, MatcherError
from paceline.constraints.matchers import Matchers
from paceline.constraints.trial import Trial
from paceline.constraints.vocabulary import Vocabulary
from tests.tiny_tokenizers import KINDS

BYTES = Vocabulary.bytes_only()
END = frozenset(BYTES.tokens.eos_tokens)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def fits(constraint: Constraint, text: str) -> bool:
    """Whether the whole text is one that the constraint allows."""
    matcher = GrammarMatcher(compiled(constraint, BYTES), BYTES, END)
    try:
        matcher.commit([*text.encode(), *END])
    except MatcherError:
        return False
    return bool(matcher.legal([], []).size == 0)


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint(Kind.JSON_OBJECT), ['{"a": [1, null]}', "{}"], ["[]", "1"]),
        (
            Constraint.schema(PERSON),
            ['{"name":"x","age":4}', '{ "name": "x", "age": 4 }', '{\n  "name": "x",\n  "age": 4\n}'],
            ['{"name":"x"}', '{"name":"too long","age":4}', '{"name":"x","age":4,"b":1}'],
        ),
        (Constraint.schema({"enum": ["a", 1, None]}), ['"a"', "1", "null"], ['"b"']),
        (Constraint(Kind.REGEX, r"[a-c]+\d{2}"), ["abc12"], ["abc1", "x12", "abc123"]),
        (Constraint(Kind.REGEX, "^ab$"), ["ab"], ["a"]),
        (Constraint.choice(["yes", "no", 'a"\n\\b é']), ["yes", "no", 'a"\n\\b é'], ["yesno"]),
        (Constraint(Kind.GRAMMAR, 'start: "a" NUMBER\nNUMBER: /[0-9]+/'), ["a12"], ["12"]),
        (Constraint(Kind.GRAMMAR, 'root ::= "a" digit+\ndigit ::= [0-9]'), ["a12"], ["12", "a"]),
    ],
)
def test_a_text_fits_or_it_does_not(constraint: Constraint, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits(constraint, text)] == []
    assert [text for text in bad if fits(constraint, text)] == []


def test_blanks_between_the_tokens_of_json_are_bounded() -> None:
    assert not fits(Constraint(Kind.JSON_OBJECT), "{" + " " * 200 + "}")
    assert not fits(Constraint(Kind.JSON_OBJECT), "{" + "\n" * 3 + "}")


@pytest.mark.parametrize(
    ("constraint", "why"),
    [
        (Constraint.schema({"type": "strin"}), "strin"),
        (Constraint.schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Constraint.schema({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable"),
        (Constraint.schema({"$ref": "#"}), "no text"),
        (Constraint(Kind.REGEX, "(a"), "regex"),
        (Constraint(Kind.REGEX, "(?=a)b"), "look-around"),
        (Constraint(Kind.GRAMMAR, 'start: other "a"'), "other"),
        (Constraint(Kind.GRAMMAR, 'start: start "a"'), "no text"),
        (Constraint(Kind.GRAMMAR, "root ::= ("), "GBNF"),
    ],
)
def test_what_cannot_be_compiled_is_said(constraint: Constraint, why: str) -> None:
    with pytest.raises(ConstraintError, match=why):
        compiled(constraint, BYTES)


def test_what_cannot_be_enforced_is_left_out_of_a_lenient_schema() -> None:
    schema = Constraint.schema({"type": "array", "uniqueItems": True, "maxItems": 2}, lenient=True)
    assert fits(schema, "[1,1]")
    assert not fits(schema, "[1,1,1]")


@pytest.fixture
async def matchers() -> AsyncIterator[Matchers]:
    made = Matchers(BYTES)
    yield made
    await made.close()


async def test_one_that_takes_too_much_is_refused_and_the_next_is_tried() -> None:
    trial = Trial(cpu_seconds=0.1)
    next_one = asyncio.create_task(trial.run(Constraint.choice(["a"])))
    costly = Constraint(Kind.REGEX, "(a{1000}){1000}")
    try:
        for _ in range(2):
            with pytest.raises(ConstraintError, match=r"takes more than 0.1 s"):
                await trial.run(costly)
        await next_one
        with pytest.raises(ConstraintError, match="regex"):
            await trial.run(Constraint(Kind.REGEX, "(a"))
    finally:
        await trial.close()


async def test_sessions_of_one_constraint_do_not_disturb_one_another(matchers: Matchers) -> None:
    one = await matchers.matcher(Constraint.choice(["abc", "abd"]), END)
    other = await matchers.matcher(Constraint.choice(["abc", "abd"]), END)
    one.commit([*b"abc"])
    assert other.legal([*b"abd"], [-1, 0, 1]).all()
    resumed = await matchers.matcher(Constraint.choice(["abc", "abd"]), END, b"ab")
    assert resumed.legal([ord("c"), ord("d")], [-1, -1]).all()
    with pytest.raises(MatcherError):
        await matchers.matcher(Constraint.choice(["abc", "abd"]), END, b"x")


async def test_without_bytes_every_constraint_is_refused() -> None:
    with pytest.raises(ConstraintError, match="tokenizer"):
        await Matchers(None).matcher(Constraint.choice(["a"]), END)


@pytest.mark.parametrize("name", ["byte fallback", "byte level"])
def test_tokenizers_whose_tokens_are_bytes_take_constraints(name: str) -> None:
    tokenizer = KINDS[name]
    vocabulary = Vocabulary.of(tokenizer, "f", len(tokenizer) + 5)
    end = frozenset({tokenizer.eos_token_id})
    matcher = GrammarMatcher(compiled(Constraint.choice(["é.", "b"]), vocabulary), vocabulary, end)
    matcher.commit([*tokenizer("b", add_special_tokens=False)["input_ids"][-1:], *end])
