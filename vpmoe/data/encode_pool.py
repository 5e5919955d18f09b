"""Encoding in several processes: blocks go out and come back in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from vpmoe.data.encode_block import BlockEncoder, EncodedBlock
from vpmoe.data.errors import DataError
from vpmoe.data.rows import Block
from vpmoe.processes import die_with_parent

_BLOCKS_IN_FLIGHT = 4  # per worker

_worker_encoder: BlockEncoder


@contextmanager
def encoded_blocks(
    encoder: BlockEncoder, workers: int, blocks: Iterator[tuple[int, Block]], lock: int
) -> Iterator[Iterator[tuple[int, Block, EncodedBlock]]]:
    """Encodes blocks, in processes where there is more than one worker.

    Args:
        encoder: goes to every worker.
        workers: processes; 1 encodes in this one.
        blocks: each with the number of its file.
        lock: descriptor of the build's lock, which workers must not keep.

    Yields:
        The blocks with what they were encoded to, in the order of the input.

    Raises:
        DataError: a worker was killed; the message names its rows.
    """
    if workers == 1:
        yield ((number, block, encoder.encode(block)) for number, block in blocks)
        return
    # Forking a process with torch's or anybody's threads is unsafe; without them it is free.
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    context = multiprocessing.get_context("fork" if alone else "spawn")
    # A forked worker that outlives a killed parent for a moment must not keep its lock.
    inherited = lock if alone else None
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(encoder, os.getpid(), inherited),
    )
    try:
        yield _in_order(pool, workers, blocks)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, workers: int, blocks: Iterator[tuple[int, Block]]
) -> Iterator[tuple[int, Block, EncodedBlock]]:
    pending: deque[tuple[int, Block, Future[EncodedBlock]]] = deque()
    try:
        for number, block in blocks:
            pending.append((number, block, pool.submit(_encode_in_worker, block)))
            if len(pending) >= _BLOCKS_IN_FLIGHT * workers:
                yield _first_result(pending)
        while pending:
            yield _first_result(pending)
    except BrokenProcessPool as error:
        first = pending[0][1] if pending else block
        raise DataError(
            f"{first.path}:{first.first_line}: a worker was killed at the rows from here on (out "
            "of memory?); run the same command again with fewer --workers"
        ) from error


def _first_result(
    pending: deque[tuple[int, Block, Future[EncodedBlock]]],
) -> tuple[int, Block, EncodedBlock]:
    number, block, future = pending[0]
    encoded = future.result()
    pending.popleft()
    return number, block, encoded


def _start_worker(encoder: BlockEncoder, parent: int, lock: int | None) -> None:
    global _worker_encoder
    # A build that was killed can't end its workers.
    die_with_parent(parent)
    if lock is not None:
        os.close(lock)
    _worker_encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _encode_in_worker(block: Block) -> EncodedBlock:
    return _worker_encoder.encode(block)
