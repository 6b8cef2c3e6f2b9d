"""The model bundle: a directory that holds everything that serving needs of a model, and proves that it is whole.

    encoder.onnx      items, types, ages, lengths -> vector, and deviation if the model is variational
    scorer.onnx       vector, candidates -> scores; only where a score is no dot product
    config.json       ModelConfig
    vocabulary.json   item ids in row order
    items.npy         item vectors, (items + 1, dim) float32, row 0 all zeros
    metadata.json     item id -> ItemMetadata
    golden.npz        inputs, and what encoder and scorer must give for them
    manifest.json     Manifest: where the model came from, and size and SHA-256 of every other file

The shapes of the two graphs; batch, length and n are dynamic:

    encoder   items [batch, length] int64, types [batch, length] int64, ages [batch, length] float32, lengths [batch]
              int64 (`models.windows.WindowInputs`) -> vector [batch, dim] float32. A variational model (Kingma and
              Welling, 2014) has a second output, deviation [batch, dim] float32, at least 0: vector is the mean of the
              posterior, deviation its standard deviation. Serving may then sample (recommendations.exploration).
    scorer    vector [batch, dim] float32, candidates [batch, n] int64 (item rows) -> scores [batch, n] float32, higher
              is better. Row 0 is padding: whatever finite score it gets, it is never recommended. config.json says how
              many items are retrieved by dot product to be scored (`ModelConfig.candidates`).

What a bundle holds, its golden sample covers: deviations and scores are in golden.npz where, and only where, the model
has them.

The hashes find damage and mix-ups. They are no signature: whoever can write the directory can write the manifest.
"""

import hashlib
import os
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import BundleError, DataError
from models.spec import CONFIG_FORMAT, IntArray, ItemMetadata, ModelConfig, Vectors
from models.vocabulary import Vocabulary
from models.windows import WindowInputs

MANIFEST_FORMAT = 1
"""The layout of a bundle that this code writes, and the only one that it reads."""

TOP = 10
"""How many best items the golden sample names for each window."""

