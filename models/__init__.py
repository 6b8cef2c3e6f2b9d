"""Sequential recommendation models: what serving and training share, and the training itself."""
