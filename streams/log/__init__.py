"""Kafka: what ingest reads, what the services produce, and what the operator asks."""