ENCODER, SCORER, CONFIG, VOCABULARY, ITEMS, METADATA, GOLDEN, MANIFEST = (
    "encoder.onnx",
    "scorer.onnx",
    "config.json",
    "vocabulary.json",
    "items.npy",
    "metadata.json",
    "golden.npz",
    "manifest.json",
)
HASHED = (ENCODER, CONFIG, VOCABULARY, ITEMS, METADATA, GOLDEN)
"""The files that every manifest must list. One may list more, the scorer among them; all are checked."""


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of one file."""

    sha256: str
    bytes: int


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How closely ONNX Runtime followed the network that was trained, over windows of every length.

    Attributes:
        windows: Windows compared.
        max_abs_difference: Largest difference of any number in any vector.
        swapped_ties: Places in the top lists that differ, all of them between items that score the same to within
            what that difference explains.
    """

    windows: int
    max_abs_difference: float
    swapped_ties: int = 0


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a model came from and how good it is.

    Attributes:
        command: The commands that make it again, one a line.
        opset: The ONNX operator set of the encoder.
        metrics: Measured figures by name, such as "ndcg@10".
        parity: How closely the encoder follows the trained network.
    """

    command: str
    opset: int
    metrics: dict[str, float]
    parity: Parity


class Manifest(Provenance, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """manifest.json: provenance, and the record of every other file of the bundle.

    Attributes:
        format: The layout of the bundle, `MANIFEST_FORMAT`.
        created_at: ISO 8601, UTC.
        files: File name to its record.
    """

    format: int
    created_at: str
    files: dict[str, FileRecord]


@dataclass(frozen=True, slots=True, eq=False)
class GoldenScores:
    """What a scorer must give for the vectors of the golden sample.

    Attributes:
        candidates: Item rows, shape (batch, n), int64; 0 is padding.
        scores: The scores expected, shape (batch, n), float32.
    """

    candidates: IntArray
    scores: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """A sample that shows whether encoder and scorer compute what they should on this machine.

    Attributes:
        inputs: Encoder inputs of a few windows.
        vectors: The vectors expected, shape (batch, dim), float32.
        top: The rows of the `TOP` best items by dot product, best first, equal scores by row, nothing filtered out;
            shape (batch, TOP), int64; -1 where there are fewer items.
        deviations: The deviations expected of a variational model, shape (batch, dim), float32, at least 0.
        scores: What the scorer must give for `vectors`, in a bundle that has one.
    """

    inputs: WindowInputs
    vectors: Vectors
    top: IntArray
    deviations: Vectors | None = None
    scores: GoldenScores | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A bundle that was read and found whole.

    Attributes:
        path: Its directory.
        config: What the model is.
        vocabulary: Its items.
        item_vectors: Shape (items + 1, dim), float32, C-contiguous, read-only; row 0 (padding) is all zeros.
        metadata: Item id to what people see of it. Not every item needs an entry.
        golden: The golden sample.
        manifest: Where it came from.
    """

    path: Path
    config: ModelConfig
    vocabulary: Vocabulary
    item_vectors: Vectors
    metadata: dict[str, ItemMetadata]
    golden: Golden
    manifest: Manifest

    @property
    def space(self) -> str:
        """12 hex digits of what vectors and windows depend on beside the encoder: the item table and the window rule.

        Where two models have the same, one may follow the other in place: their vectors are scored by the same items, and a
        window that one has advanced is what the other would have made of it.
        """
        files, rule = self.manifest.files, self.config.window
        parts = (files[VOCABULARY].sha256, files[ITEMS].sha256, rule.max, rule.keep)
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]

    @property
    def encoder_path(self) -> Path:
        """The ONNX file of the encoder."""
        return self.path / ENCODER

    @property
    def scorer_path(self) -> Path | None:
        """The ONNX file of the scorer; None where items are scored by dot product."""
        return None if self.config.candidates is None else self.path / SCORER


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle and check that it is whole: format, hashes, shapes, numbers.

    The bytes of encoder and scorer are checked but not run; replaying the golden sample is up to whoever runs them.

    Raises:
        BundleError: No bundle there, or anything about it is wrong. The message names the file and the remedy.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(
            f"no model bundle at {path}: there is no such directory. "
            "Make one with `driftline export CHECKPOINT --out DIRECTORY`, or correct the path"
        )
    if not (path / MANIFEST).is_file():
        raise BundleError(
            f"{path} is no model bundle: it has no {MANIFEST}. Export the model again, or correct the path"
        )
    manifest = _read_manifest(path)
    _check_files(path, manifest)

    config = _read_config(path, manifest)
    _check_scorer(path, config, manifest)
    vocabulary = _read_vocabulary(path)
    item_vectors = _read_item_vectors(path, config, vocabulary)
    metadata = _decode(path / METADATA, dict[str, ItemMetadata])
    unknown = next((item_id for item_id in config.popular if item_id not in vocabulary.rows), None)
    if unknown is not None:
        raise BundleError(f"{path / CONFIG} names the popular item {unknown!r}, which {VOCABULARY} lacks. {_AGAIN}")
    return Bundle(
        path=path,
        config=config,
        vocabulary=vocabulary,
        item_vectors=item_vectors,
        metadata=metadata,
        golden=_read_golden(path, config, vocabulary),
        manifest=manifest,
    )


