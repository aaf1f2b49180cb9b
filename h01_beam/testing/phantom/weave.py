"""Which neurite runs where: a weave of tracks in three directions that never meet.

Space is cut into cubic cells of `PITCH_NM`. Through every cell run three tracks, one in each
direction d, at fixed places in the other two, e = d + 1 and f = d + 2 (modulo 3):

    u_e = i * pitch,   u_f = (j + 1/2) * pitch        u_e ^   x    |    x      x track of d
                                                          |        |           | track of e
    This is the cubic packing of rods of three            |   x    |    x
    directions: any two tracks are half a pitch           |        |             at half a pitch
    apart, or more. Between them lie voids, at the        +---------------> u_d
    corners and the centres of the cells, where
    spines, boutons and branches find their place.

A track's nodes lie half a pitch apart, at u_d = k * pitch / 2. Node k has one void on either side:
along f where k is even (the void is a cell corner), along e where it is odd (a cell centre).
Voids are named by their position in half pitches, three even or three odd numbers; a void has
six tracks around it, two of each direction.

A track is cut into pieces, one neurite each, at one random place in every interval of `INTERVAL`
nodes, and where it meets a soma or a vessel. A piece may begin as a branch: it is then tied
through a void to the piece beyond, and is the same neurite. Everything is a function of the seed
and of the position, so any part of the infinite tissue can be made on its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from h01_beam.testing.noise import uniform

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Reals = npt.NDArray[np.float64]

PITCH_NM = 820.0
# Nodes in which every track has one end, and cells (half as many) that may hold one soma.
INTERVAL = 60
CELLS = INTERVAL // 2
# Every third track in both axes is thick: a dendrite, or a myelinated axon.
THICK_EVERY = 3

AXON, DENDRITE, GLIA, MYELINATED = 1, 2, 3, 4
NO_BODY, SOMA, VESSEL = 0, 1, 2

_MYELINATED_SHARE = 0.1
_GLIA_SHARE = 0.2
_BRANCH_SHARE = 0.5
_SOMA_SHARE = 0.85
_SOMA_DENDRITES = 0.14
_VESSEL_EVERY = 3

# Purposes of random numbers; see `noise.uniform`.
_KIND, _BREAK, _BRANCH, _BODY, _STEM = range(100, 105)


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Tracks, or nodes of tracks, as four integer arrays of one shape: d, i, j and node k."""

    d: Ints
    i: Ints
    j: Ints
    k: Ints

    def __getitem__(self, where: Ints | Bools) -> Tracks:
        return Tracks(self.d[where], self.i[where], self.j[where], self.k[where])

    def __len__(self) -> int:
        return len(self.d)

    def with_k(self, k: Ints) -> Tracks:
        return dataclasses.replace(self, k=k)


@dataclasses.dataclass(frozen=True)
class Bodies:
    """What the cells' intervals hold, one each: arrays of one length.

    Attributes:
      kind: NO_BODY, SOMA or VESSEL.
      centre: (n, 3) lattice nm; of a vessel, a point of its axis, which runs along u_2.
      radius_nm: of its surface.
      cell: (n, 3) index of the interval.
    """

    kind: Ints
    centre: Reals
    radius_nm: Reals
    cell: Ints


