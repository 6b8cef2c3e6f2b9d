from streams.contracts.frame import Source
from streams.log.topics import Partition, Topic, sources_of


def test_every_partition_of_every_topic_is_a_source_with_the_topics_id() -> None:
    topics = {"clicks": Topic("clicks", "id-1", 2), "views": Topic("views", "id-2", 1)}
    assert dict(sources_of(topics)) == {
        Partition("clicks", 0): Source("clicks", "id-1", 0),
        Partition("clicks", 1): Source("clicks", "id-1", 1),
        Partition("views", 0): Source("views", "id-2", 0),
    }
