import numpy as np
import pytest
import torch

from models.errors import BundleError
from models.networks import build_network
from models.networks.text import TextNetwork
from models.networks.text_fusion import ItemIds, TextId, TextMf
from tests.models.networks.language_models import COLD, TOPICS, rows_of, topical_log, write_language_model

FAMILIES = ("text+mf", "text+id")
MAX_LENGTH = 4


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_language_model(tmp_path_factory.mktemp("bert"))


def build(language_model: str, family: str, **settings: object) -> TextNetwork:
    torch.manual_seed(4)
    shape = {"items": 7 * len(TOPICS), "types": 1, "max_length": MAX_LENGTH, "dim": 8, "text_model": language_model}
    network = build_network(family, {**shape, **settings})
    assert isinstance(network, TextNetwork)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_an_item_is_its_text_and_itself_but_without_training_events_its_text_alone(
    language_model: str, family: str
) -> None:
    data, _ = topical_log()
    network = build(language_model, family)
    assert isinstance(network, TextId | TextMf)
    network.prepare(data)
    network.eval().refresh()
    cold, warm = rows_of(data, COLD), rows_of(data, ["espresso-0", "pottery-5"])
    with torch.no_grad():
        # The vectors that items are scored by are the last eight numbers in either network.
        text = (network.texts.kept @ network.project.weight.T)[:, -8:]
        own = network.ids.vectors.weight[:, -8:]
        table = network.item_table()
    torch.testing.assert_close(table[cold], text[cold])
    torch.testing.assert_close(table[warm], text[warm] + own[warm])
    assert own[cold].abs().max() > 0.01


def test_as_many_items_as_asked_are_their_text_alone_in_a_step_and_none_when_serving() -> None:
    ids = ItemIds(items=4_000, width=3, dropout=0.25)
    ids.prepare(torch.arange(1, 3_001))
    torch.manual_seed(0)
    vectors = ids()
    dropped = (vectors[1:3_001] == 0).all(dim=1)
    # 3,000 draws: 0.03 is four standard deviations.
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(vectors[1:3_001][~dropped], ids.vectors.weight[1:3_001][~dropped])
    assert not vectors[3_001:].any()
    assert not torch.equal(ids(), vectors)
    ids.eval()
    torch.testing.assert_close(ids()[1:3_001], ids.vectors.weight[1:3_001])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_and_id_both_learn_from_a_step(language_model: str, family: str) -> None:
    data, _ = topical_log()
    network = build(language_model, family, id_dropout=0.0)
    assert isinstance(network, TextId | TextMf)
    network.prepare(data)
    network.train()
    torch.autograd.backward(network.item_table()[rows_of(data, ["espresso-0"])].sum())
    assert network.project.weight.grad is not None
    assert network.project.weight.grad.abs().max() > 0
    gradient = network.ids.vectors.weight.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == rows_of(data, ["espresso-0"])


def factorization(language_model: str) -> TextMf:
    """Item 1 is (1, 0) in a window, item 2 (0, 1), item 3 (2, 2); the weights are 1, 1/2, 1/4, 1/8; everyone (0, 10)."""
    network = build(language_model, "text+mf", dim=2, normalisation=0.5).eval()
    assert isinstance(network, TextMf)
    network.inputs[1:4] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    with torch.no_grad():
        network.log_weights.copy_(torch.tensor([1.0, 0.5, 0.25, 0.125]).log())
        network.everyone.copy_(torch.tensor([0.0, 10.0]))
    return network


def test_a_user_is_the_weighted_sum_of_the_window_over_the_root_of_its_length(language_model: str) -> None:
    network = factorization(language_model)
    items = torch.tensor([[1, 2, 3, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    with torch.no_grad():
        vectors = network(items, torch.ones_like(items), torch.zeros(3, 4), torch.tensor([3, 1, 0]))
    # Three events: item 3 counts 1, item 2 a half, item 1 a quarter.
    expected = [[(2 + 0.25) / 3**0.5, (2 + 0.5) / 3**0.5 + 10], [2.0, 12.0], [0.0, 0.0]]
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=1e-6)


def test_a_user_at_every_event_is_the_user_served_then(language_model: str) -> None:
    network = factorization(language_model)
    items = torch.tensor([[1, 2, 3, 1]])
    types, ages = torch.ones_like(items), torch.zeros(1, 4)
    with torch.no_grad():
        every = network.at_every_event(items, types, ages)[0]
        for length in range(1, 5):
            served = network(items[:, :length], types[:, :length], ages[:, :length], torch.tensor([length]))
            torch.testing.assert_close(every[length - 1], served[0])


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("text+mf", {"id_dropout": 1.0}, "id_dropout must be at least 0 and below 1, not 1.0"),
        ("text+mf", {"normalisation": 1.5}, "normalisation must be at least 0 and at most 1, not 1.5"),
        ("text+mf", {"blocks": 2}, "unknown field `blocks`"),
        ("text+id", {"dim": 5}, "dim must be a multiple of heads, not 5 of 4"),
        ("text+id", {"heads": 0}, "blocks and heads must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    language_model: str, family: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        build(language_model, family, **settings)
