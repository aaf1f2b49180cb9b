"""What lies in a box: neurites as chains of cones, their organelles, their synapses, the bodies.

    weave (who runs where) + curves (where that is) -> Anatomy, all in world nm

A box is asked for with its surroundings, and everything that can reach it is listed, in an order
that does not depend on the box. So parts made on their own fit together.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import BoundingBox
from h01_beam.testing.noise import uniform
from h01_beam.testing.phantom import curves
from h01_beam.testing.phantom.bodies import Bodies, is_soma, is_vessel
from h01_beam.testing.phantom.cones import Cones, nearest_two
from h01_beam.testing.phantom.config import PhantomConfig
from h01_beam.testing.phantom.nodes import NodeTable, make_nodes
from h01_beam.testing.phantom.weave import (
    AXON,
    DENDRITE,
    GLIA,
    MYELINATED,
    PITCH_NM,
    Bools,
    Ints,
    Reals,
    Tracks,
    Weave,
)

Ids = npt.NDArray[np.uint64]

# How far nodes may lie from a box that they reach: their window, and the voids that shape them.
MARGIN_NM = 3000.0
_MITO, _SPINE, _SHAFT, _BULGE, _RETICULUM = 300, 301, 302, 303, 304
# Around a contact, vesicles and density included.
CONTACT_REACH_NM = 650.0
_SPINE_SHARE = 0.4
_SYNAPSE_SHARE = 0.94
_BULGE_SHARE = 0.75
_SHAFT_SHARE = {True: 0.35, False: 0.04}  # by whether the axon is inhibitory


@dataclasses.dataclass(frozen=True)
class Contacts:
    """Synapses: (n, 3) contact points (nm), partners, the presynaptic axis point, and type.

    Attributes:
      point: middle of the cleft.
      pre, post: ids of the neurites.
      bouton: (n, 3) point of the axon's axis nearest to the contact.
      excitatory: whether the density is asymmetric.
      on_spine: whether the postsynaptic side is a spine's head.
    """

    point: Reals
    pre: Ids
    post: Ids
    bouton: Reals
    excitatory: Bools
    on_spine: Bools

    def take(self, where: npt.NDArray[np.generic]) -> Contacts:
        return Contacts(*(getattr(self, field.name)[where] for field in dataclasses.fields(self)))

    def within(self, box: BoundingBox, voxel_size_nm: tuple[float, float, float]) -> Contacts:
        """Those whose density or vesicles can reach a box of voxels."""
        low = np.array(box.start) * voxel_size_nm - CONTACT_REACH_NM
        high = np.array(box.end) * voxel_size_nm + CONTACT_REACH_NM
        return self.take(np.flatnonzero(((self.point > low) & (self.point < high)).all(axis=1)))

    def __len__(self) -> int:
        return len(self.pre)


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """All that can reach a box; lengths in world nm, zyx.

    Attributes:
      surface: the cones that make up neurites, somata and vessels.
      mitochondria, reticulum: cones within their owners.
      contacts: synapses.
      ids: owners in ascending order.
      kind: of each owner: AXON, DENDRITE, GLIA, MYELINATED, or SOMA_KIND, VESSEL_KIND.
      inhibitory: of each owner, whether its neuron is.
      sheath_nm: of each owner, thickness of its myelin; 0 without.
      somata: (n, 3) centres, with `soma_radius_nm` and `soma_ids`.
    """

    surface: Cones
    mitochondria: Cones
    reticulum: Cones
    contacts: Contacts
    ids: Ids
    kind: Ints
    inhibitory: Bools
    sheath_nm: Reals
    soma_centres: Reals
    soma_radius_nm: Reals
    soma_ids: Ids


SOMA_KIND, VESSEL_KIND = 5, 6


def make_anatomy(config: PhantomConfig, box: BoundingBox) -> Anatomy:
    """Lists what can reach a box of voxels."""
    weave = Weave(config.seed)
    low, high = curves.lattice_bounds(config.seed, box, config.voxel_size_nm, MARGIN_NM)
    bodies = Bodies(weave, low, high)
    nodes = make_nodes(weave, low, high, bodies, thin=1.0 - 0.35 * config.difficulty)
    voids = _assign_voids(weave, nodes, low, high)
    shafts = _shaft_contacts(weave, nodes)
    nodes.swell(voids.pre[voids.pre >= 0], shafts.pre)
    parts = [_track_cones(nodes), *_void_cones(weave, nodes, voids), _stem_cones(nodes, bodies)]
    surface = Cones.join([*parts, bodies.cones()])
    contacts = _contacts(weave, nodes, voids, shafts)
    contacts = _confirm(contacts.within(box, config.voxel_size_nm), surface)
    return _collect(config, nodes, bodies, surface, contacts)


# ------------------------------------------------------------------ neurites


def _track_cones(nodes: NodeTable) -> Cones:
    """Two cones from each node to the next of the same neurite."""
    first = np.flatnonzero(nodes.joined)
    second = nodes.following(first)
    middle = 0.5 * (nodes.radius[first] + nodes.radius[second])
    return Cones.join(
        [
            Cones(
                nodes.world[first], nodes.halfway[first], nodes.radius[first], middle,
                nodes.owner[first],
            ),
            Cones(
                nodes.halfway[first], nodes.world[second], middle, nodes.radius[second],
                nodes.owner[first],
            ),
        ]
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Voids:
    """What voids hold: (n, 3) positions (nm) and, for each, indices of nodes or -1."""

    key: Ints
    world: Reals
    branch_from: Ints
    branch_to: Ints
    spine: Ints
    pre: Ints
    bulge: Ints
    bulge_too: Ints


def _assign_voids(weave: Weave, nodes: NodeTable, low: Reals, high: Reals) -> _Voids:
    keys = _void_range(low, high)
    around = weave.around(keys)
    index = nodes.find(around)
    keys, index = keys[(index >= 0).all(axis=1)], index[(index >= 0).all(axis=1)]
    alive = nodes.alive[index]
    kind, owner = nodes.kind[index], nodes.owner[index]
    nobody = np.full(len(keys), -1)
    rows = np.arange(len(keys))

    winner = weave.branch_at(keys)
    opposite = winner ^ 1
    branch = (winner >= 0) & alive[rows, winner] & alive[rows, opposite]
    branch &= owner[rows, winner] == owner[rows, opposite]

    def choose(eligible: Bools, purpose: int) -> Ints:
        score = np.where(
            eligible, uniform(weave.seed, purpose, *keys.T[:, :, None], np.arange(6)), -1.0
        )
        best = score.argmax(axis=1)
        return np.where(eligible.any(axis=1), best, -1)

    draw = uniform(weave.seed, _SPINE, *keys.T)
    # The centre of the void must be free too, not in a body.
    lattice = curves.void_positions(weave, keys)
    world = curves.to_world(weave.seed, lattice)
    free = ~branch & ~nodes.bodies.swallow(lattice, world)
    spine = choose(alive & (kind == DENDRITE), _SPINE + 10)
    spine = np.where(free & (draw < _SPINE_SHARE), spine, -1)
    axons = alive & (kind == AXON) & ~nodes.inhibitory[index]
    axons &= owner != owner[rows, np.maximum(spine, 0)][:, None]
    pre = choose(axons, _SPINE + 20)
    pre = np.where((spine >= 0) & (draw < _SPINE_SHARE * _SYNAPSE_SHARE), pre, -1)
    bulges = []
    for step in range(2):
        bulge = choose(alive & ((kind == AXON) | (kind == GLIA)), _BULGE + 10 * step)
        wanted = uniform(weave.seed, _BULGE, step, *keys.T) < _BULGE_SHARE
        bulges.append(np.where(free & (spine < 0) & wanted, bulge, -1))

    def node(which: Ints) -> Ints:
        return np.where(which >= 0, index[rows, np.maximum(which, 0)], -1)

    return _Voids(
        key=keys,
        world=world,
        branch_from=np.where(branch, node(opposite), nobody),
        branch_to=np.where(branch, node(winner), nobody),
        spine=node(spine),
        pre=node(pre),
        bulge=node(bulges[0]),
        bulge_too=node(bulges[1]),
    )


def _void_range(low: Reals, high: Reals) -> Ints:
    half = PITCH_NM / 2
    ranges = [
        np.arange(int(a // half) + 2, int(b // half) - 1) for a, b in zip(low, high, strict=True)
    ]
    keys = np.stack(np.meshgrid(*ranges, indexing='ij'), axis=-1).reshape(-1, 3)
    parity = keys % 2
    return keys[(parity[:, 0] == parity[:, 1]) & (parity[:, 1] == parity[:, 2])]


def _void_cones(weave: Weave, nodes: NodeTable, voids: _Voids) -> list[Cones]:
    """Branches, spines, and bulges into the voids."""
    made = []
    for end in (voids.branch_from, voids.branch_to):
        at = np.flatnonzero(end >= 0)
        radius = np.minimum(nodes.radius[end[at]], nodes.radius[voids.branch_to[at]])
        made.append(_spoke(nodes, end[at], voids.world[at], radius, 0.9 * radius))
    at = np.flatnonzero(voids.spine >= 0)
    draw = uniform(weave.seed, 311, *voids.key[at].T)
    neck, head = 48.0 + 30.0 * draw, 125.0 + 130.0 * draw * draw
    made.append(_spoke(nodes, voids.spine[at], voids.world[at], neck, neck))
    owner, centre = nodes.owner[voids.spine[at]], voids.world[at]
    made.append(Cones(centre, centre, head, head, owner))
    for step, bulge in enumerate((voids.bulge, voids.bulge_too)):
        at = np.flatnonzero(bulge >= 0)
        draw = uniform(weave.seed, 312 + step, *voids.key[at].T)
        start = nodes.world[bulge[at]]
        tip = start + (0.35 + 0.5 * draw[:, None]) * (voids.world[at] - start)
        narrow = np.minimum(nodes.radius[bulge[at]], 110.0)
        made.append(_spoke(nodes, bulge[at], tip, narrow, 70.0 + 75.0 * draw))
    return made


def _spoke(nodes: NodeTable, node: Ints, tip: Reals, root: Reals, end: Reals) -> Cones:
    return Cones(nodes.world[node], tip, root, end, nodes.owner[node])


def _stem_cones(nodes: NodeTable, bodies: Bodies) -> Cones:
    """From the last node before a soma into it, for the neurites that belong to it."""
    parts = []
    for centre, radius, owner in zip(bodies.centres, bodies.radius_nm, bodies.ids, strict=True):
        near = (nodes.owner == owner) & nodes.alive
        last = np.flatnonzero(near & nodes.beside_body)
        away = nodes.world[last] - centre
        distance = np.sqrt((away**2).sum(axis=1))
        keep = distance < radius + 1500
        last, away, distance = last[keep], away[keep], distance[keep]
        tip = centre + away * ((0.75 * radius) / distance)[:, None]
        width = nodes.radius[last]
        owners = np.full(len(last), owner, np.uint64)
        parts.append(Cones(nodes.world[last], tip, width, 1.8 * width, owners))
    nothing = np.empty((0, 3))
    parts.append(Cones(nothing, nothing, nothing[:, 0], nothing[:, 0], np.empty(0, np.uint64)))
    return Cones.join(parts)


# ------------------------------------------------------------------ synapses


@dataclasses.dataclass(frozen=True)
class _Shafts:
    post: Ints
    pre: Ints


def _shaft_contacts(weave: Weave, nodes: NodeTable) -> _Shafts:
    """Synapses of axons that cross a dendrite, on its shaft."""
    posts, pres = [], []
    dendrite = np.flatnonzero(nodes.alive & (nodes.kind == DENDRITE))
    t = nodes.tracks[dendrite]
    even = t.k % 2 == 0
    for side in (0, 1):
        e, f = (t.d + 1) % 3, (t.d + 2) % 3
        # Where k is odd, a track of direction e crosses along f; where it is even, one of f.
        crossing = Tracks(
            np.where(even, f, e),
            np.where(even, t.k // 2, t.j + side),
            np.where(even, t.i - side, (t.k - 1) // 2),
            np.where(even, 2 * t.j + 1, 2 * t.i),
        )
        index = nodes.find(crossing)
        there = index >= 0
        ok = there & nodes.alive[index] & (nodes.kind[index] == AXON)
        ok &= nodes.owner[index] != nodes.owner[dendrite]
        draw = uniform(weave.seed, _SHAFT, side, t.d, t.i, t.j, t.k)
        inhibitory = nodes.inhibitory[index]
        ok &= draw < np.where(inhibitory, _SHAFT_SHARE[True], _SHAFT_SHARE[False])
        posts.append(dendrite[ok])
        pres.append(index[ok])
    return _Shafts(np.concatenate(posts), np.concatenate(pres))


def _contacts(weave: Weave, nodes: NodeTable, voids: _Voids, shafts: _Shafts) -> Contacts:
    at = np.flatnonzero((voids.spine >= 0) & (voids.pre >= 0))
    draw = uniform(weave.seed, 311, *voids.key[at].T)
    heads = 125.0 + 130.0 * draw * draw
    pre = np.concatenate([voids.pre[at], shafts.pre])
    post = np.concatenate([voids.spine[at], shafts.post])
    post_point = np.concatenate([voids.world[at], nodes.world[shafts.post]])
    post_radius = np.concatenate([heads, nodes.radius[shafts.post]])
    bouton = nodes.world[pre]
    apart = post_point - bouton
    distance = np.sqrt((apart**2).sum(axis=1))
    # Where both surfaces are equally far.
    part = (distance + nodes.radius[pre] - post_radius) / (2 * distance)
    on_spine = np.arange(len(pre)) < len(at)
    return Contacts(
        point=bouton + np.clip(part, 0.05, 0.95)[:, None] * apart,
        pre=nodes.owner[pre],
        post=nodes.owner[post],
        bouton=bouton,
        excitatory=~nodes.inhibitory[pre],
        on_spine=on_spine,
    )


def _confirm(contacts: Contacts, surface: Cones) -> Contacts:
    """The contacts at which the two partners do touch, with nobody between."""
    first, second = nearest_two(surface, contacts.point)
    touch = (first == contacts.pre) & (second == contacts.post)
    touch |= (first == contacts.post) & (second == contacts.pre)
    return contacts.take(np.flatnonzero(touch))


# ------------------------------------------------------------------ organelles, owners


def _mitochondria(seed: int, nodes: NodeTable) -> Cones:
    """One in many boutons and dendrites, beside the axis."""
    share = np.select(
        [nodes.swollen & (nodes.kind == AXON), nodes.kind == AXON, nodes.kind == DENDRITE],
        [0.6, 0.14, 0.6],
        0.15,
    )
    width = 100 + 95 * _draw(seed, _MITO, nodes, 6)
    return _inside(seed, _MITO, nodes, share, width, least_nm=42.0)


def _reticulum(seed: int, nodes: NodeTable) -> Cones:
    """Cisternae of the smooth reticulum: thin tubes along the axis."""
    share = np.where(nodes.kind == DENDRITE, 0.65, 0.3)
    width = 17 + 17 * _draw(seed, _RETICULUM, nodes, 6)
    return _inside(seed, _RETICULUM, nodes, share, width, least_nm=15.0)


def _draw(seed: int, purpose: int, nodes: NodeTable, part: int) -> Reals:
    t = nodes.tracks
    return uniform(seed, purpose, part, t.d, t.i, t.j, t.k)


def _inside(
    seed: int, purpose: int, nodes: NodeTable, share: Reals, width: Reals, least_nm: float
) -> Cones:
    """Rods of a random length beside the axes of some nodes, where there is room for them."""
    draw = [_draw(seed, purpose, nodes, part) for part in range(5)]
    inner = nodes.radius - nodes.sheath
    radius = np.minimum(0.58 * inner, width)
    at = np.flatnonzero((draw[0] < share) & nodes.joined & (radius > least_nm))
    along = nodes.halfway[at] - nodes.world[at]
    length = 0.4 + 1.4 * draw[1][at]
    aside = np.stack([draw[part][at] - 0.5 for part in (2, 3, 4)], axis=1)
    aside *= 2 * np.maximum(inner[at] - radius[at] - 45, 0)[:, None] / np.sqrt(3)
    middle = nodes.world[at] + aside
    half = (0.5 * length)[:, None] * along
    return Cones(middle - half, middle + half, radius[at], radius[at], nodes.owner[at])


def _collect(
    config: PhantomConfig, nodes: NodeTable, bodies: Bodies, surface: Cones, contacts: Contacts
) -> Anatomy:
    ids = np.unique(surface.owner)
    place = np.searchsorted(ids, nodes.owner)
    place = np.minimum(place, len(ids) - 1)
    known = nodes.alive & (ids[place] == nodes.owner)
    kind = np.zeros(len(ids), np.int64)
    sheath = np.zeros(len(ids))
    inhibitory = np.zeros(len(ids), np.bool_)
    for array, values in (
        (kind, nodes.kind), (sheath, nodes.sheath), (inhibitory, nodes.inhibitory)
    ):  # fmt: skip
        array[place[known]] = values[known]
    kind[is_soma(ids)] = SOMA_KIND
    kind[is_vessel(ids)] = VESSEL_KIND
    order = np.argsort(surface.owner, kind='stable')
    return Anatomy(
        surface=surface.take(order),
        mitochondria=_mitochondria(config.seed, nodes),
        reticulum=_reticulum(config.seed, nodes),
        contacts=contacts,
        ids=ids,
        kind=kind,
        inhibitory=inhibitory,
        sheath_nm=np.where(kind == MYELINATED, sheath, 0.0),
        soma_centres=bodies.centres,
        soma_radius_nm=bodies.radius_nm,
        soma_ids=bodies.ids,
    )
