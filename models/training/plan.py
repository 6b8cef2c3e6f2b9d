"""How to train, and how it went."""

from typing import Literal

import msgspec

Precision = Literal["fp32", "bf16"]


class TrainingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How to train.

    Attributes:
        seed: Fixes the order of the data and the dropout; the caller seeds the network's initial parameters.
        epochs: Passes over the data at most.
        learning_rate: The peak.
        warmup_steps: Steps in which the rate rises to the peak, at most a twentieth of all, before a cosine takes it down.
        batch_tokens: Events a batch, padding counted.
        weight_decay: Of AdamW, decoupled.
        averaging: Decay of the average of the parameters that is judged and kept; 0 keeps those of the last step.
        patience: Validations without a better NDCG@10 after which training stops.
        validate_every: Epochs between two validations; the last epoch is always validated.
        precision: What matrix products are computed in; "bf16" is autocast.
        diversity: Weight of the diversity regulariser, 0 for none.
        adversarial: Weight of the popularity adversary, 0 for none.
    """

    seed: int
    epochs: int = 30
    learning_rate: float = 4e-3
    warmup_steps: int = 200
    batch_tokens: int = 3_200
    weight_decay: float = 0.0
    averaging: float = 0.999
    patience: int = 5
    validate_every: int = 1
    precision: Precision = "fp32"
    diversity: float = 0.0
    adversarial: float = 0.0


class EpochReport(msgspec.Struct, frozen=True):
    """How an epoch went: a line of history.csv.

    Attributes:
        epoch: Counted from 1.
        seconds: Since the training began, over all its runs.
        tokens_per_second: Events learned from a second, validation not counted.
        learning_rate: At its end.
        loss: Mean training loss, nats.
        training: "loss", "hr@10", "ndcg@10" and more on the last training event of up to 1,000 users, which was learned
            from: how far the model has learned by heart. None where this epoch was not validated.
        validation: The same on the validation events.
        best: Whether no validated epoch before was better.
    """

    epoch: int
    seconds: float
    tokens_per_second: float
    learning_rate: float
    loss: float
    training: dict[str, float] | None
    validation: dict[str, float] | None
    best: bool
