import pytest
import torch
from torch import nn

from models.training.averaging import ParameterAverage


def stepped(average: ParameterAverage, parameter: nn.Parameter, *values: float) -> None:
    for steps, value in enumerate(values, start=1):
        with torch.no_grad():
            parameter.fill_(value)
        average.update(steps)


def test_the_average_forgets_fast_at_first_and_then_by_its_decay() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    average = ParameterAverage([parameter], decay=0.2)
    stepped(average, parameter, 11.0, 24.0)
    # The first decay is 2 / 11: 9 / 11 of 11 is 9. The second would be 3 / 12, and 0.2 is less: 0.2 * 9 + 0.8 * 24.
    assert average.averages[0].item() == pytest.approx(21.0, rel=1e-6)


def test_a_decay_of_nought_is_the_last_step() -> None:
    parameter = nn.Parameter(torch.ones(2))
    average = ParameterAverage([parameter], decay=0.0)
    stepped(average, parameter, 5.0, 7.0)
    assert average.averages[0].tolist() == [7.0, 7.0]


def test_parameters_are_their_averages_for_a_while_and_then_themselves_again() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    average = ParameterAverage([parameter], decay=0.9)
    stepped(average, parameter, 11.0)
    with average.in_place():
        assert parameter.item() == pytest.approx(9.0)
    assert parameter.item() == 11.0
    assert average.averages[0].item() == pytest.approx(9.0)


def test_it_goes_on_from_averages_of_before() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    whole, resumed = ParameterAverage([first], decay=0.5), ParameterAverage([second], decay=0.5)
    stepped(whole, first, 4.0, 8.0)
    resumed.restore([average.clone() for average in whole.averages])
    for average, parameter in ((whole, first), (resumed, second)):
        with torch.no_grad():
            parameter.fill_(1.0)
        average.update(100)
    assert resumed.averages[0].item() == whole.averages[0].item()