def write_bundle(
    path: str | Path,
    *,
    config: ModelConfig,
    encoder: bytes,
    vocabulary: Vocabulary,
    item_vectors: Vectors,
    metadata: Mapping[str, ItemMetadata],
    golden: Golden,
    provenance: Provenance,
    scorer: bytes | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle and read it back.

    It is written beside its place and renamed there when it is whole, so no reader ever meets half a bundle.

    Args:
        path: The directory to make.
        config: Its `version` is not used: the content hash takes its place.
        encoder: The ONNX file; the module's docstring has its shapes.
        vocabulary: The items in row order.
        item_vectors: Shape (items + 1, dim), float32, row 0 all zeros.
        metadata: Item id to what people see of it.
        golden: A sample of inputs and what must come out.
        provenance: Where the model came from.
        scorer: The ONNX file of the scorer; with it belong `ModelConfig.candidates` and `Golden.scores`.
        overwrite: Replace a bundle that is already there. Nothing but a bundle or an empty directory is ever replaced.

    Returns:
        The bundle, read back and verified.

    Raises:
        BundleError: Something else is in the way, the directory cannot be written, or the content is inconsistent.
    """
    path = Path(path)
    check_place(path, overwrite)
    unversioned = msgspec.structs.replace(config, version="")
    contents = {
        ENCODER: encoder,
        VOCABULARY: vocabulary.to_json(),
        ITEMS: _npy(item_vectors),
        METADATA: msgspec.json.encode(dict(metadata)),
        GOLDEN: _npz(golden),
    }
    if scorer is not None:
        contents[SCORER] = scorer
    records = {name: _record(content) for name, content in contents.items()}
    versioned = msgspec.structs.replace(config, version=_content_version(unversioned, records))
    contents[CONFIG] = msgspec.json.format(msgspec.json.encode(versioned), indent=2)
    records[CONFIG] = _record(contents[CONFIG])
    manifest = Manifest(
        format=MANIFEST_FORMAT,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files={name: records[name] for name in (*HASHED, SCORER) if name in records},
        command=provenance.command,
        opset=provenance.opset,
        metrics=provenance.metrics,
        parity=provenance.parity,
    )
    contents[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest), indent=2)

    # Not tempfile.mkdtemp: its directories are closed to everyone else, and the rename would keep that.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir(parents=True)
        for name, content in contents.items():
            (beside / name).write_bytes(content)
        read_bundle(beside)
        _move_into_place(beside, path)
    except OSError as error:
        raise BundleError(
            f"cannot write the bundle {path}: {error}. Check the permissions and the free space"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return read_bundle(path)


def check_place(path: str | Path, overwrite: bool) -> None:
    """Check that a bundle may be written to a place, for those who want to know before they work for minutes.

    Raises:
        BundleError: Something else than a bundle is there, or a bundle that is not to be replaced.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is no model bundle, so it is not replaced. Choose another directory")
    if not overwrite:
        raise BundleError(f"{path} already holds a model bundle. Add --overwrite to replace it, or choose another")


# What NumPy, zipfile and zlib raise at bytes that are no archive, or no array, of theirs.
_NUMPY_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_AGAIN = "Export the model again, or copy the bundle again from where it is whole"


def _read_manifest(path: Path) -> Manifest:
    manifest = path / MANIFEST
    # The format first and alone: a later layout may have any other fields.
    found = _decode(manifest, _FormatOnly).format
    if found != MANIFEST_FORMAT:
        raise BundleError(
            f"{manifest} has format {found}, and this version of Driftline reads format {MANIFEST_FORMAT}. "
            "Export the model again with this version, or run the version that made it"
        )
    return _decode(manifest, Manifest)


def _check_files(path: Path, manifest: Manifest) -> None:
    for name in HASHED:
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} does not list {name}, which every bundle needs. {_AGAIN}")
    for name, record in manifest.files.items():
        file = path / name
        if Path(name).name != name:
            raise BundleError(f"{path / MANIFEST} lists {name!r}, which is not a plain file name. {_AGAIN}")
        if not file.is_file():
            raise BundleError(f"{file} is missing, and {MANIFEST} lists it. {_AGAIN}")
        try:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            size = file.stat().st_size
        except OSError as error:
            raise BundleError(f"cannot read {file}: {error}. Check its permissions") from error
        if size != record.bytes:
            raise BundleError(f"{file} has {size:,} bytes, and {MANIFEST} says {record.bytes:,}: damaged. {_AGAIN}")
        if digest != record.sha256:
            raise BundleError(
                f"{file} was changed after the export: its SHA-256 is {digest[:12]}…, "
                f"and {MANIFEST} says {record.sha256[:12]}…. {_AGAIN}"
            )


