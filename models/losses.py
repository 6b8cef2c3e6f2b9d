"""Training losses."""

import torch
from torch import Tensor
from torch.nn import functional


def seen_items(items: Tensor, table_rows: int) -> Tensor:
    """Which items each event's window had already held, itself included.

    Args:
        items: Item rows, shape (batch, length), int64; 0 is padding.
        table_rows: Rows of the item table, items + 1.

    Returns:
        Shape (batch, length, table_rows), bool. Row 0 (padding) is always True: it is never a candidate.
    """
    marks = torch.zeros(*items.shape, table_rows, dtype=torch.int16, device=items.device)
    marks.scatter_(2, items[:, :, None], 1)
    seen = marks.cumsum(1) > 0
    seen[:, :, 0] = True
    return seen


def unseen_cross_entropy(vectors: Tensor, item_table: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
    """Cross-entropy over all items but those already seen, as they are filtered when serving.

    The largest single gain over the plain full softmax that we measured (NDCG@10 .1945 to .2023 on MovieLens-1M).

    Args:
        vectors: Shape (n, dim).
        item_table: Shape (items + 1, dim).
        targets: The item row that came next, shape (n,), int64; a target is a candidate even if it was seen.
        seen: Rows that are no candidates, shape (n, items + 1), bool. Not changed.

    Returns:
        The mean over the n events, a scalar.
    """
    excluded = seen.scatter(1, targets[:, None], False)
    logits = (vectors @ item_table.T).masked_fill(excluded, float("-inf"))
    return functional.cross_entropy(logits, targets)
