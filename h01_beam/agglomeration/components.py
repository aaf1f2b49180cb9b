"""Connected components of a graph of any size: a *graph* stage, and a Beam algorithm by nature.

Randomized contraction: in every round each node is replaced by the node of smallest random
priority in its neighbourhood, and edges follow. For any graph and any ids, no more than a constant
fraction of the nodes that still have neighbours is expected to remain (a half on paths, less on
random graphs), so n nodes take O(log n) rounds.

Sources: random mate contraction (Reif 1985); smallest neighbour under a fresh random order
(Boegeholz, Brand & Todor 2020, arXiv:1802.09478; Lacki, Mirrokni & Wlodarczyk 2018,
arXiv:1807.10727). Against large-star/small-star (Kiveris et al. 2014) and hash-to-min (Rastogi et
al. 2013, arXiv:1203.5387): the table shrinks every round instead of keeping all n rows, no node's
neighbours ever meet in one place, so hubs and giant components cost nothing special, and O(log n)
rounds are proven for every graph.

One round has two shuffles. Groups (sets of nodes known to be connected, see `contraction.py`) live
in *shards* of bounded size, nodes in *partitions* by the hash of their id:

    shards      {a b c} {c d}    1. each shard: the smallest priority of each group is offered to
       |  offers                    the partitions of its nodes
    partitions   a->b c->d ..    2. each node takes its best offer; the group learns the new name
       |  links                     of its node
    shards      {b d}            3. groups in a shard that share a node unite, groups of one node
                                    are done; shards merge while they fit in `shard_rows`

Step 2 also tells the partition of the chosen node which nodes it now stands for: a *claim*, with
the smallest id seen. A node with claims but no offers is a finished component, and its smallest
id flows back along the claims, one shuffle per round:

    partitions of round r+1  --answers-->  partitions of round r  -- ... -->  (node, root)

Elements between steps are `(key, bytes)`: columns of uint64 behind a short header. Rows only fall,
and partitions with them, so late rounds send few messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue
from numpy.typing import NDArray

from h01_beam.agglomeration import contraction
from h01_beam.agglomeration.contraction import Ids, Indices
from h01_beam.agglomeration.messages import Message, columns_of, unpack_all

METRICS = 'connected_components'
DEFAULT_SHARD_ROWS = 1 << 20
BYTES_PER_ROW = 160  # what a step needs for each row that it gets, at most; a test measures it

Keyed: TypeAlias = tuple[int, bytes]
Shards: TypeAlias = list[tuple[int, int]]  # (shard, rows that it offered)

# What a message says. Columns in brackets.
_OFFER = 0  # (node, smallest priority in a group of it); source: the shard of the group
_CLAIM = 1  # (chosen node, smallest id it stands for); source: the partition that chose it
_LINK = 2  # (name of a group, a node of it)
_STATE = 3  # (node), (position in chosen of its replacement), (chosen): different lengths
_REQUEST = 4  # (position in node); source: the partition that wants the roots of these nodes
_ANSWER = 5  # (node, root)

_OFFERS, _SHARDS, _LINKS = 'offers', 'shards', 'links'
_CLAIMS, _STATES, _ANSWERS = 'claims', 'states', 'answers'


class ConnectedComponents(beam.PTransform):
    """Labels every node of a graph with the smallest id of its connected component.

    Input: edges, a PCollection of columnar batches: a mapping (or a pyarrow RecordBatch) with
    uint64 columns `a` and `b`; other columns are ignored. Batches may have any length; short ones
    are joined within a bundle and contracted before anything is shuffled. An edge (a, a) declares
    a node without neighbours.

    Output: PCollection of `(partition, {'node': (n,) uint64, 'root': (n,) uint64})`, one element
    per partition that has nodes: every id that occurs in an edge, once, ascending, and the smallest
    id of its component. The partition is a hash of the node. The output depends on the set of
    edges and on `partitions` alone: not on order, batches, duplicates, bundles, workers, runner.

    Memory of one step of a worker: BYTES_PER_ROW * max(shard_rows, (rows + nodes) / partitions).
    A node counts as one row for each batch of `shard_rows` in which it occurs, so nodes <= rows <=
    2 * edges, whatever the degrees and the sizes of components. `for_edges` keeps it constant
    with partitions = 4 * edges / shard_rows. The runner's own buffers come on top: DirectRunner
    keeps a worker's share of a whole shuffle in memory, engines with a shuffle service do not.

    Raises (in the pipeline): ValueError for an edge with the id 0; RuntimeError if the graph was
    not contracted within `rounds`, or if the runner lost or repeated a message: every step checks
    that what it gets is complete, as a wrong component is not seen otherwise.

    Attributes:
      partitions: number of parts in which nodes are processed.
      rounds: most rounds of contraction; unused ones cost a few empty steps. None: as many as
        the bound for `partitions * shard_rows` rows, with room to spare.
      shard_rows: most rows (node, group) processed at once in a shard.
    """

    def __init__(
        self,
        partitions: int,
        rounds: int | None = None,
        shard_rows: int = DEFAULT_SHARD_ROWS,
    ) -> None:
        super().__init__()
        if partitions < 1:
            raise ValueError(f'components.partitions is {partitions}: must be at least 1')
        if shard_rows < 2:
            raise ValueError(f'components.shard_rows is {shard_rows}: must be at least 2')
        if rounds is None:
            rounds = rounds_bound(partitions * shard_rows, shard_rows)
        if rounds < 2:
            raise ValueError(f'components.rounds is {rounds}: must be at least 2')
        self.partitions, self.rounds, self.shard_rows = partitions, rounds, shard_rows

    @classmethod
    def for_edges(
        cls, expected_edges: int, shard_rows: int = DEFAULT_SHARD_ROWS
    ) -> ConnectedComponents:
        """The transform for about this many edges, at constant memory per worker."""
        partitions = max(1, math.ceil(4 * expected_edges / shard_rows))
        return cls(partitions, rounds_bound(2 * expected_edges, shard_rows), shard_rows)

    def expand(self, edges: beam.PCollection) -> beam.PCollection:
        """Unrolls the rounds: Beam has no loops."""
        states, answers = self._contract(edges)
        for round_ in reversed(range(self.rounds - 1)):
            resolved = (
                (states[round_], *answers[round_ + 1])
                | f'FlattenAnswers{round_}' >> beam.Flatten()
                | f'GroupAnswers{round_}' >> beam.GroupByKey()
                | f'Resolve{round_}' >> beam.ParDo(_Resolve(final=round_ == 0))
            )
            answers[round_].append(resolved)
        return answers[0][-1]

    def _contract(
        self, edges: beam.PCollection
    ) -> tuple[list[beam.PCollection], list[list[beam.PCollection]]]:
        """Rounds of contraction: what the way back needs, per round."""
        states: list[beam.PCollection] = []
        answers: list[list[beam.PCollection]] = []
        step = edges | 'Contract' >> beam.ParDo(
            _Contract(self.partitions, self.shard_rows)
        ).with_outputs(_SHARDS, main=_OFFERS)
        messages: tuple[beam.PCollection, ...] = (step[_OFFERS],)
        before = None
        for round_ in range(self.rounds):
            shards = beam.pvalue.AsList(step[_SHARDS])
            elected = (
                messages
                | f'FlattenOffers{round_}' >> beam.Flatten()
                | f'GroupOffers{round_}' >> beam.GroupByKey()
                | f'Elect{round_}'
                >> beam.ParDo(
                    _Elect(self.partitions, self.shard_rows, round_, round_ == self.rounds - 1),
                    shards,
                    before,
                ).with_outputs(_CLAIMS, _STATES, _ANSWERS, main=_LINKS)
            )
            states.append(elected[_STATES])
            answers.append([elected[_ANSWERS]])
            if round_ == self.rounds - 1:
                break
            step = (
                elected[_LINKS]
                | f'GroupLinks{round_}' >> beam.GroupByKey()
                | f'Merge{round_}'
                >> beam.ParDo(
                    _Merge(self.partitions, self.shard_rows, round_ + 1), shards
                ).with_outputs(_SHARDS, main=_OFFERS)
            )
            messages, before = (step[_OFFERS], elected[_CLAIMS]), shards
        return states, answers


def _check(complete: bool, what: str, key: int) -> None:
    if not complete:
        raise RuntimeError(
            f'connected components: the runner lost or repeated {what} on the way to {key}; the '
            'result would be wrong. Beam 2.77 does so with DirectRunner in several processes if '
            'worker_handlers.DATA_BUFFER_TIME_LIMIT_MS is not 0: set it, or use one process'
        )


def rounds_bound(rows: int, shard_rows: int) -> int:
    """Rounds that suffice for so many rows (node, group), with room for bad luck.

    Counts two thirds of the nodes to remain after a round, more than any graph tried (paths: a
    half), until they fit in half a shard; then the number of shards halves with each round.
    """
    excess = max(1.0, rows / shard_rows)
    return 5 + math.ceil(math.log(2 * excess, 1.5) + math.log2(excess) / 2)


class _Contract(beam.DoFn):
    """Step 1 of round 0: joins batches of edges, contracts them and offers their nodes."""

    def __init__(self, partitions: int, shard_rows: int) -> None:
        self._partitions, self._shard_rows = partitions, shard_rows

    def start_bundle(self) -> None:
        self._pending: list[tuple[Ids, Ids]] = []
        self._rows = 0

    def process(self, batch: Mapping[str, Any]) -> Iterator[Any]:
        a, b = contraction.edge_columns(batch)
        step = max(1, self._shard_rows // 2)
        for start in range(0, len(a), step):
            piece = a[start : start + step], b[start : start + step]
            self._pending.append(piece)
            self._rows += 2 * len(piece[0])
            if self._rows > self._shard_rows:
                yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        for output in self._flush(all_=True):
            if isinstance(output, beam.pvalue.TaggedOutput):
                value = WindowedValue(output.value, window.max_timestamp(), (window,))
                yield beam.pvalue.TaggedOutput(output.tag, value)
            else:
                yield WindowedValue(output, window.max_timestamp(), (window,))

    def _flush(self, all_: bool = False) -> Iterator[Any]:
        """Contracts what is pending; sends it on unless it has become small enough to wait."""
        if not self._pending:
            return
        a, b = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        node, group = contraction.group_edges(a, b)
        if len(node) > self._shard_rows // 4 or all_:
            self._pending, self._rows = [], 0
            shard = int(np.bitwise_xor.reduce(contraction.priority(node, 0)) >> np.uint64(2))
            yield from _offer(node, group, shard, self._partitions, round_=0)
        else:
            root = contraction.smallest(node, group, len(node))[group]
            self._pending, self._rows = [(node, root)], 2 * len(node)


def _offer(
    node: Ids, group: Indices, shard: int, partitions: int, round_: int
) -> Iterator[Keyed | beam.pvalue.TaggedOutput]:
    """Offers to every node the smallest priority of its group, and tells the size of the shard."""
    priorities = contraction.priority(node, round_)
    best = contraction.smallest(priorities, group, int(group.max(initial=-1)) + 1)[group]
    for key, columns in contraction.split(contraction.partition_of(node, partitions), node, best):
        yield key, Message(_OFFER, shard, columns).pack()
    yield beam.pvalue.TaggedOutput(_SHARDS, (shard, len(node)))


class _Elect(beam.DoFn):
    """Step 2: replaces every node of a partition by the best offer it has got."""

    def __init__(self, partitions: int, shard_rows: int, round_: int, last: bool) -> None:
        self._partitions, self._shard_rows = partitions, shard_rows
        self._round, self._last = round_, last
        self._offers = Metrics.counter(METRICS, f'offers_{round_:02d}')
        self._live = Metrics.counter(METRICS, f'nodes_{round_:02d}')

    def process(
        self, keyed: tuple[int, Iterable[bytes]], shards: Shards, before: Shards | None
    ) -> Iterator[Any]:
        partition, messages = keyed[0], unpack_all(keyed[1])
        offered, offer = columns_of(messages, _OFFER, 2)
        claimed, least = columns_of(messages, _CLAIM, 2)
        if self._last and offered.size:
            raise RuntimeError(
                f'connected components: {offered.size} rows of partition {partition} are still '
                f'unresolved after components.rounds={self._round + 1}: allow more rounds'
            )
        self._offers.inc(offered.size)
        if before is not None:
            expected = set(contraction.pack_shards(before, self._shard_rows).values())
            _check(expected == {shard for shard, _ in shards}, 'a shard', partition)
        table, index = np.unique(np.concatenate([offered, claimed]), return_inverse=True)
        row, claim = index[: offered.size], index[offered.size :]
        live = np.zeros(table.size, bool)
        live[row] = True
        root = contraction.smallest(least, claim, table.size) if self._round else table
        _check(table.size == 0 or root.max() < contraction.NONE, 'a claim', partition)
        yield from self._settle(messages, claim, live, table, root, partition)
        if row.size:
            rank = np.cumsum(live) - 1
            nodes = int(rank[-1]) + 1
            self._live.inc(nodes)
            chosen, of_live = contraction.elect(rank[row], offer, nodes, self._round)
            yield self._state(partition, table[live], of_live, chosen)
            least = contraction.smallest(root[live], of_live, chosen.size)
            yield from self._claim(chosen, least, partition, shards)
            yield from self._link(messages, chosen[of_live[rank[row]]], offer, shards)

    def _claim(
        self, chosen: Ids, least: Ids, partition: int, shards: Shards
    ) -> Iterator[beam.pvalue.TaggedOutput]:
        partitions = contraction.next_partitions(shards, self._partitions, self._shard_rows)
        keys = contraction.partition_of(chosen, partitions)
        for key, columns in contraction.split(keys, chosen, least):
            claim = Message(_CLAIM, partition, columns)
            yield beam.pvalue.TaggedOutput(_CLAIMS, (key, claim.pack()))

    def _settle(
        self,
        messages: list[Message],
        claim: Indices,
        live: NDArray[np.bool_],
        table: Ids,
        root: Ids,
        partition: int,
    ) -> Iterator[beam.pvalue.TaggedOutput]:
        """Answers the claims on finished nodes; keeps the others as requests for the way back."""
        rank = np.cumsum(live) - 1
        start = 0
        for message in messages:
            if message.kind != _CLAIM:
                continue
            nodes = claim[start : start + message.rows]
            start += len(nodes)
            waits = live[nodes]
            done = nodes[~waits]
            if done.size:
                answer = Message(_ANSWER, partition, (table[done], root[done]))
                yield beam.pvalue.TaggedOutput(_ANSWERS, (message.source, answer.pack()))
            if waits.any():
                request = Message(_REQUEST, message.source, (rank[nodes[waits]],))
                yield beam.pvalue.TaggedOutput(_STATES, (partition, request.pack()))

    @staticmethod
    def _state(
        partition: int, node: Ids, of_live: Indices, chosen: Ids
    ) -> beam.pvalue.TaggedOutput:
        state = Message(_STATE, partition, (node, of_live.view(np.uint64), chosen))
        return beam.pvalue.TaggedOutput(_STATES, (partition, state.pack()))

    def _link(
        self,
        messages: list[Message],
        replacement: Ids,
        offer: Ids,
        shards: Shards,
    ) -> Iterator[Keyed]:
        """Tells every group, named by its offer, the new name of its node."""
        merged = contraction.pack_shards(shards, self._shard_rows)
        pieces: dict[int, list[slice]] = {}
        start = 0
        for message in messages:
            if message.kind == _OFFER:
                rows = slice(start, start + message.rows)
                pieces.setdefault(merged[message.source], []).append(rows)
                start = rows.stop
        for shard, slices in pieces.items():
            columns = tuple(
                np.concatenate([column[rows] for rows in slices]) for column in (offer, replacement)
            )
            yield shard, Message(_LINK, 0, columns).pack()


class _Merge(beam.DoFn):
    """Step 3, and step 1 of the next round: unites the groups of a shard, offers their nodes.

    Groups of several shards may share a name, the priority of one of their nodes: they share it.
    """

    def __init__(self, partitions: int, shard_rows: int, next_round: int) -> None:
        self._partitions, self._shard_rows, self._round = partitions, shard_rows, next_round

    def process(self, keyed: tuple[int, Iterable[bytes]], shards: Shards) -> Iterator[Any]:
        messages = unpack_all(keyed[1])
        # Every row that was offered comes back as one link.
        merged = contraction.pack_shards(shards, self._shard_rows)
        expected = sum(rows for shard, rows in shards if merged[shard] == keyed[0])
        _check(sum(message.rows for message in messages) == expected, 'a link', keyed[0])
        node, group = contraction.merge_groups(*columns_of(messages, _LINK, 2))
        partitions = contraction.next_partitions(shards, self._partitions, self._shard_rows)
        yield from _offer(node, group, keyed[0], partitions, self._round)


class _Resolve(beam.DoFn):
    """The way back: gives the nodes of a partition the roots of the nodes that replaced them."""

    def __init__(self, final: bool) -> None:
        self._final = final

    def process(self, keyed: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        partition, messages = keyed[0], unpack_all(keyed[1])
        states = [m.columns for m in messages if m.kind == _STATE]
        _check(len(states) == 1, 'a state', partition)
        node, of_node, chosen = states[0]
        answered, root = columns_of(messages, _ANSWER, 2)
        order = np.argsort(answered)
        _check(np.array_equal(answered[order], chosen), 'an answer', partition)
        root = root[order][of_node.view(np.int64)]
        if self._final:
            yield partition, {'node': node.copy(), 'root': root}
        for message in messages:
            if message.kind == _REQUEST:
                index = message.columns[0].view(np.int64)
                answer = Message(_ANSWER, partition, (node[index], root[index]))
                yield message.source, answer.pack()
