"""Untrained language models of a few thousand numbers, and a catalogue whose texts say what matters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForTextEncoding, PreTrainedTokenizerFast

from models.data.events import UserSequence
from models.data.splits import Split, leave_one_out
from models.networks.network import TrainingData
from models.spec import ItemMetadata
from models.vocabulary import Vocabulary
from tests.models.networks.circle import ITEMS

HIDDEN, WIDE = 16, 24
TOPICS = ("espresso", "camping", "games", "garden", "music", "pottery")
COLD = tuple(f"{topic}-6" for topic in TOPICS)
_WORDS = (*(f"i{place:02d}" for place in range(ITEMS)), *TOPICS, "nice", "the", *"0123456.,")


def write_language_model(path: Path, kind: str = "bert", words: Sequence[str] = _WORDS) -> str:
    """A folder that `transformers` loads: BERT, RoBERTa or T5 over these words."""
    torch.manual_seed(3)
    vocabulary = {word: place for place, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    wrapper: Any = PreTrainedTokenizerFast
    wrapper(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    config: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": WIDE,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "initializer_range": 0.5,
    }
    if kind == "t5":
        config = {
            "vocab_size": len(vocabulary),
            "d_model": HIDDEN,
            "d_kv": HIDDEN // 2,
            "d_ff": WIDE,
            "num_layers": 1,
            "num_heads": 2,
            "pad_token_id": 0,
        }
    AutoModelForTextEncoding.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(path)
    return str(path)


def topical_log(users_a_topic: int = 12) -> tuple[TrainingData, Split]:
    """Users who keep to one topic of six items; the seventh item of each topic nobody has touched."""
    rng = torch.Generator().manual_seed(11)
    sequences = []
    for topic in TOPICS:
        for user in range(users_a_topic):
            items = tuple(f"{topic}-{place}" for place in torch.randperm(6, generator=rng).tolist())
            sequences.append(UserSequence(f"{topic}/{user}", items, ("click",) * 6, tuple(range(6))))
    split = leave_one_out(sequences)
    ids = [f"{topic}-{place}" for topic in TOPICS for place in range(7)]
    shown = {item_id: ItemMetadata(f"nice {item_id[-1]}", (item_id[:-2],)) for item_id in ids}
    return TrainingData(split.train, Vocabulary(ids), ("click",), shown), split


def rows_of(data: TrainingData, ids: Sequence[str]) -> list[int]:
    """The items' rows."""
    return [data.vocabulary.rows[item_id] for item_id in ids]
