import pytest

from streams.store.memory import MemoryStore
from streams.store.protocol import StateStore
from tests.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> StateStore:
        return MemoryStore()
