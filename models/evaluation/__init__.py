"""How good a model is, over all items, without flattering it."""