def _read_config(path: Path, manifest: Manifest) -> ModelConfig:
    file = path / CONFIG
    found = _decode(file, _FormatOnly).format
    if found != CONFIG_FORMAT:
        raise BundleError(
            f"{file} has format {found}, and this version of Driftline reads format {CONFIG_FORMAT}. "
            "Export the model again with this version, or run the version that made it"
        )
    config = _decode(file, ModelConfig)
    expected = _content_version(msgspec.structs.replace(config, version=""), manifest.files)
    if config.version != expected:
        raise BundleError(
            f"{file} says version {config.version!r}, but the content's is {expected!r}: files of two models. {_AGAIN}"
        )
    return config


def _check_scorer(path: Path, config: ModelConfig, manifest: Manifest) -> None:
    if config.candidates is not None and SCORER not in manifest.files:
        raise BundleError(
            f"{path / CONFIG} asks for {config.candidates:,} candidates to be scored, but {MANIFEST} lists no "
            f"{SCORER}. {_AGAIN}"
        )
    if config.candidates is None and (SCORER in manifest.files or (path / SCORER).exists()):
        raise BundleError(
            f"{path / SCORER} is there, but {CONFIG} does not say how many candidates it scores. {_AGAIN}"
        )


def _read_vocabulary(path: Path) -> Vocabulary:
    try:
        return Vocabulary.from_json((path / VOCABULARY).read_bytes())
    except (OSError, DataError) as error:
        raise BundleError(f"{path / VOCABULARY} cannot be read: {error}. {_AGAIN}") from error


def _read_item_vectors(path: Path, config: ModelConfig, vocabulary: Vocabulary) -> Vectors:
    file = path / ITEMS
    try:
        # Opened here: NumPy leaves a file open that turns out to be a damaged archive.
        with file.open("rb") as content:
            vectors = np.load(content, allow_pickle=False)
    except _NUMPY_ERRORS as error:
        raise BundleError(f"{file} is no NumPy array: {error}. {_AGAIN}") from error
    if not isinstance(vectors, np.ndarray):
        raise BundleError(f"{file} holds several arrays, not one. {_AGAIN}")
    shape = (len(vocabulary) + 1, config.dim)
    _check_array(file, "the item vectors", vectors, shape, "float32")
    if vectors[0].any():
        raise BundleError(f"{file}: row 0 is padding and must be all zeros. {_AGAIN}")
    contiguous: Vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    contiguous.flags.writeable = False
    return contiguous


