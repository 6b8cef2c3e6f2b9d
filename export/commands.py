"""`driftline export`. Importable without torch: the command line lists it where only serving is installed."""

import shlex
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer

from models.bundle import Provenance, check_place, write_bundle
from models.commands.results import Output, print_result
from models.errors import MissingExtra


def export(
    checkpoint: Annotated[Path, typer.Argument(help="The directory that `driftline train` wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the bundle.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is already there.")] = False,
    output: Annotated[Output, typer.Option(help="How to print the result.")] = Output.table,
) -> None:
    """Export a checkpoint as a verified bundle: ONNX encoder, vocabulary, item vectors, metadata, hashes.

    Before anything is written ONNX Runtime's vectors are compared with PyTorch's on windows of every length.
    """
    try:
        import onnx  # noqa: F401  imported here only to name the missing extra
        import torch

        from export.golden import golden_sample
        from export.onnx_graph import (
            OPSET,
            check_deviation_parity,
            check_parity,
            check_scorer_parity,
            export_encoder,
            export_scorer,
        )
        from models.checkpoint import read_checkpoint
        from models.evaluation.onnx_runtime import onnx_deviation, onnx_encoder, onnx_scorer
        from models.networks.functions import deviation_of, encoder_of, item_vectors_of, score_of
        from models.networks.network import ScoringNetwork, VariationalNetwork
    except ModuleNotFoundError as error:
        raise MissingExtra("train", error.name or "torch") from error

    check_place(out, overwrite)
    torch.set_num_threads(1)
    model = read_checkpoint(checkpoint)
    network, config = model.network, model.checkpoint.config
    types, longest = len(config.types), config.window.max
    item_vectors = item_vectors_of(network)

    encoder = export_encoder(network, longest)
    encode = onnx_encoder(encoder)
    parity = check_parity(encoder_of(network), encode, item_vectors, types, longest)
    deviate = score = scorer = None
    if isinstance(network, VariationalNetwork):
        deviate = onnx_deviation(encoder)
        check_deviation_parity(deviation_of(network), deviate, len(model.vocabulary), types, longest)
    if isinstance(network, ScoringNetwork):
        scorer = export_scorer(network)
        score = onnx_scorer(scorer)
        check_scorer_parity(score_of(network), score, encode, len(model.vocabulary), types, longest)
        config = msgspec.structs.replace(config, candidates=network.candidates)
    command = shlex.join(["driftline", "export", str(checkpoint), "--out", str(out)])
    bundle = write_bundle(
        out,
        config=config,
        encoder=encoder,
        vocabulary=model.vocabulary,
        item_vectors=item_vectors,
        metadata=model.metadata,
        golden=golden_sample(
            encode, item_vectors, types, longest, np.random.default_rng(0), deviate=deviate, score=score
        ),
        scorer=scorer,
        provenance=Provenance(
            command=f"{model.checkpoint.command}\n{command}",
            opset=OPSET,
            metrics=model.checkpoint.metrics,
            parity=parity,
        ),
        overwrite=overwrite,
    )
    result: dict[str, str | int | float] = {
        "bundle": str(out),
        "name": bundle.config.name,
        "version": bundle.config.version,
        "bytes": sum(record.bytes for record in bundle.manifest.files.values()),
        "windows_compared": parity.windows,
        "max_abs_difference": f"{parity.max_abs_difference:.2g}",
        **{name: value for name, value in bundle.manifest.metrics.items() if name in ("hr@10", "ndcg@10")},
    }
    print_result(result, output)
