"""The simulated HCCL through its C ABI: every operation, every data type, and how calls fail.

Elements repeat with period 61, so that large buffers cost Python nothing; values are chosen so that every
result is exact in every data type, and results are compared bit for bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hccl_ranks import (
    DTYPES,
    NOT_SUPPORT,
    PARA,
    PTR,
    REDUCTIONS,
    REMOTE,
    TIMEOUT,
    UNAVAIL,
    CommConfig,
    Outcome,
    Rank,
    SendRecvItem,
    find_library,
    free_port,
    pack,
    run_ranks,
    start_ranks,
    unpack,
    values_of,
    wait_ranks,
)

PERIOD = 61
SMALL = 37  # travels with its header
LARGE = 700_001  # odd; over several slices, given by address or streamed

U64 = ctypes.c_uint64


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return find_library(tmp_path_factory.mktemp("hccl"))


@pytest.fixture(params=["auto", "tcp"])
def transport(request: pytest.FixtureRequest) -> dict[str, str]:
    """Both ways in which bytes travel: read from the peer's memory where possible, or through sockets."""
    return {"CANN_SIM_HCCL_TRANSPORT": request.param}


def tile(pattern: bytes, dtype: str, count: int) -> bytes:
    size = DTYPES[dtype][1] * count
    return (pattern * (size // len(pattern) + 1))[:size]


def contribution(rank: int, index: int) -> int:
    """Element `index` of what `rank` contributes: 1 to 3, so that products of 8 ranks fit into every type."""
    return 1 + (rank * 5 + index) % 3 if rank < 4 else 1 + (index % 2) * (rank == 5)


def data_of(rank: int, dtype: str, count: int) -> bytes:
    return tile(pack([contribution(rank, i) for i in range(PERIOD)], dtype), dtype, count)


def reduced(size: int, dtype: str, op: str, count: int) -> bytes:
    combine: dict[str, Callable[[list[int]], int]] = {"sum": sum, "prod": math.prod, "max": max, "min": min}
    values = [combine[op]([contribution(rank, i) for rank in range(size)]) for i in range(PERIOD)]
    return tile(pack(values, dtype), dtype, count)


def buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, max(len(data), 1))


def space(dtype: str, count: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(b"\xee" * (count * DTYPES[dtype][1]), count * DTYPES[dtype][1])


def offset(memory: ctypes.Array[ctypes.c_char], dtype: str, elements: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(ctypes.addressof(memory) + elements * DTYPES[dtype][1])


def reducible(dtype: str, op: str) -> bool:
    """What CANN documents for Atlas A2 and A3."""
    if dtype in ("int16", "bfloat16"):
        return op != "prod"
    return dtype in ("int8", "int32", "int64", "float16", "float32")


# ---- results ----


def check_reductions(rank: Rank, dtype: str, op: str, count: int) -> None:
    kind, number = DTYPES[dtype][0], REDUCTIONS[op]
    expected = reduced(rank.size, dtype, op, count)
    send, recv = buffer(data_of(rank.rank, dtype, count)), space(dtype, count)
    rank.call("HcclAllReduce", send, recv, U64(count), kind, number, rank.comm, None)
    assert recv.raw == expected
    assert send.raw == data_of(rank.rank, dtype, count)
    rank.call("HcclAllReduce", send, send, U64(count), kind, number, rank.comm, None)
    assert send.raw == expected, "in place"
    root = rank.size - 1
    send, recv = buffer(data_of(rank.rank, dtype, count)), space(dtype, count)
    rank.call("HcclReduce", send, recv, U64(count), kind, number, root, rank.comm, None)
    assert recv.raw == (expected if rank.rank == root else b"\xee" * len(expected))
    # Rank r's share of the sum is the part r of everybody's buffer; each part is the same pattern.
    send, recv = buffer(data_of(rank.rank, dtype, count) * rank.size), space(dtype, count)
    rank.call("HcclReduceScatter", send, recv, U64(count), kind, number, rank.comm, None)
    assert recv.raw == expected
    mine = offset(send, dtype, rank.rank * count)
    rank.call("HcclReduceScatter", send, mine, U64(count), kind, number, rank.comm, None)
    begin = rank.rank * len(expected)
    assert send.raw[begin : begin + len(expected)] == expected, "in place"


def check_movements(rank: Rank, dtype: str, count: int) -> None:
    kind, size, me = DTYPES[dtype][0], rank.size, rank.rank
    mine, everything = data_of(me, dtype, count), b"".join(data_of(r, dtype, count) for r in range(size))
    for root in {0, size - 1}:
        memory = buffer(data_of(me, dtype, count))
        rank.call("HcclBroadcast", memory, U64(count), kind, root, rank.comm, None)
        assert memory.raw == data_of(root, dtype, count)
        send, recv = buffer(everything), space(dtype, count)
        rank.call("HcclScatter", send, recv, U64(count), kind, root, rank.comm, None)
        assert recv.raw == mine
    recv = space(dtype, count * size)
    rank.call("HcclAllGather", buffer(mine), recv, U64(count), kind, rank.comm, None)
    assert recv.raw == everything
    # To rank r goes r times a third of the elements, so that counts differ and some are 0.
    counts = [r * count // 3 for r in range(size)]
    send, recv = buffer(mine * size), space(dtype, max(1, counts[me]) * size)
    arrays = [(U64 * size)(*values) for values in (
        counts, [r * count for r in range(size)], [counts[me]] * size, [r * counts[me] for r in range(size)],
    )]  # fmt: skip
    if max(counts) <= count:
        sent, received = (send, *arrays[:2], kind), (recv, *arrays[2:], kind)
        rank.call("HcclAlltoAllV", *sent, *received, rank.comm, None)
        got = recv.raw[: counts[me] * size * DTYPES[dtype][1]]
        assert got == b"".join(data_of(r, dtype, counts[me]) for r in range(size))
    send, recv = buffer(everything), space(dtype, count * size)
    rank.call("HcclAlltoAll", send, U64(count), kind, recv, U64(count), kind, rank.comm, None)
    assert recv.raw == mine * size
    counts = [1 + r * count // size for r in range(size)]
    starts = [sum(counts[:r]) for r in range(size)]
    recv = space(dtype, sum(counts))
    rank.call(
        "HcclAllGatherV", buffer(data_of(me, dtype, counts[me])), U64(counts[me]), recv,
        (U64 * size)(*counts), (U64 * size)(*starts), kind, rank.comm, None,
    )  # fmt: skip
    assert recv.raw == b"".join(data_of(r, dtype, counts[r]) for r in range(size))
    rank.call("HcclBarrier", rank.comm, None)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_operations_give_exact_results(library: Path, size: int, transport: dict[str, str]) -> None:
    def body(rank: Rank) -> int:
        rank.join()
        checked = 0
        for dtype in DTYPES:
            check_movements(rank, dtype, SMALL)
            for op in REDUCTIONS:
                if reducible(dtype, op):
                    check_reductions(rank, dtype, op, SMALL)
                    checked += 1
        for dtype in ("float32", "bfloat16", "int8") if size < 8 else ("float16",):
            check_movements(rank, dtype, LARGE // size)
            check_reductions(rank, dtype, "sum", LARGE)
        rank.call("HcclCommDestroy", rank.comm)
        return checked

    assert values_of(run_ranks(library, size, body, environ=transport)) == [26] * size


def test_uneven_reduce_scatter(library: Path, transport: dict[str, str]) -> None:
    counts = [1, 900_000, 0]

    def body(rank: Rank) -> None:
        rank.join()
        send = buffer(b"".join(data_of(rank.rank, "float32", count) for count in counts))
        recv = space("float32", counts[rank.rank])
        starts = [sum(counts[:r]) for r in range(3)]
        arrays = (U64 * 3)(*counts), (U64 * 3)(*starts)
        rank.call("HcclReduceScatterV", send, *arrays, recv, U64(counts[rank.rank]), 4, 0, rank.comm, None)
        assert recv.raw == reduced(3, "float32", "sum", counts[rank.rank])

    values_of(run_ranks(library, 3, body, environ=transport))


def test_sums_are_the_same_bits_on_all_ranks_and_in_rank_order(
    library: Path, transport: dict[str, str]
) -> None:
    """(((r0 + r1) + r2) + r3) in float32; 16-bit floats are rounded once, at the end."""
    ranks = [1.0, 2.0**-24, 2.0**-24, -1.0]

    def body(rank: Rank) -> tuple[bytes, bytes]:
        rank.join()
        results = []
        for count in (8, LARGE):
            memory = buffer(pack([ranks[rank.rank]], "float32") * count)
            rank.call("HcclAllReduce", memory, memory, U64(count), 4, 0, rank.comm, None)
            assert memory.raw == memory.raw[:4] * count
            results.append(memory.raw[:4])
        # In bfloat16 1 + 2**-9 is 1 again; in float32 two of them make 2**-8, which bfloat16 holds beside 1.
        memory = buffer(pack([[1.0, 2.0**-9, 2.0**-9, 2.0**-8][rank.rank]], "bfloat16"))
        rank.call("HcclAllReduce", memory, memory, U64(1), 11, 0, rank.comm, None)
        assert results[0] == results[1]
        return results[0], memory.raw

    values = values_of(run_ranks(library, 4, body, environ=transport))
    assert len(set(values)) == 1
    # 1 + 2**-24 rounds to 1 in float32, twice; another order would keep 2**-23.
    assert unpack(values[0][0], "float32") == [0.0]
    assert unpack(values[0][1], "bfloat16") == [1.0 + 2.0**-7]


def test_bfloat16_rounds_to_nearest_even(library: Path) -> None:
    pairs = [(1.0, 2.0**-8), (1.0 + 2.0**-7, 2.0**-8), (1.0, 2.0**-8 + 2.0**-15), (1.0, 2.0**-9)]
    pairs += [(-1.0, -(2.0**-8) - 2.0**-15), (math.inf, 1.0)]

    def body(rank: Rank) -> list[float]:
        rank.join()
        sums = buffer(pack([pair[rank.rank] for pair in pairs], "bfloat16"))
        rank.call("HcclAllReduce", sums, sums, U64(len(pairs)), 11, 0, rank.comm, None)
        return unpack(sums.raw, "bfloat16")

    values = values_of(run_ranks(library, 2, body))
    assert values[0] == values[1] == [1.0, 1.0 + 2.0**-6, 1.0 + 2.0**-7, 1.0, -1.0 - 2.0**-7, math.inf]


def test_float16_conversions_are_ieee(library: Path) -> None:
    """All 65,536 values survive a one-operand reduction; sums round to nearest even and overflow."""
    every = b"".join(value.to_bytes(2, "little") for value in range(65536))
    zeros = bytes(len(every))
    pairs = [(65504.0, 16.0), (65504.0, 15.0), (2048.0, 1.0), (2050.0, 1.0), (2.0**-24, 2.0**-24)]
    pairs.append((1.0, 2.0**-11))

    def body(rank: Rank) -> list[float]:
        rank.join()
        memory = buffer(every if rank.rank == 0 else zeros)
        rank.call("HcclAllReduce", memory, memory, U64(65536), 3, 0, rank.comm, None)
        for value in range(65536):
            got = int.from_bytes(memory.raw[2 * value : 2 * value + 2], "little")
            is_nan = value & 0x7FFF > 0x7C00
            assert got & 0x7FFF > 0x7C00 if is_nan else got == (0 if value == 0x8000 else value), hex(value)
        sums = buffer(pack([pair[rank.rank] for pair in pairs], "float16"))
        rank.call("HcclAllReduce", sums, sums, U64(len(pairs)), 3, 0, rank.comm, None)
        return unpack(sums.raw, "float16")

    values = values_of(run_ranks(library, 2, body))
    assert values[0] == values[1] == [math.inf, 65504.0, 2048.0, 2052.0, 2.0**-23, 1.0]


# ---- point to point ----


def test_both_ranks_send_first(library: Path, transport: dict[str, str]) -> None:
    """Far more than sockets hold; a sender that waited for its receiver would hang here."""
    count = 4_000_000

    def body(rank: Rank) -> None:
        rank.join()
        peer = 1 - rank.rank
        memory, recv = buffer(data_of(rank.rank, "float32", count)), space("float32", count)
        for _ in range(2):
            rank.call("HcclSend", memory, U64(count), 4, peer, rank.comm, None)
        ctypes.memset(memory, 0, count * 4)  # the buffer may be reused as soon as the call returns
        for _ in range(2):
            rank.call("HcclRecv", recv, U64(count), 4, peer, rank.comm, None)
            assert recv.raw == data_of(peer, "float32", count)
        rank.call("HcclCommDestroy", rank.comm)

    values_of(run_ranks(library, 2, body, environ=transport))


def test_sends_arrive_although_the_sender_calls_nothing_else(library: Path) -> None:
    count = 4_000_000

    def body(rank: Rank) -> None:
        rank.join()
        memory = buffer(data_of(0, "float32", count) if rank.rank == 0 else bytes(count * 4))
        if rank.rank == 0:
            rank.call("HcclSend", memory, U64(count), 4, 1, rank.comm, None)
            rank.fetch("received")
        else:
            rank.call("HcclRecv", memory, U64(count), 4, 0, rank.comm, None)
            rank.post("received")
            assert memory.raw == data_of(0, "float32", count)

    values_of(run_ranks(library, 2, body, limit=10))


def test_sends_arrive_although_the_sender_has_left(library: Path) -> None:
    count = 4_000_000

    def body(rank: Rank) -> None:
        rank.join()
        memory = buffer(data_of(0, "float32", count) if rank.rank == 0 else bytes(count * 4))
        if rank.rank == 0:
            rank.call("HcclSend", memory, U64(count), 4, 1, rank.comm, None)
        else:
            time.sleep(0.3)
            rank.call("HcclRecv", memory, U64(count), 4, 0, rank.comm, None)
            assert memory.raw == data_of(0, "float32", count)
        rank.call("HcclCommDestroy", rank.comm)

    values_of(run_ranks(library, 2, body))


def test_batched_transfers_in_a_ring_and_to_oneself(library: Path, transport: dict[str, str]) -> None:
    count = 300_000

    def body(rank: Rank) -> None:
        rank.join()
        me, size = rank.rank, rank.size
        send = buffer(data_of(me, "float16", count))
        recvs = [space("float16", count) for _ in range(3)]
        peers = [(me - 1) % size, (me + 1) % size, me]
        items = [SendRecvItem(1, ctypes.addressof(r), count, 3, p) for r, p in zip(recvs, peers, strict=True)]
        items += [SendRecvItem(0, ctypes.addressof(send), count, 3, peer) for peer in peers]
        rank.call("HcclBatchSendRecv", (SendRecvItem * 6)(*items), 6, rank.comm, None)
        for memory, peer in zip(recvs, peers, strict=True):
            assert memory.raw == data_of(peer, "float16", count)

    values_of(run_ranks(library, 3, body, environ=transport))


# ---- communicators ----


def all_reduce_int(rank: Rank, comm: ctypes.c_void_p, value: int) -> int:
    memory = ctypes.c_int64(value)
    rank.call("HcclAllReduce", ctypes.byref(memory), ctypes.byref(memory), U64(1), 5, 0, comm, None)
    return memory.value


def test_many_communicators_in_any_order_of_ranks(library: Path) -> None:
    groups = [[2, 0], [3, 1], [3, 2, 1], [1], [0, 1, 2, 3]]

    def body(rank: Rank) -> list[int]:
        rank.join()
        sums = []
        for number, group in enumerate(groups):
            if rank.rank in group:
                comm = rank.join(f"group{number}", group)
                got = ctypes.c_uint32()
                rank.call("HcclGetRankId", comm, ctypes.byref(got))
                assert got.value == group.index(rank.rank)
                sums.append(all_reduce_int(rank, comm, 10**rank.rank))
                rank.call("HcclCommDestroy", comm)
        sums.append(all_reduce_int(rank, rank.comm, 10**rank.rank))
        return sums

    values = values_of(run_ranks(library, 4, body))
    assert values == [
        [101, 1111, 1111], [1010, 1110, 10, 1111, 1111], [101, 1110, 1111, 1111], [1010, 1110, 1111, 1111],
    ]  # fmt: skip


def test_sub_communicators(library: Path) -> None:
    def body(rank: Rank) -> list[Any]:
        rank.join()
        results: list[Any] = []
        for number, ranks in enumerate(([3, 1], [0, 2], [2, 1, 0])):
            comm = ctypes.c_void_p()
            if rank.rank not in ranks:
                continue
            rank.call(
                "HcclCreateSubCommConfig", ctypes.byref(rank.comm), len(ranks),
                (ctypes.c_uint32 * len(ranks))(*ranks), U64(number), ranks.index(rank.rank),
                ctypes.byref(CommConfig()), ctypes.byref(comm),
            )  # fmt: skip
            results.append(all_reduce_int(rank, comm, 10**rank.rank))
            rank.call("HcclCommDestroy", comm)
        none = ctypes.c_void_p(1)
        excluded = 0, None, U64(0xFFFFFFFF), 0, None, ctypes.byref(none)
        rank.call("HcclCreateSubCommConfig", ctypes.byref(rank.comm), *excluded)
        assert none.value is None
        results.append(all_reduce_int(rank, rank.comm, 10**rank.rank))
        return results

    values = values_of(run_ranks(library, 4, body))
    assert values == [[101, 111, 1111], [1010, 111, 1111], [101, 111, 1111], [1010, 1111]]


def test_sub_communicators_may_begin_in_any_order(library: Path) -> None:
    """Rank 2 connects to rank 0 for the second group while rank 0 still waits for rank 1 in the first."""

    def body(rank: Rank) -> list[int]:
        rank.join()
        sums = []
        for number, ranks in enumerate(([0, 1], [0, 2])):
            if rank.rank not in ranks:
                continue
            if rank.rank == 1:
                time.sleep(0.3)
            comm = ctypes.c_void_p()
            members = (ctypes.c_uint32 * 2)(*ranks)
            place = U64(number), ranks.index(rank.rank), ctypes.byref(CommConfig()), ctypes.byref(comm)
            rank.call("HcclCreateSubCommConfig", ctypes.byref(rank.comm), 2, members, *place)
            sums.append(all_reduce_int(rank, comm, 10**rank.rank))
        return sums

    outcomes = run_ranks(library, 3, body, environ={"HCCL_CONNECT_TIMEOUT": "5"})
    assert values_of(outcomes) == [[11, 101], [11], [101]]


def test_one_process_with_several_devices(library: Path) -> None:
    """HcclCommInitAll: one thread per device, as HcclCommInitAll's users run them."""
    from threading import Thread

    def body(rank: Rank) -> list[int]:
        comms, devices = (ctypes.c_void_p * 3)(), (ctypes.c_int32 * 3)(0, 1, 2)
        rank.call("HcclCommInitAll", 3, devices, comms)
        sums = [0, 0, 0]

        def work(index: int) -> None:
            sums[index] = all_reduce_int(rank, ctypes.c_void_p(comms[index]), 1 + index)

        threads = [Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sums

    assert values_of(run_ranks(library, 1, body)) == [[6, 6, 6]]


def test_names_and_configuration(library: Path) -> None:
    def body(rank: Rank) -> tuple[bytes, bytes]:
        rank.join()
        name = ctypes.create_string_buffer(128)
        rank.call("HcclGetCommName", rank.comm, name)
        given = name.value
        comm = ctypes.c_void_p()
        info = rank.root_info("named", owner=rank.rank == 1)
        config = CommConfig(b"group_name_7")
        rank.call("HcclCommInitRootInfoConfig", 2, info, rank.rank, ctypes.byref(config), ctypes.byref(comm))
        rank.call("HcclGetCommName", comm, name)
        config.magic = 0
        arguments = 2, info, 0, ctypes.byref(config), ctypes.byref(comm)
        assert rank.code("HcclCommInitRootInfoConfig", *arguments) == PARA
        return given, name.value

    first, second = values_of(run_ranks(library, 2, body))
    assert first == second
    assert first[0]
    assert first[1] == b"group_name_7"


class Span(ctypes.Structure):
    """C's struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def may_read_peer(rank: Rank, memory: ctypes.Array[ctypes.c_char]) -> bool:
    """Ask the kernel itself, so that a library that stopped reading memory is not taken for a strict host."""
    rank.post(f"memory.{rank.rank}", f"{os.getpid()} {ctypes.addressof(memory)}".encode())
    process, address = map(int, rank.fetch(f"memory.{1 - rank.rank}").split())
    seen = ctypes.create_string_buffer(8)
    local, remote = Span(ctypes.addressof(seen), 8), Span(address, 8)
    got = ctypes.CDLL(None).process_vm_readv(process, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    rank.call("HcclBarrier", rank.comm, None)  # nobody leaves before it is read
    return bool(got == 8)


BYTES_SENT = 200  # offset of tcpi_bytes_sent in the kernel's struct tcp_info


def sent_by_sockets() -> int:
    """Return the bytes that this process has sent through its open TCP connections, as the kernel counts them."""
    total = 0
    for name in [file.name for file in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as end:
            info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_SENT + 8)
            total += int.from_bytes(info[BYTES_SENT:], "little")
    return total


def test_counters_tell_calls_and_bytes(library: Path, transport: dict[str, str]) -> None:
    def body(rank: Rank) -> tuple[dict[str, Any], int] | None:
        counters = ctypes.CDLL(str(library.with_name("libascendcl.so")))
        counters.cann_sim_counters_start()
        rank.join()
        memory = buffer(pack([1.0], "float32") * 100_000)
        if transport["CANN_SIM_HCCL_TRANSPORT"] == "auto" and not may_read_peer(rank, memory):
            return None
        sent = sent_by_sockets()
        for _ in range(3):
            rank.call("HcclAllReduce", memory, memory, U64(100_000), 4, 0, rank.comm, None)
        rank.call("HcclBroadcast", memory, U64(10), 4, 0, rank.comm, None)
        assert memory.raw == pack([8.0], "float32") * 100_000
        sent = sent_by_sockets() - sent
        text = ctypes.create_string_buffer(10_000)
        assert counters.cann_sim_counters_snapshot(text, len(text)) == len(text.value)
        return json.loads(text.value)["collectives"], sent

    preload = [library.with_name("libascendcl.so")]
    for found in values_of(run_ranks(library, 2, body, environ=transport, preload=preload)):
        if found is None:
            pytest.skip("this host does not let processes of one user read each other's memory")
        collectives, sent = found
        assert collectives["HcclAllReduce"] == {"count": 3, "bytes": 1_200_000}
        assert collectives["HcclBroadcast"] == {"count": 1, "bytes": 40}
        # Of 400,000 bytes one half is reduced here and the other half comes back, three times; where they do not go
        # through sockets, the peer reads them from our memory.
        if transport["CANN_SIM_HCCL_TRANSPORT"] == "tcp":
            assert 1_200_000 < sent < 1_500_000  # what a busy machine sends again is counted, too
        else:
            assert 0 < sent < 10_000


def test_calls_of_count_zero_return_at_once(library: Path) -> None:
    def body(rank: Rank) -> None:
        rank.join()
        if rank.rank == 0:  # nobody else calls it
            rank.call("HcclAllReduce", None, None, U64(0), 4, 0, rank.comm, None)
            rank.call("HcclBroadcast", None, U64(0), 4, 0, rank.comm, None)
            rank.call("HcclSend", None, U64(0), 4, 1, rank.comm, None)
            rank.call("HcclBatchSendRecv", None, 0, rank.comm, None)
        assert all_reduce_int(rank, rank.comm, 1) == 2

    values_of(run_ranks(library, 2, body))


# ---- failures ----


def codes(outcomes: list[Outcome]) -> list[int]:
    """Result codes of ranks that all failed inside HCCL; each must have said so once on standard error."""
    for outcome in outcomes:
        assert hasattr(outcome.error, "code"), outcome
        assert outcome.stderr.count("simulated by cann_sim") >= 1
    return [outcome.error.code for outcome in outcomes]  # type: ignore[union-attr]


def test_missing_rank_ends_in_a_connect_timeout(library: Path, tmp_path: Path) -> None:
    processes = start_ranks(
        library, 3, lambda rank: rank.join(), tmp_path, environ={"HCCL_CONNECT_TIMEOUT": "2"}, ranks=[0, 2]
    )
    outcomes = wait_ranks(processes, tmp_path)
    assert codes(outcomes) == [TIMEOUT, TIMEOUT]
    for outcome in outcomes:
        assert "EI0006" in outcome.stderr
        assert "rank [1] of 3 did not register" in outcome.stderr


def test_unreachable_root_ends_in_a_connect_timeout(library: Path) -> None:
    def body(rank: Rank) -> None:
        if rank.rank == 0:
            rank.root_info("world", owner=True)  # and leaves
            return
        info = rank.root_info("world", owner=False)
        time.sleep(0.2)
        rank.call("HcclCommInitRootInfo", 2, info, 1, ctypes.byref(ctypes.c_void_p()))

    outcomes = run_ranks(library, 2, body, environ={"HCCL_CONNECT_TIMEOUT": "1"})
    assert codes(outcomes[1:]) == [TIMEOUT]
    assert "could not reach the root" in outcomes[1].stderr


@pytest.mark.parametrize(
    ("first", "second"),
    [((3, 0), (2, 1)), ((2, 0), (2, 0)), ((2, 0), (2, 2))],
    ids=["size", "twice", "beyond"],
)
def test_contradicting_registrations_are_refused(
    library: Path, first: tuple[int, int], second: tuple[int, int]
) -> None:
    def body(rank: Rank) -> None:
        info = rank.root_info("world", owner=rank.rank == 0)
        size, number = (first, second)[rank.rank]
        rank.call("HcclCommInitRootInfo", size, info, number, ctypes.byref(ctypes.c_void_p()))

    outcomes = run_ranks(library, 2, body, environ={"HCCL_CONNECT_TIMEOUT": "2"})
    # Whichever of the two the root hears second contradicts the first, but a rank beyond the size is wrong by itself.
    assert PARA in codes(outcomes)


Call = Callable[[Rank, Any], None]


def call_of(function: str, *arguments: Any) -> Call:
    """A call on a buffer of 100,000 float32; its handle and stream are added."""
    return lambda rank, memory: rank.call(
        function, *[memory if a is Ellipsis else a for a in arguments], rank.comm, None
    )


MISMATCHES: dict[str, tuple[Call, Call, str]] = {
    "operation": (
        call_of("HcclAllReduce", ..., ..., U64(100), 4, 0),
        call_of("HcclBroadcast", ..., U64(100), 4, 0),
        "AllReduce(count 100, float32, sum",
    ),
    "count": (
        call_of("HcclAllReduce", ..., ..., U64(100), 4, 0),
        call_of("HcclAllReduce", ..., ..., U64(99), 4, 0),
        "count 99",
    ),
    "large count": (
        call_of("HcclAllReduce", ..., ..., U64(90_000), 4, 0),
        call_of("HcclAllReduce", ..., ..., U64(89_999), 4, 0),
        "count 89999",
    ),
    "data type": (
        call_of("HcclAllGather", ..., ..., U64(100), 4),
        call_of("HcclAllGather", ..., ..., U64(100), 2),
        "int32",
    ),
    "reduction": (
        call_of("HcclReduceScatter", ..., ..., U64(100), 4, 0),
        call_of("HcclReduceScatter", ..., ..., U64(100), 4, 2),
        "float32, max",
    ),
    "received count": (
        call_of("HcclSend", ..., U64(100), 4, 1),
        call_of("HcclRecv", ..., U64(101), 4, 0),
        "count 100",
    ),
    "order": (
        lambda rank, memory: (
            call_of("HcclBroadcast", ..., U64(90_000), 4, 0)(rank, memory),
            call_of("HcclAllReduce", ..., ..., U64(8), 4, 0)(rank, memory),
        )[0],
        lambda rank, memory: (
            call_of("HcclAllReduce", ..., ..., U64(8), 4, 0)(rank, memory),
            call_of("HcclBroadcast", ..., U64(90_000), 4, 0)(rank, memory),
        )[0],
        "Broadcast(count 90000",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_ranks_that_disagree_fail_at_once(library: Path, case: str) -> None:
    """No timeout is involved: HCCL_EXEC_TIMEOUT keeps its default of 1836 s."""
    *calls, words = MISMATCHES[case]

    def body(rank: Rank) -> None:
        rank.join()
        memory = space("float32", 200_000)
        calls[rank.rank](rank, memory)
        # A send does not wait; its error comes with the next call.
        all_reduce_int(rank, rank.comm, 1)

    outcomes = run_ranks(library, 2, body, limit=20)
    assert set(codes(outcomes)) == {PARA}
    assert "EI0005" in outcomes[0].stderr
    assert words in outcomes[0].stderr + outcomes[1].stderr


def test_absent_call_ends_in_an_execution_timeout_on_all_ranks(library: Path) -> None:
    def body(rank: Rank) -> None:
        rank.join()
        if rank.rank == 2:
            rank.fetch("over.0")
            rank.fetch("over.1")
            return
        try:
            all_reduce_int(rank, rank.comm, 1)
        finally:
            rank.post(f"over.{rank.rank}")
            # The communicator stays failed, and that does not take another timeout.
            assert rank.code("HcclBarrier", rank.comm, None) == TIMEOUT

    outcomes = run_ranks(library, 3, body, environ={"HCCL_EXEC_TIMEOUT": "1"}, limit=20)
    assert codes(outcomes[:2]) == [TIMEOUT, TIMEOUT]
    text = outcomes[0].stderr
    assert "EI0002" in text
    assert "remote rank [" in text
    assert "tag[AllReduce_" in text


@pytest.mark.parametrize("count", [1, LARGE])
def test_dead_peer_is_noticed_at_once(library: Path, count: int, transport: dict[str, str]) -> None:
    def body(rank: Rank) -> None:
        rank.join()
        all_reduce_int(rank, rank.comm, 1)
        if rank.rank == 1:
            # Like a DataLoader worker: it must not keep its dead parent's connections open.
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        memory = space("float32", count)
        rank.call("HcclAllReduce", memory, memory, U64(count), 4, 0, rank.comm, None)

    begin = time.monotonic()
    outcomes = run_ranks(library, 3, body, environ=transport, limit=4)
    assert time.monotonic() - begin < 4, "it took a timeout"
    assert outcomes[1].status == -signal.SIGKILL
    assert set(codes([outcomes[0], outcomes[2]])) == {REMOTE}
    assert "rank [1]" in outcomes[0].stderr
    assert "EI0013" in outcomes[0].stderr


def test_destroy_ends_at_once_with_dead_peers_and_unsent_data(library: Path) -> None:
    def body(rank: Rank) -> None:
        rank.join()
        if rank.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        memory = space("float32", 4_000_000)
        rank.code("HcclSend", memory, U64(4_000_000), 4, 1, rank.comm, None)
        rank.call("HcclCommDestroy", rank.comm)
        assert rank.code("HcclCommDestroy", rank.comm) == PARA, "destroyed twice"

    assert run_ranks(library, 2, body, limit=10)[0].status == 0


def test_destroy_ends_a_call_of_another_thread(library: Path) -> None:
    from threading import Thread

    def body(rank: Rank) -> None:
        rank.join()
        if rank.rank == 1:
            rank.fetch("over")
            return
        result: list[int] = []
        thread = Thread(target=lambda: result.append(rank.code("HcclBarrier", rank.comm, None)))
        thread.start()
        time.sleep(0.2)
        rank.call("HcclCommDestroy", rank.comm)
        thread.join()
        rank.post("over")
        assert result[0] in (UNAVAIL, REMOTE)

    values_of(run_ranks(library, 2, body, limit=10))


def test_forked_child_cannot_use_or_harm_a_communicator(library: Path) -> None:
    def body(rank: Rank) -> None:
        rank.join()
        all_reduce_int(rank, rank.comm, 1)
        child = os.fork()
        if child == 0:
            used = rank.code("HcclBarrier", rank.comm, None)
            destroyed = rank.code("HcclCommDestroy", rank.comm)
            os._exit(0 if (used, destroyed) == (UNAVAIL, 0) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert all_reduce_int(rank, rank.comm, 1) == 2

    values_of(run_ranks(library, 2, body))


def test_bad_arguments_are_named_and_harmless(library: Path) -> None:
    def body(rank: Rank) -> None:
        rank.join()
        memory = space("float64", 8)
        reduce = ("HcclAllReduce", memory, memory, U64(8))
        assert rank.code(*reduce, 10, 0, rank.comm, None) == NOT_SUPPORT, "float64"
        assert rank.code(*reduce, 11, 1, rank.comm, None) == NOT_SUPPORT, "product of bfloat16"
        assert rank.code(*reduce, 99, 0, rank.comm, None) == NOT_SUPPORT
        assert rank.code("HcclAllReduce", None, memory, U64(8), 4, 0, rank.comm, None) == PTR
        assert rank.code("HcclBroadcast", memory, U64(8), 4, 2, rank.comm, None) == PARA, "root"
        assert rank.code("HcclSend", memory, U64(8), 4, 7, rank.comm, None) == PARA
        assert rank.code("HcclBarrier", ctypes.c_void_p(4711), None) == PARA
        assert rank.code("HcclBarrier", None, None) == PTR
        comm = ctypes.byref(ctypes.c_void_p())
        assert rank.code("HcclCommInitClusterInfo", b"table.json", 0, comm) == NOT_SUPPORT
        assert all_reduce_int(rank, rank.comm, 1) == 2

    for outcome in run_ranks(library, 2, body):
        assert outcome.status == 0, outcome.stderr
        assert "reduction sum of float64 is not supported" in outcome.stderr
        assert outcome.stderr.count("simulated by cann_sim") == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HCCL_CONNECT_TIMEOUT", "soon"),
        ("HCCL_EXEC_TIMEOUT", "-1"),
        ("HCCL_IF_BASE_PORT", "1023"),
        ("HCCL_IF_BASE_PORT", "65521"),
        ("HCCL_IF_BASE_PORT", "60000a"),
        ("HCCL_SOCKET_IFNAME", "=nosuch0"),
        ("HCCL_IF_IP", "203.0.113.7"),
        ("CANN_SIM_HCCL_TRANSPORT", "rdma"),
    ],
)
def test_bad_environment_is_named(library: Path, name: str, value: str) -> None:
    (outcome,) = run_ranks(library, 1, lambda rank: rank.join(), environ={name: value}, limit=10)
    assert outcome.status == 1
    assert "EI0001" in outcome.stderr
    assert value.lstrip("=") in outcome.stderr


# ---- the port of a root ----


def test_a_taken_port_is_named_at_once(library: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        environ = {"HCCL_IF_BASE_PORT": str(port), "HCCL_CONNECT_TIMEOUT": "600"}
        (outcome,) = run_ranks(library, 1, lambda rank: rank.join(), environ=environ, limit=10)
    assert codes([outcome]) == [UNAVAIL]
    assert re.search(
        rf"EI0019: .* The IP address \S+ and port {port} have already been bound\.", outcome.stderr
    )
    assert "HCCL_IF_BASE_PORT" in outcome.stderr


def test_roots_of_one_process_share_its_port_and_leave_it(library: Path) -> None:
    """Rank 0 opens three roots before anybody comes to one; what is left of the first job does not hold the port."""
    port = free_port()

    def body(rank: Rank) -> list[int]:
        infos = [rank.root_info(f"root{number}", owner=rank.rank == 0) for number in range(3)]
        sums = []
        for info in reversed(infos):
            comm = ctypes.c_void_p()
            rank.call("HcclCommInitRootInfo", 2, info, rank.rank, ctypes.byref(comm))
            sums.append(all_reduce_int(rank, comm, 1 + rank.rank))
        name = ctypes.create_string_buffer(128)
        rank.call("HcclGetCommName", comm, name)
        assert f"%{port}_".encode() in name.value
        return sums

    for _ in range(3):
        found = values_of(run_ranks(library, 2, body, environ={"HCCL_IF_BASE_PORT": str(port)}))
        assert found == [[3, 3, 3]] * 2


def test_a_forked_child_opens_roots_of_its_own(library: Path) -> None:
    """Its parent waits at a port, which the child neither takes over nor keeps."""
    ports = free_port(), free_port()

    def body(rank: Rank) -> int:
        info = ctypes.create_string_buffer(4108)
        rank.call("HcclGetRootInfo", info)
        if os.fork() == 0:
            os.environ["HCCL_IF_BASE_PORT"] = str(ports[0])
            taken = rank.code("HcclGetRootInfo", info)
            os.environ["HCCL_IF_BASE_PORT"] = str(ports[1])
            rank.call("HcclCommInitAll", 1, (ctypes.c_int32 * 1)(0), (ctypes.c_void_p * 1)())
            os._exit(taken)
        return os.waitstatus_to_exitcode(os.wait()[1])

    assert values_of(run_ranks(library, 1, body, environ={"HCCL_IF_BASE_PORT": str(ports[0])})) == [UNAVAIL]


def test_error_strings(library: Path) -> None:
    lib = ctypes.CDLL(str(library))
    lib.HcclGetErrorString.restype = ctypes.c_char_p
    texts = [lib.HcclGetErrorString(code) for code in range(22)]
    assert len(set(texts)) == 22
    assert texts[TIMEOUT] == b"timeout"


# ---- several hosts ----


@pytest.mark.parametrize("selection", ["default", "interface", "address"])
def test_two_hosts(library: Path, hosts: list[str], selection: str) -> None:
    environ = {"interface": {"HCCL_SOCKET_IFNAME": "hccl"}, "address": {}, "default": {}}[selection]

    def body(rank: Rank) -> int:
        if selection == "address":
            os.environ["HCCL_IF_IP"] = f"198.18.7.{1 + rank.rank // 2}"
        rank.join()
        name = ctypes.create_string_buffer(128)
        rank.call("HcclGetCommName", rank.comm, name)
        assert name.value.startswith(b"198.18.7.1%")
        check_reductions(rank, "float32", "sum", LARGE)
        check_movements(rank, "int16", SMALL)
        return all_reduce_int(rank, rank.comm, 1)

    namespaces = [hosts[0], hosts[0], hosts[1], hosts[1]]
    assert values_of(run_ranks(library, 4, body, environ=environ, namespaces=namespaces)) == [4] * 4


def test_period_keeps_neighbouring_elements_apart() -> None:
    """Guards the tests above: a shifted or truncated buffer must differ from the expected one."""
    pattern = [contribution(1, index) for index in range(PERIOD)]
    assert all(a != b for a, b in pairwise(pattern))
