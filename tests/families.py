"""Every family trained for a moment by the commands that people use, on one small log."""

from pathlib import Path

import numpy as np
import onnxruntime

from export.commands import export
from models.bundle import Bundle, read_bundle
from models.commands.train import train
from models.data.events import UserSequence
from models.networks import NAMES
from models.synthetic import CATALOGUE
from models.windows import window_inputs
from tests.models.networks.language_models import write_language_model

USERS, EVENTS, SEED = 60, 14, 5
LONGEST = 12
WORDS = tuple(sorted({word for item in CATALOGUE.values() for word in " ".join((item.title, *item.topics)).split()}))
TEXT_FAMILIES = ("text", "text+mf", "text+id")
_SMALL = ("dim=8", "blocks=1", "heads=2")
_SETTINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(NAMES, ("dim=8",)),
    **dict.fromkeys(("popularity", "recent-popularity", "itemknn"), ()),
    **dict.fromkeys(("sasrec", "bert4rec", "seq2seq", "vae", "text", "text+id"), _SMALL),
}


def bundle_of(family: str, directory: Path) -> Bundle:
    """Train and export a family; the bundle lies in `directory / "bundle"`."""
    settings = list(_SETTINGS[family])
    if family in TEXT_FAMILIES:
        settings.append(f"text_model={write_language_model(directory / 'language-model', words=WORDS)}")
    train(
        out=directory / "checkpoint",
        model=family,
        users=USERS,
        events=EVENTS,
        seed=SEED,
        settings=settings,
        window_max=LONGEST,
        epochs=2,
    )
    export(directory / "checkpoint", out=directory / "bundle")
    return read_bundle(directory / "bundle")


def offline_scores(bundle: Bundle, sequence: UserSequence) -> dict[str, float]:
    """Each unseen item's score, one user at a time, straight from the bundle's files."""
    window = sequence.part(max(0, len(sequence) - LONGEST), len(sequence))
    inputs = window_inputs([window], bundle.vocabulary, bundle.config.types, LONGEST)
    session = onnxruntime.InferenceSession(bundle.encoder_path, providers=["CPUExecutionProvider"])
    vector = session.run(["vector"], inputs.as_feed())[0]
    rows = [row for row in range(1, len(bundle.vocabulary) + 1) if bundle.vocabulary.ids[row] not in window.items]
    scores = bundle.item_vectors[rows].astype(np.float64) @ vector[0].astype(np.float64)
    if bundle.scorer_path is not None:
        assert bundle.config.candidates is not None
        best = np.argsort(-scores, kind="stable")[: bundle.config.candidates]
        rows = [rows[place] for place in best]
        scorer = onnxruntime.InferenceSession(bundle.scorer_path, providers=["CPUExecutionProvider"])
        scores = scorer.run(["scores"], {"vector": vector, "candidates": np.array([rows])})[0][0]
    return {bundle.vocabulary.ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}
