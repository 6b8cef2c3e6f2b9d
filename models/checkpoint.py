"""A trained network on disk: a directory of safetensors and JSON, no pickle.

model.safetensors   the parameters
checkpoint.json     Checkpoint: which network, its shape, what it was trained on and how good it is
vocabulary.json     item ids in row order
metadata.json       item id -> ItemMetadata
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.errors import BundleError, DataError
from models.networks import build_network
from models.networks.network import Network
from models.spec import ItemMetadata, ModelConfig
from models.vocabulary import Vocabulary

FORMAT = 1
_PARAMETERS, _CHECKPOINT, _VOCABULARY, _METADATA = (
    "model.safetensors",
    "checkpoint.json",
    "vocabulary.json",
    "metadata.json",
)


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """checkpoint.json.

    Attributes:
        format: The layout, `FORMAT`.
        network: The network's name, such as "sasrec".
        network_config: Its shape.
        config: What the bundle's config.json will say; its version is empty until the export.
        command: The command that trained it, every option spelled out.
        data_sha256: Of the events that the command read, in their order: whether it would read the same again.
        metrics: Measured on held-out events.
    """

    format: int
    network: str
    network_config: dict[str, object]
    config: ModelConfig
    command: str
    data_sha256: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A checkpoint and everything that belongs to it.

    Attributes:
        checkpoint: What it is.
        network: The network, its parameters loaded.
        vocabulary: Its items.
        metadata: What people see of them.
    """

    checkpoint: Checkpoint
    network: Network
    vocabulary: Vocabulary
    metadata: Mapping[str, ItemMetadata]


def write_checkpoint(path: str | Path, model: TrainedModel) -> None:
    """Write a model into a directory, which is made if need be; a checkpoint already there is replaced.

    Raises:
        BundleError: The directory cannot be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_file(model.network.state_dict(), path / _PARAMETERS)
        (path / _VOCABULARY).write_bytes(model.vocabulary.to_json())
        (path / _METADATA).write_bytes(msgspec.json.encode(dict(model.metadata)))
        content = msgspec.json.format(msgspec.json.encode(model.checkpoint), indent=2)
        (path / _CHECKPOINT).write_bytes(content)
    except OSError as error:
        raise BundleError(f"cannot write the checkpoint {path}: {error}. Check permissions and free space") from error


def read_checkpoint(path: str | Path) -> TrainedModel:
    """Read what `write_checkpoint` wrote; the network comes back ready to evaluate.

    Raises:
        BundleError: No checkpoint there, or a file of it is broken or does not fit the others.
    """
    path = Path(path)
    if not (path / _CHECKPOINT).is_file():
        raise BundleError(
            f"no checkpoint at {path}: {_CHECKPOINT} is missing. Make one with `driftline train --out DIRECTORY`"
        )
    try:
        checkpoint = msgspec.json.decode((path / _CHECKPOINT).read_bytes(), type=Checkpoint)
        vocabulary = Vocabulary.from_json((path / _VOCABULARY).read_bytes())
        metadata = msgspec.json.decode((path / _METADATA).read_bytes(), type=dict[str, ItemMetadata])
        parameters = load_file(path / _PARAMETERS)
    except (OSError, msgspec.DecodeError, DataError, SafetensorError) as error:
        raise BundleError(f"the checkpoint {path} cannot be read: {error}. Train the model again") from error
    if checkpoint.format != FORMAT:
        raise BundleError(
            f"{path / _CHECKPOINT} has format {checkpoint.format}, and this version reads {FORMAT}. "
            "Train the model again with this version"
        )
    network = build_network(checkpoint.network, checkpoint.network_config)
    try:
        network.load_state_dict(parameters)
    except RuntimeError as error:
        raise BundleError(f"{path / _PARAMETERS} does not fit {_CHECKPOINT}: {error}. Train the model again") from error
    if len(network.item_table()) != len(vocabulary) + 1:
        raise BundleError(
            f"{path / _VOCABULARY} has {len(vocabulary):,} items, and the network {len(network.item_table()) - 1:,}. "
            "Train the model again"
        )
    network.eval()
    return TrainedModel(checkpoint, network, vocabulary, metadata)
