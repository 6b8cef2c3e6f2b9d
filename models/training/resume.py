"""An unfinished training on disk: one safetensors file, replaced whole after each validated epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.errors import DataError
from models.training.plan import EpochReport, TrainingPlan

_RECORD = "progress"


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """Everything that a training needs to go on as if it had never stopped.

    Attributes:
        plan: How it is trained.
        taken: Steps taken.
        history: Epochs so far; the last one was validated.
        parameters: The network's.
        averages: The averages of those that are trained, in the network's order.
        best_parameters: The network's after its best epoch.
        regulariser: The regulariser's parameters.
        optimizer: The optimizer's state: parameter index to its moments by name.
    """

    plan: TrainingPlan
    taken: int
    history: Sequence[EpochReport]
    parameters: dict[str, Tensor]
    averages: Sequence[Tensor]
    best_parameters: dict[str, Tensor]
    regulariser: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]


class _Record(msgspec.Struct, frozen=True):
    plan: TrainingPlan
    taken: int
    history: tuple[EpochReport, ...]


def write_progress(path: Path, progress: Progress) -> None:
    """Replace the file; a kill at any moment leaves the old one or the new one.

    Raises:
        DataError: It cannot be written.
    """
    tensors = {
        **{f"parameters/{name}": tensor for name, tensor in progress.parameters.items()},
        **{f"average/{index}": tensor for index, tensor in enumerate(progress.averages)},
        **{f"best/{name}": tensor for name, tensor in progress.best_parameters.items()},
        **{f"regulariser/{name}": tensor for name, tensor in progress.regulariser.items()},
        **{
            f"optimizer/{index}/{name}": tensor
            for index, moments in progress.optimizer.items()
            for name, tensor in moments.items()
        },
    }
    record = msgspec.json.encode(_Record(progress.plan, progress.taken, tuple(progress.history))).decode()
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies: safetensors refuses tensors that share memory, such as tied embeddings.
        save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, beside, {_RECORD: record})
        beside.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}. Check permissions and free space") from error


def read_progress(path: Path) -> Progress:
    """Read what `write_progress` wrote.

    Raises:
        DataError: The file is broken.
    """
    parts: dict[str, dict[str, Tensor]] = {"parameters": {}, "average": {}, "best": {}, "regulariser": {}}
    optimizer: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            record = msgspec.json.decode(file.metadata()[_RECORD], type=_Record)
            for key in file.keys():  # noqa: SIM118  not a dict: it has no iterator (safetensors 0.6)
                part, _, name = key.partition("/")
                if part == "optimizer":
                    index, _, moment = name.partition("/")
                    optimizer.setdefault(int(index), {})[moment] = file.get_tensor(key)
                else:
                    parts[part][name] = file.get_tensor(key)
    except (OSError, SafetensorError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Leave out --resume to start anew") from error
    averages = parts["average"]
    return Progress(
        plan=record.plan,
        taken=record.taken,
        history=record.history,
        parameters=parts["parameters"],
        averages=[averages[str(index)] for index in range(len(averages))],
        best_parameters=parts["best"],
        regulariser=parts["regulariser"],
        optimizer=optimizer,
    )