def _read_golden(path: Path, config: ModelConfig, vocabulary: Vocabulary) -> Golden:
    file = path / GOLDEN
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    try:
        with file.open("rb") as content:
            archive = np.load(content, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise BundleError(f"{file} holds one array, not an archive of several. {_AGAIN}")
            arrays = {name: archive[name] for name in archive.files}
    except _NUMPY_ERRORS as error:
        raise BundleError(f"{file} is no archive of NumPy arrays: {error}. {_AGAIN}") from error
    missing = {"items", "types", "ages", "lengths", "vectors", "top"} - arrays.keys()
    if missing:
        raise BundleError(f"{file} lacks {', '.join(sorted(missing))}. {_AGAIN}")
    items = arrays["items"]
    if items.ndim != 2 or not items.size:
        raise BundleError(f"{file}: items has shape {items.shape}, not (batch, length). {_AGAIN}")
    batch, length = items.shape
    for name, shape, dtype in (
        ("items", (batch, length), "int64"),
        ("types", (batch, length), "int64"),
        ("ages", (batch, length), "float32"),
        ("lengths", (batch,), "int64"),
        ("vectors", (batch, config.dim), "float32"),
        ("top", (batch, TOP), "int64"),
    ):
        _check_array(file, name, arrays[name], shape, dtype)
    scores = _read_golden_scores(file, arrays, batch, config, vocabulary)
    deviations: Vectors | None = None
    if "deviations" in arrays:
        _check_array(file, "deviations", arrays["deviations"], (batch, config.dim), "float32")
        deviations = arrays["deviations"].astype(np.float32, copy=False)
        if deviations.min() < 0:
            raise BundleError(f"{file}: a deviation is negative. {_AGAIN}")
    inputs = WindowInputs(
        arrays["items"].astype(np.int64, copy=False),
        arrays["types"].astype(np.int64, copy=False),
        arrays["ages"].astype(np.float32, copy=False),
        arrays["lengths"].astype(np.int64, copy=False),
    )
    golden = Golden(
        inputs,
        arrays["vectors"].astype(np.float32, copy=False),
        arrays["top"].astype(np.int64, copy=False),
        deviations,
        scores,
    )
    for name, low, high, values in (
        ("items", 0, len(vocabulary), inputs.items),
        ("types", 0, len(config.types) + 1, inputs.types),
        ("lengths", 0, length, inputs.lengths),
        ("top", -1, len(vocabulary), golden.top),
    ):
        _check_range(file, name, values, low, high)
    return golden


def _read_golden_scores(
    file: Path,
    arrays: Mapping[str, npt.NDArray[np.generic]],
    batch: int,
    config: ModelConfig,
    vocabulary: Vocabulary,
) -> GoldenScores | None:
    found = {"candidates", "scores"} & arrays.keys()
    if config.candidates is None and not found:
        return None
    if config.candidates is None or len(found) < 2:
        raise BundleError(
            f"{file} needs candidates and scores where there is a {SCORER}, and only there; it has "
            f"{' and '.join(sorted(found)) or 'neither'}. {_AGAIN}"
        )
    candidates = arrays["candidates"]
    if candidates.ndim != 2 or not candidates.size:
        raise BundleError(f"{file}: candidates has shape {candidates.shape}, not (batch, n). {_AGAIN}")
    for name, dtype in (("candidates", "int64"), ("scores", "float32")):
        _check_array(file, name, arrays[name], (batch, candidates.shape[1]), dtype)
    golden = GoldenScores(candidates.astype(np.int64, copy=False), arrays["scores"].astype(np.float32, copy=False))
    _check_range(file, "candidates", golden.candidates, 0, len(vocabulary))
    return golden


def _check_range(file: Path, name: str, values: IntArray, low: int, high: int) -> None:
    if values.min() < low or values.max() > high:
        raise BundleError(f"{file}: {name} goes outside {low} to {high}. {_AGAIN}")


def _check_array(file: Path, name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...], dtype: str) -> None:
    if array.dtype != np.dtype(dtype):
        raise BundleError(f"{file}: {name} is {array.dtype}, not {dtype}. {_AGAIN}")
    if array.shape != shape:
        raise BundleError(
            f"{file}: {name} has shape {array.shape}, but {CONFIG} and {VOCABULARY} ask for {shape}. {_AGAIN}"
        )
    if dtype == "float32" and not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise BundleError(
            f"{file}: {name} holds NaN or infinity; the training diverged. Train again with a lower learning rate"
        )


_T = TypeVar("_T")


class _FormatOnly(msgspec.Struct):
    format: int


def _decode(file: Path, type_: type[_T]) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=type_)
    # msgspec passes on what it meets in bad UTF-8 and in deep nesting.
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read: {error}. {_AGAIN}") from error


def _content_version(unversioned: ModelConfig, records: Mapping[str, FileRecord]) -> str:
    """12 hex digits of the SHA-256 over the configuration and the hashes of encoder, items, vocabulary and scorer."""
    content = hashlib.sha256(msgspec.json.encode(unversioned))
    for name in (ENCODER, ITEMS, VOCABULARY, SCORER):
        if name in records:
            content.update(records[name].sha256.encode())
    return content.hexdigest()[:12]


def _record(content: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _npy(array: Vectors) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npz(golden: Golden) -> bytes:
    arrays: dict[str, IntArray | Vectors] = {**golden.inputs.as_feed(), "vectors": golden.vectors, "top": golden.top}
    if golden.deviations is not None:
        arrays["deviations"] = golden.deviations
    if golden.scores is not None:
        arrays |= {"candidates": golden.scores.candidates, "scores": golden.scores.scores}
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _move_into_place(beside: Path, path: Path) -> None:
    if not path.exists():
        beside.rename(path)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(aside)
    beside.rename(path)
    shutil.rmtree(aside)
