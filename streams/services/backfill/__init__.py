"""Replaying a log, whole or in part, from Kafka or from files: what is read, and what is made of it."""
