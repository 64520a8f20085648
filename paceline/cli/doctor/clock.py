"""Clocks: how far another machine's is from this one's."""

from __future__ import annotations

from paceline.cli.doctor.findings import Check, Report

# Certificates and API keys end at times, leases of limits last 15 seconds.
_WORTH_SAYING, _TOO_FAR = 1.0, 5.0
# The greatest --poll-seconds.
_OLDEST_ANSWER = 60.0


def check_told(report: Report, subject: str, told: float, gateways: float) -> None:
    """`told`: a pod's Unix time when it last answered a gateway; `gateways`: the gateway's own, later."""
    if not told:
        return
    # A clock that is behind cannot be told from an old answer, unless it is far behind.
    offset = told - gateways
    off = offset if offset > 0 else max(0.0, -offset - _OLDEST_ANSWER)
    direction = "ahead of" if offset > 0 else "behind"
    _judge(report, subject, off, f"its clock is some {off:.0f} s {direction} the gateway's", "the gateway's")


def check(report: Report, subject: str, told: float, asked: float, heard: float) -> None:
    """`told`: its Unix time; `asked`, `heard`: ours before the question and after the answer."""
    if not told:
        return
    # Half of the way is not known.
    unsure = (heard - asked) / 2
    offset = told - (asked + unsure)
    off = max(0.0, abs(offset) - unsure)
    what = f"its clock is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine's"
    _judge(report, subject, off, what, "this machine's")


def _judge(report: Report, subject: str, off: float, what: str, other: str) -> None:
    """`off`: by how many seconds at least it differs from the other one's."""
    do = "keep both in time with NTP: certificates, API keys and limits go by the clock"
    if off > _TOO_FAR:
        report.error(Check.CLOCK, subject, what, do)
    elif off > _WORTH_SAYING:
        report.warning(Check.CLOCK, subject, what, do)
    else:
        report.ok(Check.CLOCK, subject, f"its clock is {other}, as far as can be seen")
