"""The state store: rows and watermarks, changed together or not at all."""
