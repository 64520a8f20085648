"""The fleet that is fuzzed, and a table of what it was asked and how it answered."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz.explore import Tally

TALLY: pytest.StashKey[Tally] = pytest.StashKey()


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """Counts the whole run's cases."""
    return pytestconfig.stash.setdefault(TALLY, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the cases by kind and answer."""
    tally = config.stash.get(TALLY, None)
    if not tally:
        return
    terminalreporter.section(f"fuzzing: {tally.total()} cases, --fuzz-seed {config.getoption('--fuzz-seed')}")
    kinds = dict.fromkeys(kind for kind, _ in tally)
    for kind in kinds:
        answers = {answer: count for (asked, answer), count in sorted(tally.items()) if asked == kind}
        listed = ", ".join(f"{answer} {count}" for answer, count in answers.items())
        terminalreporter.write_line(f"{kind:<22} {sum(answers.values()):>6}  {listed}")
