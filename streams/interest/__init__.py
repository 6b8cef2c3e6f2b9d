"""The pure engine: windows advance, are encoded, and items are ranked. No I/O, no Kafka, no Redis."""
