"""Training batches made ahead of need: by threads of this process, or through Grain, in processes of their own too."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

from absl import flags

from gphm_jax.data import packed
from gphm_jax.data.sampler import BatchSampler, prefetch
from gphm_jax.errors import InputError
from gphm_jax.types import Batch

_DEPTH = 2  # batches ahead of the one in use, of each process


def training_batches(
    sampler: BatchSampler, *, start_step: int, stop_step: int, processes: int = 0
) -> Generator[Batch, None, None]:
    """Batches `start_step` ... `stop_step` - 1 in order, made ahead of need.

    Packed data, and any data where `processes` make the batches, come through Grain; a plain folder through
    `prefetch`, which needs no package. All give the same bits: batches depend on (seed, step) alone, so that the step
    count in a checkpoint is the position, for any number of processes. An error is raised at the batch it belongs to.
    """
    if not processes and not packed.is_packed(sampler.dataset.path):
        yield from prefetch(sampler, start_step=start_step, stop_step=stop_step, depth=_DEPTH)
        return
    iterator = iter(grain_batches(sampler, start_step=start_step, stop_step=stop_step, processes=processes))
    try:
        yield from iterator
    finally:
        iterator.close()


def grain_batches(sampler: BatchSampler, *, start_step: int, stop_step: int, processes: int) -> Any:
    """The batches as a `grain.IterDataset`, whose iterator's state (`get_state`) is a position too."""
    try:
        import grain
    except ImportError as error:
        raise InputError(
            "packed data and data.processes need Grain: pip install 'gphm_jax[packed]', or train on the plain dataset "
            "with data.processes=0"
        ) from error
    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, also where the caller is no absl program
        flags.FLAGS.mark_as_parsed()
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_DEPTH)
    batches = grain.MapDataset.source(_Steps(sampler, start_step, stop_step)).to_iter_dataset(reading)
    if not processes:
        return batches
    options = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=_DEPTH)
    return batches.mp_prefetch(options, worker_init_fn=_one_thread)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Batches by number, as Grain reads a source."""

    sampler: BatchSampler
    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, index: int) -> Batch:
        return self.sampler.batch(self.start + index)


def _one_thread(worker: int, workers: int) -> None:
    """The processes are the parallelism."""
    del worker, workers
    import cv2

    cv2.setNumThreads(1)
