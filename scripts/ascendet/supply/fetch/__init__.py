"""Fetch files over HTTP: in ranges, over several connections, resumable, renamed only when their digest is right.

requests implements HTTP. This package decides which range to request next, which answers to accept, when to wait, and
when to try the next mirror. Bytes of two answers are combined only under a strong validator (RFC 9110, 13.1.5) or under
a digest that the caller knows. The caller holds a lock, so that each file has one writer.

- `part`: the bytes on disk, and the journal that says which bytes are there
- `answer`: request a range, check the answer, and decide when to retry
- `download`: the state of one file: its missing ranges, its mirror, its digests
- `pool`: the connections, each of which fetches ranges of any file
"""

from ascendet.supply.fetch.answer import Policy
from ascendet.supply.fetch.download import Fetched, File
from ascendet.supply.fetch.pool import fetch, fetch_range

__all__ = ["Fetched", "File", "Policy", "fetch", "fetch_range"]
