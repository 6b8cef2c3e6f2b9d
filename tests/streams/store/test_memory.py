from collections.abc import Sequence

import pytest

from streams.store.memory import MemoryErasures, MemoryStore
from streams.store.protocol import StateStore
from tests.store_contract import ErasureContract, StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> StateStore:
        return MemoryStore()


class TestMemoryErasures(ErasureContract):
    @pytest.fixture
    def generations(self) -> Sequence[MemoryStore]:
        return [MemoryStore(), MemoryStore()]

    @pytest.fixture
    def erasures(self, generations: Sequence[MemoryStore]) -> MemoryErasures:
        return MemoryErasures(generations)
