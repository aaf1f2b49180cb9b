r"""One network for many canvases.

A network runs fastest on a batch, but a canvas cannot make a second request before the first
is answered. So several canvases, each in a thread of its own, share a `BatchExecutor`:

    canvas 1 --\                                     +-- logits --> canvas 1
    canvas 2 ----> [ slot | slot | slot | padding ] -+-- logits --> canvas 2
    canvas 3 --/      one fixed shape, always        +-- logits --> canvas 3

A batch runs as soon as it is full, or as soon as no canvas is left that could add to it, so the
last canvases never wait for company. No thread belongs to the executor: whichever of the
waiting canvases sees that a batch may run, runs it for all of them. The network then works
with the interpreter lock released, while the other canvases prepare their next requests; with
twice as many canvases as slots there is a full batch waiting whenever one is finished.

The shape of the batch never changes, so a request's result does not depend on how many others
shared it, for any network that treats the samples of a batch alike and apart.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import as_triple

Float32 = npt.NDArray[np.float32]
# (b, z, y, x, 2) float32 (normalized image, object logits) to (b, z, y, x) logits.
Network = Callable[[Float32], Float32]


class NetworkError(RuntimeError):
    """The network failed on a batch; the cause is chained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutorCounters:
    """What an executor has done so far.

    Attributes:
      batches: calls of the network.
      fov_steps: requests answered.
      slots_padded: slots that were computed for nothing.
      network_s: seconds in the network, added up over concurrent calls.
      busy_s: seconds during which at least one call was under way.
    """

    batches: int = 0
    fov_steps: int = 0
    slots_padded: int = 0
    network_s: float = 0.0
    busy_s: float = 0.0


