"""The last step of `make check`: pip-audit on constraints.txt, where a vulnerability service can be reached.

    python -m tests.audit

Ends with 1 when a pinned version has a known vulnerability, and prints which, and what mends it. Where no service can be
reached, as behind a mirror that holds packages only, it prints a line that begins with SKIPPED, and why, and ends with 0.
pip-audit by itself would say that nothing was found then, having looked at nothing.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

_CONSTRAINTS: Final = Path(__file__).parents[1] / "constraints.txt"
_SERVICES: Final = ("pypi", "osv")
_TIMEOUT_S: Final = 300
# How pip-audit 2.10 and the libraries below it end when the network is why.
_UNREACHABLE: Final = re.compile(
    r"ConnectionError|Could not connect|[Tt]ime[d-]? ?out|NameResolutionError|ProxyError|SSLError|HTTPError|Max retries"
)


class Vulnerability(msgspec.Struct):
    """As pip-audit reports it."""

    id: str
    fix_versions: list[str]


class Dependency(msgspec.Struct):
    """One pinned package; where it could not be audited it has a reason, and nothing else."""

    name: str
    version: str = ""
    vulns: list[Vulnerability] = []
    skip_reason: str | None = None


class Report(msgspec.Struct):
    """What pip-audit prints."""

    dependencies: list[Dependency]


class Verdict(NamedTuple):
    """What a report comes to: lines to print; whether a vulnerability was found; why the service is no use, or None."""

    lines: list[str]
    vulnerable: bool
    useless: str | None


class AuditFailed(Exception):
    """pip-audit failed, and not for want of a network."""


def judge(report: Report) -> Verdict:
    """What a report comes to."""
    audited = [each for each in report.dependencies if each.skip_reason is None]
    skipped = [each.name for each in report.dependencies if each.skip_reason is not None]
    if not audited:
        return Verdict([], vulnerable=False, useless=f"it knows none of the {len(skipped)} packages")
    lines = [
        f"{each.name} {each.version}: {found.id}, "
        + (f"mended in {', '.join(found.fix_versions)}" if found.fix_versions else "no version mends it yet")
        for each in audited
        for found in each.vulns
    ]
    summary = f"{len(audited)} pinned packages audited, {len(lines)} known vulnerabilities"
    if skipped:
        summary += f"; the service does not know {', '.join(skipped)}"
    return Verdict([*lines, summary], vulnerable=bool(lines), useless=None)


def is_unreachable(error: str) -> bool:
    """Whether what pip-audit wrote when it failed says that the network is why."""
    return _UNREACHABLE.search(error) is not None


def _audit(service: str) -> Verdict:
    command: Sequence[str] = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(_CONSTRAINTS), "--no-deps", "--disable-pip"),
        *("--vulnerability-service", service, "--format", "json", "--desc", "off", "--progress-spinner", "off"),
    ]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Verdict([], vulnerable=False, useless=f"no answer within {_TIMEOUT_S} s")
    if finished.stdout.startswith("{"):
        return judge(msgspec.json.decode(finished.stdout, type=Report))
    reason = finished.stderr.strip().rpartition("\n")[2][:300]
    if is_unreachable(finished.stderr):
        return Verdict([], vulnerable=False, useless=f"it cannot be reached ({reason})")
    raise AuditFailed(f"pip-audit with {service} ended with {finished.returncode}: {reason}")


def main() -> int:
    """Ask one service after the other; returns the exit status."""
    reasons = []
    for service in _SERVICES:
        verdict = _audit(service)
        if verdict.useless is None:
            for line in verdict.lines:
                print(line)
            return 1 if verdict.vulnerable else 0
        reasons.append(f"{service}: {verdict.useless}")
    print(f"SKIPPED: no vulnerability service; {'; '.join(reasons)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AuditFailed as failure:
        print(failure)
        sys.exit(1)
