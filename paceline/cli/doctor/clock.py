"""Clocks: how far another machine's is from this one's."""

from __future__ import annotations

from paceline.cli.doctor.findings import Check, Report

# Certificates and API keys end at times, leases of limits last 15 seconds.
_WORTH_SAYING, _TOO_FAR = 1.0, 5.0


def check(report: Report, subject: str, told: float, asked: float, heard: float) -> None:
    """`told`: its Unix time; `asked`, `heard`: ours before the question and after the answer."""
    if not told:
        return
    # Half of the way is not known.
    unsure = (heard - asked) / 2
    offset = told - (asked + unsure)
    off = max(0.0, abs(offset) - unsure)
    what = f"its clock is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine's"
    do = "keep both in time with NTP: certificates, API keys and limits go by the clock"
    if off > _TOO_FAR:
        report.error(Check.CLOCK, subject, what, do)
    elif off > _WORTH_SAYING:
        report.warning(Check.CLOCK, subject, what, do)
    else:
        report.ok(Check.CLOCK, subject, "its clock is this machine's, within a second")
