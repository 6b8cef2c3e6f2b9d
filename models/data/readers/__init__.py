"""Readers of logs and of item metadata, one file a family of formats.

`read_events` takes a log of events in any of them, `read_items` the titles and topics of items.
"""

from models.data.readers.items import ItemFormat, read_items
from models.data.readers.logs import LogFormat, read_events

__all__ = ["ItemFormat", "LogFormat", "read_events", "read_items"]
