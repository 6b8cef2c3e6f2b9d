"""The networks, one file each, and the one place that knows them by name."""

from importlib import import_module

import msgspec

from models.errors import BundleError
from models.networks.network import Family, Network

_MODULES = {
    "popularity": "popularity",
    "recent-popularity": "popularity",
    "itemknn": "itemknn",
    "mf": "mf",
    "sasrec": "sasrec",
    "bert4rec": "bert4rec",
    "gru": "gru",
    "seq2seq": "seq2seq",
    "vae": "vae",
    "autoencoder": "autoencoder",
    "cnn": "cnn",
    "ncf": "ncf",
    "lightgcn": "graph",
    "ngcf": "graph",
    "text": "text",
    "text+mf": "text_fusion",
    "text+id": "text_fusion",
}
NAMES = tuple(_MODULES)
"""The names that `--model` and a checkpoint may give."""


def find_family(name: str) -> Family:
    """The family of a name. Its module is imported now: some need libraries that others do not.

    Raises:
        BundleError: An unknown name.
    """
    if name not in _MODULES:
        raise BundleError(f"there is no model {name!r}; this version knows {', '.join(NAMES)}")
    families: tuple[Family, ...] = import_module(f"models.networks.{_MODULES[name]}").FAMILIES
    return next(family for family in families if family.name == name)


def build_network(name: str, config: dict[str, object]) -> Network:
    """Make an untrained network from its name and its configuration, as a checkpoint records them.

    Raises:
        BundleError: An unknown name, or a configuration that is not this network's.
    """
    family = find_family(name)
    try:
        return family.network(msgspec.convert(config, family.config))
    except msgspec.ValidationError as error:
        raise BundleError(f"not a configuration of {name}: {error}") from error
