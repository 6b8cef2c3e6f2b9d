"""What every test shares: which tests count as integration tests, and how property tests run."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Its asserts are rewritten to say their values although its name is not that of a test file.
pytest.register_assert_rewrite("tests.store_contract")

# On a loaded machine an example may take any time. No random seed, so that a failure belongs to the change that made
# it. `--hypothesis-profile=default` looks for new examples.
settings.register_profile(
    "driftline", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("driftline")

_NEED_SERVERS = [Path(__file__).parent / folder for folder in ("integration", "deploy", "faults")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, so that `-m "not integration"` is the quick run that needs neither Java nor Redis."""
    for item in items:
        if any(folder in item.path.parents for folder in _NEED_SERVERS):
            item.add_marker(pytest.mark.integration)
