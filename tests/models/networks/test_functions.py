from models.networks import build_network
from models.networks.functions import parameter_count

SHAPE = {"items": 5, "types": 1, "max_length": 4}


def test_numbers_are_counted_whether_they_are_learned_or_computed_at_once() -> None:
    # Six rows of three factors and the three eigenvalues; the weights by recency follow from a setting.
    assert parameter_count(build_network("mf", {**SHAPE, "dim": 3})) == 6 * 3 + 3
    # Six rows of two, four recencies, one scale; what is propagated is computed from these.
    assert parameter_count(build_network("lightgcn", {**SHAPE, "dim": 2})) == 6 * 2 + 4 + 1
