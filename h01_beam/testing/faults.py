"""Faults of a bucket on purpose: which request meets which, drawn from a seed.

The bucket emulator (`h01_beam.testing.bucket`) asks an `Injector` for every request. Clients see
what a real bucket would do to them: the faults are answers over HTTP, or the lack of one.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import json
import random
import threading
from collections.abc import Mapping
from http import HTTPStatus

# What may happen to a request, and how often beside the others. `busy` is 429, `down` is 503;
# `hung` gets no answer; of `cut` reads a part comes, of `slow` ones all of it, late; of a `lost`
# one the work is done, but not answered; `forbidden` and `full` are as in a plan, for once.
KINDS: Mapping[str, int] = {
    'busy': 4,
    'busy_retry_after': 4,
    'down': 4,
    'down_retry_after': 4,
    'hung': 2,
    'cut': 4,
    'slow': 3,
    'lost': 3,
    'forbidden': 1,
    'full': 1,
}
OF_READS, OF_WRITES = frozenset({'cut', 'slow'}), frozenset({'full'})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """What goes wrong with a bucket.

    Attributes:
      seed: of the draw.
      count: of faults, after which the bucket works.
      rate: of requests that meet one, until then.
      kinds: of `KINDS`, and their weights.
      denied: patterns (fnmatch) of names of objects that nobody may read or write, BUCKET/KEY.
      capacity_bytes: all objects together; writes beyond are refused. None: no limit.
      hung_s: how long a request hangs, if its client waits for so long.
      slow_s: how long a slow read takes.
      retry_after_s: what the answers with that header ask for.
    """

    seed: int = 0
    count: int = 0
    rate: float = 0.05
    kinds: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(KINDS))
    denied: tuple[str, ...] = ()
    capacity_bytes: int | None = None
    hung_s: float = 30.0
    slow_s: float = 0.5
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        for kind, weight in self.kinds.items():
            if kind not in KINDS or weight < 0:
                raise ValueError(
                    f'kinds has {kind!r}: {weight}: must be weights of {", ".join(KINDS)}'
                )
        if self.count and not 0 < self.rate <= 1:
            raise ValueError(f'rate is {self.rate}: must be above 0, and at most 1')


@dataclasses.dataclass(frozen=True)
class Access:
    """A request, as far as faults go.

    Attributes:
      name: BUCKET/KEY of the object, or '' for requests of another kind.
      reads: whether it asks for an object's bytes.
      write_bytes: how many bytes it would add to the bucket; 0 if it writes none.
    """

    name: str
    reads: bool = False
    write_bytes: int = 0


class Injector:
    """Draws faults for requests, and counts them. Safe for threads."""

    def __init__(self, plan: FaultPlan = FaultPlan()):
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self.set_plan(plan)

    def set_plan(self, plan: FaultPlan) -> None:
        """Starts a plan; what was counted is forgotten."""
        draw = random.Random(plan.seed)
        kinds = sorted(plan.kinds)
        weights = [plan.kinds[kind] for kind in kinds]
        with self._lock:
            self.plan, self._draw = plan, draw
            self._deck = draw.choices(kinds, weights, k=plan.count) if plan.count else []
            self._counts.clear()

    def draw(self, access: Access, used_bytes: int) -> str | None:
        """The fault that a request meets, of `KINDS`, or None.

        Args:
          access: the request.
          used_bytes: what all objects take.
        """
        with self._lock:
            kind = self._lasting(access, used_bytes) or self._passing(access)
            if kind:
                self._counts[kind] += 1
            return kind

    def note(self, kind: str) -> None:
        """Counts a fault that was made elsewhere: a worker that was killed, for example."""
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        """Faults so far by kind, sorted by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def _lasting(self, access: Access, used_bytes: int) -> str | None:
        if any(fnmatch.fnmatchcase(access.name, pattern) for pattern in self.plan.denied):
            return 'forbidden'
        capacity = self.plan.capacity_bytes
        if capacity is not None and access.write_bytes:
            return 'full' if used_bytes + access.write_bytes > capacity else None
        return None

    def _passing(self, access: Access) -> str | None:
        """The next kind in the deck that such a request can meet, if it is to meet any."""
        if not access.name or not self._deck or self._draw.random() >= self.plan.rate:
            return None
        for position, kind in enumerate(self._deck):
            if kind in OF_READS and not access.reads:
                continue
            if kind in OF_WRITES and not access.write_bytes:
                continue
            return self._deck.pop(position)
        return None


def refusal(kind: str, access: Access, plan: FaultPlan) -> tuple[HTTPStatus, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request that is refused."""
    status, reason, message = {
        'busy': (HTTPStatus.TOO_MANY_REQUESTS, 'rateLimitExceeded', 'too many requests'),
        'down': (HTTPStatus.SERVICE_UNAVAILABLE, 'backendError', 'the backend is not there'),
        'forbidden': (
            HTTPStatus.FORBIDDEN, 'forbidden', f'no storage.objects access to {access.name}',
        ),
        'full': (
            HTTPStatus.FORBIDDEN, 'quotaExceeded', 'the storage quota of the project is exceeded',
        ),
    }[kind.removesuffix('_retry_after')]  # fmt: skip
    error = {'domain': 'global', 'reason': reason, 'message': message}
    body = {'error': {'code': status.value, 'message': message, 'errors': [error]}}
    headers = {'Content-Type': 'application/json'}
    if kind.endswith('_retry_after'):
        headers['Retry-After'] = str(plan.retry_after_s)
    return status, headers, json.dumps(body).encode()
