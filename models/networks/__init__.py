"""The networks, one file each, and the one place that knows them by name."""

import msgspec

from models.errors import BundleError
from models.networks.network import Network
from models.networks.sasrec import SasRec, SasRecConfig

NAMES = ("sasrec",)
"""The names that `--model` and a checkpoint may give."""


def build_network(name: str, config: dict[str, object]) -> Network:
    """Make an untrained network from its name and its configuration, as a checkpoint records them.

    Raises:
        BundleError: An unknown name, or a configuration that is not this network's.
    """
    if name != "sasrec":
        raise BundleError(f"there is no network {name!r}; this version knows {', '.join(NAMES)}")
    try:
        return SasRec(msgspec.convert(config, SasRecConfig))
    except msgspec.ValidationError as error:
        raise BundleError(f"not a configuration of {name}: {error}") from error
