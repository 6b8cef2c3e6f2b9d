import pytest

from streams import errors

EXIT_CODES = {
    "DriftlineError": 1,
    "SettingsError": 2,
    "UsageError": 2,
    "BundleError": 4,
    "DataError": 5,
    "MissingExtra": 6,
    "LogError": 10,
    "LogUnavailable": 10,
    "StoreUnavailable": 11,
    "TopicMissing": 12,
    "DeliveryFailed": 13,
    "AuthenticationFailed": 14,
    "PortInUse": 15,
    "StateRefused": 20,
    "StoreLostTail": 21,
    "LogGap": 22,
    "EncoderFailed": 23,
}


def test_every_error_has_the_exit_code_that_operators_rely_on() -> None:
    assert {name: getattr(errors, name).exit_code for name in errors.__all__} == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_every_error_is_a_driftline_error_and_stands_in_the_drawn_tree_with_its_code(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.DriftlineError)
    lines = [line.split() for line in (errors.__doc__ or "").splitlines()]
    drawn = [words for words in lines if name in words and words[-1] != name]
    assert [words[words.index(name) + 1] for words in drawn if words[words.index(name) + 1].isdigit()] == [
        str(EXIT_CODES[name])
    ]


def test_the_three_failures_of_kafka_can_be_caught_together() -> None:
    for error in (errors.LogUnavailable, errors.TopicMissing, errors.DeliveryFailed):
        assert issubclass(error, errors.LogError)
    assert not issubclass(errors.StoreUnavailable, errors.LogError)
