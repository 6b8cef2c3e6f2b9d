import pytest

from tests.audit import Dependency, Report, Vulnerability, is_unreachable, judge

GOOD = Dependency("numpy", "2.4.6")
BAD = Dependency("pillow", "13.0.0", [Vulnerability("CVE-1", ["13.0.1"]), Vulnerability("CVE-2", [])])
UNKNOWN = Dependency("redislite", skip_reason="Dependency not found on PyPI")


def test_a_known_vulnerability_fails_and_says_what_mends_it() -> None:
    verdict = judge(Report([GOOD, BAD, UNKNOWN]))
    assert verdict.vulnerable
    assert verdict.useless is None
    assert verdict.lines == [
        "pillow 13.0.0: CVE-1, mended in 13.0.1",
        "pillow 13.0.0: CVE-2, no version mends it yet",
        "2 pinned packages audited, 2 known vulnerabilities; the service does not know redislite",
    ]


def test_a_clean_report_passes() -> None:
    verdict = judge(Report([GOOD]))
    assert not verdict.vulnerable
    assert verdict.lines == ["1 pinned packages audited, 0 known vulnerabilities"]


def test_a_service_that_knows_no_package_has_audited_nothing() -> None:
    verdict = judge(Report([UNKNOWN, UNKNOWN]))
    assert verdict.useless == "it knows none of the 2 packages"
    assert not verdict.vulnerable


@pytest.mark.parametrize(
    ("error", "unreachable"),
    [
        ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x', port=443): Max retries exceeded", True),
        ("ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", True),
        ("requests.exceptions.ReadTimeout: Read timed out.", True),
        ("ERROR:pip_audit._cli:invalid requirements input: constraints.txt", False),
        ("ModuleNotFoundError: No module named 'pip_audit'", False),
    ],
)
def test_only_the_network_is_a_reason_to_skip(error: str, unreachable: bool) -> None:
    assert is_unreachable(error) is unreachable
