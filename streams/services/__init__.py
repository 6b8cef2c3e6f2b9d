"""The processes: each is put together here from the rooms below."""
