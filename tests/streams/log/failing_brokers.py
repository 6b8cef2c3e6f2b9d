"""Brokers that fail on cue: librdkafka's mock cluster, by the functions that its Python package leaves out."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import confluent_kafka

LIST_OFFSETS: Final = 2
_PRODUCER: Final = 0
# Where wheels keep the library that the module itself has loaded, on Linux and on macOS.
_PLACES: Final = ("../confluent_kafka.libs/librdkafka*", ".dylibs/librdkafka*")


class FailingBrokers:
    """A cluster of two brokers, with one topic of two partitions.

    Attributes:
        bootstrap_servers: Where it is.
        topic: Its name.
    """

    topic: Final = "clicks"

    def __init__(self, library: Any, cluster: Any) -> None:
        self._library = library
        self._cluster = cluster
        self.bootstrap_servers: str = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()
        library.rd_kafka_mock_topic_create(cluster, self.topic.encode(), 2, 2)

    def fail(self, request: int, *errors: int) -> None:
        """Answer the next requests of a kind with these errors, one each; 0 is none."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(errors)), array
        )

    def move_leader(self, partition: int, broker: int) -> None:
        """Make a broker, 1 or 2, the leader of a partition, under a new epoch even if it was."""
        self._library.rd_kafka_mock_partition_set_leader(self._cluster, self.topic.encode(), partition, broker)


@contextmanager
def failing_brokers() -> Iterator[FailingBrokers]:
    """Start them; leaving the block ends them."""
    folder = Path(confluent_kafka.__file__).parent
    library: Any = ctypes.CDLL(str(next(path for place in _PLACES for path in folder.glob(place))))
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    why = ctypes.create_string_buffer(512)
    holder = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, None, why, ctypes.c_size_t(len(why))))
    assert holder.value, why.value
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(holder, 2))
    try:
        yield FailingBrokers(library, cluster)
    finally:
        library.rd_kafka_mock_cluster_destroy(cluster)
        library.rd_kafka_destroy(holder)
