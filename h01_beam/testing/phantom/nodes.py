"""The nodes of all tracks in a part of the lattice, and whose they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from h01_beam.testing.noise import uniform
from h01_beam.testing.phantom import curves
from h01_beam.testing.phantom.bodies import Bodies, soma_ids
from h01_beam.testing.phantom.weave import (
    AXON,
    DENDRITE,
    MYELINATED,
    PITCH_NM,
    Ints,
    Reals,
    Tracks,
    Weave,
)

Ids = npt.NDArray[np.uint64]

_RADIUS, _WOBBLE, _TYPE, _SHEATH = range(400, 404)
_INHIBITORY_SHARE = 0.17


class NodeTable:
    """Arrays over nodes, in ascending order of d, i, j, k.

    Attributes:
      tracks: d, i, j and k of each.
      world, halfway: (n, 3) positions (nm) of the node, and half way to the next one.
      owner: id of the neurite.
      part: the stretch of track between two cuts that the node is in.
      kind: of the neurite; `inhibitory`, its type.
      alive: false in somata and vessels.
      joined: whether this node and the next are one neurite.
      beside_body: whether the node before or after is in a body.
      radius: nm; `sheath`, of it, myelin.
      swollen: whether a synapse made it so.
    """

    def __init__(self, weave: Weave, tracks: Tracks, bodies: Bodies, thin: float) -> None:
        self.weave, self.tracks, self.bodies = weave, tracks, bodies
        lattice = curves.lattice_positions(weave, tracks)
        self.world = curves.to_world(weave.seed, lattice)
        half = curves.lattice_positions(weave, tracks, half=True)
        self.halfway = curves.to_world(weave.seed, half)
        self.alive = ~bodies.swallow(lattice, self.world)
        self._own()
        follows = np.zeros(len(tracks), np.bool_)
        follows[:-1] = (np.diff(tracks.k) == 1) & (np.diff(tracks.d) == 0)
        after = np.minimum(np.arange(len(tracks)) + 1, len(tracks) - 1)
        before = np.maximum(np.arange(len(tracks)) - 1, 0)
        same = self.part == self.part[after]
        self.joined = follows & same & self.alive & self.alive[after]
        self.beside_body = (follows & ~self.alive[after]) | (follows[before] & ~self.alive[before])
        self._shape(thin)
        self.swollen = np.zeros(len(tracks), np.bool_)

    def __len__(self) -> int:
        return len(self.tracks)

    def following(self, index: Ints) -> Ints:
        return index + 1

    def find(self, t: Tracks) -> Ints:
        """Indices of nodes, -1 for those outside of this part."""
        keys = _pack(t)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, place, -1)

    def swell(self, *boutons: Ints) -> None:
        """Widens axons at their synapses, once the kinds of all nodes are known."""
        at = np.unique(np.concatenate(boutons))
        t = self.tracks[at]
        draw = uniform(self.weave.seed, _WOBBLE, 7, t.d, t.i, t.j, t.k)
        self.radius[at] = np.maximum(self.radius[at], 130.0 + 110.0 * draw)
        self.swollen[at] = True

    def _own(self) -> None:
        """Sets owner, part and kind: of a branch those of its trunk, of a stem its soma's."""
        weave, tracks = self.weave, self.tracks
        self._keys = _pack(tracks)
        piece = weave.piece(tracks)
        cuts, body, touches = weave.section(tracks, piece)
        self.part = pack_part(tracks, piece, cuts)
        _, first, inverse = np.unique(self.part, return_index=True, return_inverse=True)
        one, piece, cuts = tracks[first], piece[first], cuts[first]
        trunk, trunk_piece = weave.trunk(one)
        # Behind a cut of its own, a branch is a neurite of its own.
        branch = (cuts == 0) & (_pack(trunk) != _pack(one))
        trunk = Tracks(
            *(np.where(branch, a, b) for a, b in zip(_arrays(trunk), _arrays(one), strict=True))
        )
        trunk_piece = np.where(branch, trunk_piece, piece)
        trunk_cuts, body, touches = weave.section(trunk, trunk_piece)
        owner = pack_part(trunk, trunk_piece, np.where(branch, trunk_cuts, cuts))
        kind = weave.kind(trunk)
        stem = touches & weave.stems(trunk, body)
        if stem.any():
            owner[stem] = soma_ids(body.cell[stem])
        self.owner, self.kind = owner[inverse], kind[inverse]
        draw = uniform(weave.seed, _TYPE, owner.astype(np.int64))
        self.inhibitory = (draw < _INHIBITORY_SHARE)[inverse]

    def _shape(self, thin: float) -> None:
        """Sets radius and sheath."""
        seed, t = self.weave.seed, self.tracks
        draw = uniform(seed, _RADIUS, self.owner.astype(np.int64))
        wobble = uniform(seed, _WOBBLE, t.d, t.i, t.j, t.k)
        own_thick = self.weave.is_thick(t)
        thick = curves.thick_radius_nm(self.weave, t)
        axon = thin * (60.0 + 110.0 * draw * draw + 45.0 * wobble)
        glia = thin * (75.0 + 190.0 * wobble * wobble)
        # A dendrite that has taken over a thin track is a thin branch.
        dendrite = np.where(own_thick, thick * (0.85 + 0.3 * wobble), 130.0 + 60.0 * wobble)
        self.radius = np.select(
            [self.kind == AXON, self.kind == DENDRITE, self.kind == MYELINATED],
            [axon, dendrite, thick * (0.94 + 0.12 * wobble)],
            glia,
        )
        sheath = 70.0 + 70.0 * uniform(seed, _SHEATH, t.d, t.i, t.j)
        self.sheath = np.where(self.kind == MYELINATED, sheath, 0.0)


def make_nodes(weave: Weave, low: Reals, high: Reals, bodies: Bodies, thin: float) -> NodeTable:
    """Lists the nodes between two lattice positions (nm); axons are `thin` times as wide."""
    cells = [
        np.arange(int(a // PITCH_NM), int(b // PITCH_NM) + 2)
        for a, b in zip(low, high, strict=True)
    ]
    parts = []
    for d in range(3):
        i, j, along = cells[(d + 1) % 3], cells[(d + 2) % 3], cells[d]
        k = np.arange(2 * along[0], 2 * along[-1] + 1)
        mesh = np.meshgrid(i, j, k, indexing='ij')
        parts.append([np.full(mesh[0].size, d), *(m.ravel() for m in mesh)])
    tracks = Tracks(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return NodeTable(weave, tracks, bodies, thin)


def pack_part(t: Tracks, piece: Ints, cuts: Ints) -> Ids:
    """One id for each stretch of track between two cuts; never 0."""
    fields = ((t.d + 1, 2), (t.i + 2**15, 16), (t.j + 2**15, 16), (piece + 2**11, 12), (cuts, 2))
    packed = np.zeros(np.shape(piece), np.uint64)
    for value, bits in fields:
        packed = (packed << np.uint64(bits)) | np.asarray(value).astype(np.uint64)
    return packed


def _pack(t: Tracks) -> Ints:
    return ((t.d * 2**16 + t.i + 2**15) * 2**16 + t.j + 2**15) * 2**20 + t.k + 2**19


def _arrays(t: Tracks) -> tuple[Ints, Ints, Ints, Ints]:
    return t.d, t.i, t.j, t.k
