"""What the doctor finds: each finding says what is the case and, where that is not good, what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    # Worth knowing, and maybe meant so.
    NOTE = "note"
    # Works now, and may not for long or not well.
    WARNING = "warning"
    # Does not work.
    ERROR = "error"


class Check(StrEnum):
    """What was looked at."""

    CONFIGURATION = "configuration"
    REACHABILITY = "reachability"
    VERSIONS = "versions"
    VOCABULARY = "vocabulary"
    DEVICE = "device"
    REDIS = "redis"
    TLS = "tls"
    CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of one check of one thing (`subject`: a service's settings, a pod's address, a file)."""

    check: Check
    level: Level
    subject: str
    what: str
    # Empty where there is nothing to do.
    do: str = ""


@dataclass(slots=True)
class Report:
    """All findings, in the order in which they were made."""

    findings: list[Finding] = field(default_factory=list)

    def ok(self, check: Check, subject: str, what: str) -> None:
        """All is well."""
        self.findings.append(Finding(check, Level.OK, subject, what))

    def note(self, check: Check, subject: str, what: str, do: str = "") -> None:
        """Add a finding of that level; so do the next two."""
        self.findings.append(Finding(check, Level.NOTE, subject, what, do))

    def warning(self, check: Check, subject: str, what: str, do: str) -> None:
        self.findings.append(Finding(check, Level.WARNING, subject, what, do))

    def error(self, check: Check, subject: str, what: str, do: str) -> None:
        self.findings.append(Finding(check, Level.ERROR, subject, what, do))

    def count(self, level: Level) -> int:
        """Number of findings of a level."""
        return sum(finding.level is level for finding in self.findings)

    @property
    def healthy(self) -> bool:
        """Whether there is no error."""
        return not self.count(Level.ERROR)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        counts = {str(level): self.count(level) for level in Level}
        findings = [asdict(finding) for finding in self.findings]
        return {"healthy": self.healthy, "counts": counts, "findings": findings}
