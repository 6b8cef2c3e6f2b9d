"""Training: from a split log to a network that has learned."""