class BatchExecutor:
    """Runs a network on batches gathered from many threads.

    In each of the threads:

        with executor.client() as predict:
            flood_fill(image, predict, fov_shape, deltas)

    Requests are answered in the order in which their batches were begun. Thread-safe.
    """

    def __init__(
        self, network: Network, batch_size: int, fov_shape: Sequence[int], runners: int = 1
    ) -> None:
        """Prepares an executor.

        Args:
          network: takes (b, z, y, x, 2) float32, channels normalized image and object logits,
            and returns a new (b, z, y, x) array of logits. Called from the threads of the
            clients, by up to `runners` of them at once.
          batch_size: b, at least 1.
          fov_shape: z, y, x.
          runners: how many calls of the network may be under way at once. 1 suits a network
            that fills the processor by itself; with a single-threaded network and
            `batch_size` 1, as many as there are cores keep all of them busy.

        Raises:
          ValueError: `batch_size` or `runners` is less than 1.
        """
        if batch_size < 1 or runners < 1:
            raise ValueError(
                f'batch_size is {batch_size} and runners is {runners}: both must be at least 1'
            )
        self._network = network
        self._fov_shape = as_triple('fov_shape', fov_shape)
        self._batch_size = batch_size
        self._runners = runners
        self._lock = threading.Lock()
        # Batches that have not been run, oldest first; only the last may have free slots.
        self._pending: deque[_Batch] = deque()
        self._spare: list[Float32] = []
        self._running = 0
        self._busy_since = 0.0
        # Of the clients that have made a request and not left, those now waiting for an answer
        # cannot add to a batch.
        self._clients = 0
        self._clients_waiting = 0
        self._closed = False
        self._counters = ExecutorCounters()

    def __enter__(self) -> BatchExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuses further requests and fails those whose batch is not yet running."""
        with self._lock:
            self._closed = True
            while self._pending:
                self._finish(self._pending.popleft(), None, RuntimeError('executor closed'))

    @property
    def counters(self) -> ExecutorCounters:
        """A snapshot of the counters."""
        with self._lock:
            return self._counters

    @contextmanager
    def client(self) -> Iterator[Callable[[Float32, Float32], Float32]]:
        """Registers one canvas for as long as it floods; yields its `predict`.

        Batches wait for registered clients, so leave the context as soon as the canvas is
        done. A client counts from its first request on: computing seeds holds nobody up.
        """
        registered = False

        def predict(image_fov: Float32, logit_fov: Float32) -> Float32:
            nonlocal registered
            if not registered:
                registered = True
                with self._lock:
                    self._clients += 1
            return self._predict(image_fov, logit_fov, registered=True)

        try:
            yield predict
        finally:
            if registered:
                with self._lock:
                    self._clients -= 1
                    self._wake_runner()

    def predict(self, image_fov: Float32, logit_fov: Float32) -> Float32:
        """Runs the network on one field of view for a caller that is not a client.

        No batch waits for such callers, and theirs waits for clients only. A canvas should
        use `client`.

        Args:
          image_fov: zyx float32, normalized image. Copied, like `logit_fov`.
          logit_fov: zyx float32, object logits.

        Returns:
          zyx float32, the updated logits; a view of the batch's result, not to be written to.

        Raises:
          NetworkError: the network failed on the batch of this request, returned a wrong
            shape, or the executor was closed. Every client of that batch gets one; the
            executor remains usable.
        """
        return self._predict(image_fov, logit_fov, registered=False)

    def _predict(self, image_fov: Float32, logit_fov: Float32, registered: bool) -> Float32:
        with self._lock:
            if self._closed:
                raise NetworkError('the executor was closed: make a new one for more requests')
            batch = self._open_batch()
            slot = batch.add(image_fov, logit_fov, registered)
            self._clients_waiting += registered
            if batch is not self._pending[0]:
                # This may have been the last request that an older batch waited for.
                self._wake_runner()
            while not batch.finished:
                if batch is self._next_batch():
                    self._run_next_batch()
                else:
                    batch.wait()
            return batch.result(slot)

    def _open_batch(self) -> _Batch:
        if not self._pending or self._pending[-1].size == self._batch_size:
            shape = (self._batch_size, *self._fov_shape, 2)
            inputs = self._spare.pop() if self._spare else np.zeros(shape, np.float32)
            self._pending.append(_Batch(inputs, self._lock))
        return self._pending[-1]

    def _next_batch(self) -> _Batch | None:
        """The batch that may run now, if there is one."""
        if not self._pending or self._running == self._runners:
            return None
        oldest = self._pending[0]
        full = oldest.size == self._batch_size
        return oldest if full or self._clients_waiting >= self._clients else None

    def _wake_runner(self) -> None:
        batch = self._next_batch()
        if batch is not None:
            batch.wake_one()

    def _run_next_batch(self) -> None:
        """Runs the oldest batch with the lock released, and hands out its result."""
        batch = self._pending.popleft()
        self._running += 1
        started = time.perf_counter()
        if self._running == 1:
            self._busy_since = started
        self._lock.release()
        outputs, error = None, None
        try:
            outputs = self._call_network(batch)
        except BaseException as caught:  # Whatever it is, others wait for an answer.
            error = caught
        finally:
            ended = time.perf_counter()
            self._lock.acquire()
        self._running -= 1
        self._count(batch, started, ended)
        self._finish(batch, outputs, error)
        self._wake_runner()
        if error is not None and not isinstance(error, Exception):
            raise error

    def _call_network(self, batch: _Batch) -> Float32:
        batch.inputs[batch.size :] = 0.0
        outputs = np.asarray(self._network(batch.inputs), dtype=np.float32)
        if outputs.shape != batch.inputs.shape[:-1]:
            raise ValueError(
                f'the network returned shape {outputs.shape} for a batch of shape '
                f'{batch.inputs.shape} (b, z, y, x, channel): must be {batch.inputs.shape[:-1]}'
            )
        return outputs

    def _count(self, batch: _Batch, started: float, ended: float) -> None:
        counters = self._counters
        idle = self._running == 0
        self._counters = ExecutorCounters(
            batches=counters.batches + 1,
            fov_steps=counters.fov_steps + batch.size,
            slots_padded=counters.slots_padded + self._batch_size - batch.size,
            network_s=counters.network_s + ended - started,
            busy_s=counters.busy_s + (ended - self._busy_since if idle else 0.0),
        )

    def _finish(self, batch: _Batch, outputs: Float32 | None, error: BaseException | None) -> None:
        # Here, not when each thread wakes up: until then they would seem to wait for an answer
        # and the next batch would leave without them.
        self._clients_waiting -= batch.registered
        self._spare.append(batch.inputs)
        batch.finish(outputs, error)


class _Batch:
    """Requests that run together. Used with the executor's lock held."""

    def __init__(self, inputs: Float32, lock: threading.Lock) -> None:
        self.inputs = inputs
        self.size = 0
        self.registered = 0
        self.finished = False
        self._outputs: Float32 | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition(lock)

    def add(self, image_fov: Float32, logit_fov: Float32, registered: bool) -> int:
        """Copies a request into the next slot; returns the slot."""
        slot = self.size
        self.inputs[slot, ..., 0] = image_fov
        self.inputs[slot, ..., 1] = logit_fov
        self.size += 1
        self.registered += registered
        return slot

    def wait(self) -> None:
        try:
            self._changed.wait()
        except BaseException:
            # Interrupted: the wake-up may have been meant for whoever runs this batch.
            self._changed.notify()
            raise

    def wake_one(self) -> None:
        self._changed.notify()

    def finish(self, outputs: Float32 | None, error: BaseException | None) -> None:
        self._outputs, self._error, self.finished = outputs, error, True
        self._changed.notify_all()

    def result(self, slot: int) -> Float32:
        if self._outputs is None:
            raise NetworkError(
                f'no result for a batch of shape {self.inputs.shape}: {self._error!r}'
            ) from self._error
        return self._outputs[slot]
