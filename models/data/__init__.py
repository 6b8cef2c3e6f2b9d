"""Logs of events: read, described, split, and cut into what training takes."""
