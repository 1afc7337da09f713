"""Everything that comes from outside: locks, pinned sources and their patches, fetched files."""
