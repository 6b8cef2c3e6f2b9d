"""What every test shares: which tests count as integration tests, and that no property depends on time."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, and how long it takes to make one, says how busy the machine is.
settings.register_profile("driftline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("driftline")

# Its asserts are rewritten to say their values although its name is not that of a test file.
pytest.register_assert_rewrite("tests.store_contract")

_NEED_SERVERS = [Path(__file__).parent / "integration", Path(__file__).parent / "deploy"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, so that `-m "not integration"` is the quick run that needs neither Java nor Redis."""
    for item in items:
        if any(folder in item.path.parents for folder in _NEED_SERVERS):
            item.add_marker(pytest.mark.integration)
