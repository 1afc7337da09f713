"""Files over HTTP: in ranges, over several connections, resumed after any end, named only when their digest is right.

requests speaks HTTP. Here is the policy: which range to ask for next, what an answer must look like, when to wait, when
to try the next mirror. Bytes of two answers are only put together under a strong validator (RFC 9110, 13.1.5) or under
a digest that the caller knows; whoever calls holds a lock, so that a file has one writer.

- `part`: the bytes on disk and the journal of which are there
- `answer`: asking for a range, judging the answer, when to ask again
- `download`: the state of one file: what is missing, its mirror, its digests
- `pool`: the connections, which take ranges of any file
"""

from ascendet.supply.fetch.answer import Policy
from ascendet.supply.fetch.download import Fetched, File
from ascendet.supply.fetch.pool import fetch, fetch_range

__all__ = ["Fetched", "File", "Policy", "fetch", "fetch_range"]