class Weave:
    """The tracks of one seed. All methods are vectorized over tracks, nodes or voids."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    # -------------------------------------------------------------- tracks and their pieces

    def is_thick(self, t: Tracks) -> Bools:
        return (t.i % THICK_EVERY == t.d) & (t.j % THICK_EVERY == (t.d + 1) % THICK_EVERY)

    def kind(self, t: Tracks) -> Ints:
        """Kind of a track, before branches: AXON, DENDRITE, GLIA or MYELINATED."""
        draw = uniform(self.seed, _KIND, t.d, t.i, t.j)
        thin = np.where(draw < _GLIA_SHARE, GLIA, AXON)
        thick = np.where(draw < _MYELINATED_SHARE, MYELINATED, DENDRITE)
        return np.where(self.is_thick(t), thick, thin)

    def break_after(self, t: Tracks, interval: Ints) -> Ints:
        """The node after which the track is cut in an interval."""
        draw = uniform(self.seed, _BREAK, t.d, t.i, t.j, interval)
        return interval * INTERVAL + 1 + (draw * (INTERVAL - 3)).astype(np.int64)

    def piece(self, t: Tracks) -> Ints:
        """Number of the piece that a node belongs to: the interval in which the piece begins."""
        interval = t.k // INTERVAL
        return np.where(t.k > self.break_after(t, interval), interval, interval - 1)

    # -------------------------------------------------------------- voids

    def void(self, t: Tracks, side: Ints) -> Ints:
        """(n, 3) half-pitch position of the void beside a node, on side -1 or +1."""
        even = t.k % 2 == 0
        position = np.empty((len(t), 3), np.int64)
        rows = np.arange(len(t))
        position[rows, t.d] = t.k
        position[rows, (t.d + 1) % 3] = 2 * t.i + np.where(even, 0, side)
        position[rows, (t.d + 2) % 3] = 2 * t.j + 1 + np.where(even, side, 0)
        return position

    def around(self, voids: Ints) -> Tracks:
        """The six nodes around each void, (n, 6): d = 0, 0, 1, 1, 2, 2 at sides -, +, ...

        The track at index 2 * d has the void on its side +1, the next one on its side -1.
        """
        d, sign = np.divmod(np.arange(6), 2)
        d = np.broadcast_to(d, (len(voids), 6))
        sign = np.broadcast_to(2 * sign - 1, d.shape)
        e = np.take_along_axis(voids, (d + 1) % 3, axis=1)
        f = np.take_along_axis(voids, (d + 2) % 3, axis=1)
        k = np.take_along_axis(voids, d, axis=1)
        even = voids[:, :1] % 2 == 0
        i = (e + np.where(even, 0, sign)) // 2
        j = (f + np.where(even, sign, 0) - 1) // 2
        return Tracks(d, i, j, k)

    # -------------------------------------------------------------- branches

    def begins_as_branch(self, t: Tracks) -> tuple[Bools, Ints]:
        """Whether the piece that begins at node k asks to be a branch; and on which side.

        Only odd pieces of thin tracks do, and only even pieces are asked, so that a neurite is a
        trunk and its branches, found without following chains.
        """
        before = t.with_k(t.k - 1)
        interval = before.k // INTERVAL
        begins = self.break_after(t, interval) == before.k
        draw = uniform(self.seed, _BRANCH, t.d, t.i, t.j, interval)
        side = np.where(draw < 0.5 * _BRANCH_SHARE, -1, 1)
        wanted = begins & (interval % 2 == 1) & (draw < _BRANCH_SHARE) & ~self.is_thick(t)
        parent = self.beyond(t, side)
        kind = self.kind(parent)
        wanted &= (self.piece(parent) % 2 == 0) & (kind != MYELINATED)
        wanted &= ~self.is_cut(t)[0] & ~self.is_cut(parent)[0]
        return wanted, side

    def beyond(self, t: Tracks, side: Ints) -> Tracks:
        """The node of the parallel track across the void on a side."""
        even = t.k % 2 == 0
        return Tracks(t.d, t.i + np.where(even, 0, side), t.j + np.where(even, side, 0), t.k)

    def branch_at(self, voids: Ints) -> Ints:
        """Which of the six nodes around a void begins as a branch through it; -1 for none.

        Where several ask, the first gets it.
        """
        nodes = self.around(voids)
        flat = Tracks(*(a.ravel() for a in (nodes.d, nodes.i, nodes.j, nodes.k)))
        wanted, side = self.begins_as_branch(flat)
        towards = np.tile([1, -1], 3 * len(voids))
        wanted = (wanted & (side == towards)).reshape(len(voids), 6)
        return np.where(wanted.any(axis=1), wanted.argmax(axis=1), -1)

    def trunk(self, t: Tracks) -> tuple[Tracks, Ints]:
        """The node of the trunk that a branch hangs on, for nodes of branches; and their piece.

        Nodes that are on no branch come back as they are.
        """
        piece = self.piece(t)
        first = t.with_k(self.break_after(t, piece) + 1)
        odd = np.flatnonzero((piece % 2 == 1) & ~self.is_thick(t))
        d, i, j, k, owner = (a.copy() for a in (t.d, t.i, t.j, t.k, piece))
        if len(odd):
            start = first[odd]
            wanted, side = self.begins_as_branch(start)
            asked = self.branch_at(self.void(start, side))
            # Around the void, the track with the void on its side +1 comes first.
            granted = wanted & (asked == 2 * start.d + (side < 0))
            where, parent = odd[granted], self.beyond(start[granted], side[granted])
            d[where], i[where], j[where], k[where] = parent.d, parent.i, parent.j, parent.k
            owner[where] = self.piece(parent)
        return Tracks(d, i, j, k), owner

    # -------------------------------------------------------------- somata and vessels

    def bodies(self, cell: Ints) -> Bodies:
        """What intervals hold; `cell` is (n, 3), in units of `CELLS` pitches."""
        draw = [uniform(self.seed, _BODY, part, *cell.T) for part in range(6)]
        vessel = (cell[:, 0] % _VESSEL_EVERY == 0) & (cell[:, 1] % _VESSEL_EVERY == 1)
        # A vessel is straight through all intervals along u_2: its place must not depend on it.
        column = [
            uniform(self.seed, _BODY, part, cell[:, 0], cell[:, 1], 0) for part in range(6, 9)
        ]
        kind = np.where(draw[0] < _SOMA_SHARE, SOMA, NO_BODY)
        kind = np.where(vessel, VESSEL, kind)
        radius = np.where(vessel, 2500 + 900 * column[0], 4200 + 2200 * draw[1])
        size = CELLS * PITCH_NM
        margin = (radius + 2000)[:, None]
        place = np.stack(draw[2:5], axis=1)
        place[:, :2] = np.where(vessel[:, None], np.stack(column[1:], axis=1), place[:, :2])
        centre = cell * size + margin + place * (size - 2 * margin)
        return Bodies(kind, centre, radius, cell)

    def is_cut(self, t: Tracks) -> tuple[Bools, Bools, Bodies]:
        """Whether a track is cut by the body of a node's interval.

        Returns:
          whether it is, whether the node lies behind the cut, and the body.
        """
        # In units of half pitches, 2 i and 2 j + 1 on the other two axes.
        cell = np.empty((len(t), 3), np.int64)
        rows, e, f = np.arange(len(t)), (t.d + 1) % 3, (t.d + 2) % 3
        cell[rows, t.d] = t.k // INTERVAL
        cell[rows, e] = t.i // CELLS
        cell[rows, f] = t.j // CELLS
        body = self.bodies(cell)
        along = body.centre[rows, t.d]
        off_e = body.centre[rows, e] - t.i * PITCH_NM
        off_f = body.centre[rows, f] - (t.j + 0.5) * PITCH_NM
        # A vessel has no extent along u_2: that offset does not count.
        vessel = body.kind == VESSEL
        off_e = np.where(vessel & (e == 2), 0.0, off_e)
        off_f = np.where(vessel & (f == 2), 0.0, off_f)
        near = np.hypot(off_e, off_f) < body.radius_nm + 1000
        cut = near & (body.kind != NO_BODY) & ~(vessel & (t.d == 2))
        return cut, t.k * (PITCH_NM / 2) > along, body

    def section(self, t: Tracks, piece: Ints) -> tuple[Ints, Bodies, Bools]:
        """How often bodies cut a piece before a node, and the soma that its part touches.

        A piece lies in two intervals, that in which it begins and the next, so it has at most two
        cuts.

        Returns:
          number of cuts before the node; the body at which the part of the piece begins or, if it
          begins at none, ends; whether there is one.
        """
        first = t.with_k(piece * INTERVAL)
        second = t.with_k((piece + 1) * INTERVAL)
        end = self.break_after(t, piece + 1)
        start = self.break_after(t, piece)
        cut1, _, body1 = self.is_cut(first)
        cut2, _, body2 = self.is_cut(second)
        rows = np.arange(len(t))
        at1 = body1.centre[rows, t.d] / (PITCH_NM / 2)
        at2 = body2.centre[rows, t.d] / (PITCH_NM / 2)
        cut1 &= at1 > start
        cut2 &= at2 < end
        past1, past2 = cut1 & (t.k > at1), cut2 & (t.k > at2)
        touches = cut1 | cut2
        # Behind the second cut, or before it and behind (or without) the first: see above.
        use2 = past2 | (cut2 & ~cut1)
        body = Bodies(
            *(
                np.where(use2.reshape((-1,) + (1,) * (a.ndim - 1)), b, a)
                for a, b in zip(
                    (body1.kind, body1.centre, body1.radius_nm, body1.cell),
                    (body2.kind, body2.centre, body2.radius_nm, body2.cell),
                    strict=True,
                )
            )
        )
        return past1.astype(np.int64) + past2, body, touches & (body.kind == SOMA)

    def stems(self, t: Tracks, body: Bodies) -> Bools:
        """Whether tracks that touch a soma belong to it: some dendrites, and one axon."""
        draw = uniform(self.seed, _STEM, t.d, t.i, t.j, *body.cell.T)
        dendrite = (self.kind(t) == DENDRITE) & (draw < _SOMA_DENDRITES)
        rows, e, f = np.arange(len(t)), (t.d + 1) % 3, (t.d + 2) % 3
        through_e = np.rint(body.centre[rows, e] / PITCH_NM) == t.i
        through_f = np.rint(body.centre[rows, f] / PITCH_NM - 0.5) == t.j
        towards = t.d == (body.cell.sum(axis=1) % 3)
        axon = (self.kind(t) == AXON) & through_e & through_f & towards
        return dendrite | axon
