"""The phantom: the same wherever it is cut, with truth that holds together."""

import cc3d
import numpy as np
import pytest

from h01_beam.geometry import BoundingBox
from h01_beam.testing.phantom import PhantomConfig, make_phantom
from h01_beam.testing.phantom.cones import nearest_two
from h01_beam.testing.phantom.truth import SCHEMAS, truth_tables

VOXEL_SIZE_NM = (30.0, 16.0, 16.0)
WHOLE = BoundingBox((-7, 10, -30), (26, 70, 90))
ARRAYS = ('image', 'neuron', 'structure', 'organelle')


def config(**changes) -> PhantomConfig:
    return PhantomConfig(**{'voxel_size_nm': VOXEL_SIZE_NM, 'seed': 5, **changes})


@pytest.fixture(scope='module')
def whole():
    return make_phantom(config(), WHOLE)


@pytest.mark.parametrize(
    'part',
    [
        BoundingBox((-7, 10, -30), (13, 70, 90)),
        BoundingBox((0, 31, -5), (9, 22, 41)),
        BoundingBox((18, 79, 59), (1, 1, 1)),
    ],
)
def test_part_equals_cut_out_of_whole(whole, part):
    cut = part.translate(tuple(-s for s in WHOLE.start)).slices
    made = make_phantom(config(), part)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name)[cut], err_msg=name)


def test_tables_of_parts_add_up_to_those_of_the_whole(whole):
    halves = [
        make_phantom(config(), BoundingBox((-7, 10, -30), (13, 70, 90))),
        make_phantom(config(), BoundingBox((6, 10, -30), (13, 70, 90))),
    ]
    assert sum(half.box.size for half in halves) == WHOLE.size
    of_whole = truth_tables(whole, VOXEL_SIZE_NM)
    of_parts = [truth_tables(half, VOXEL_SIZE_NM) for half in halves]
    for name in ('skeleton_edges', 'synapses', 'somata'):
        columns = SCHEMAS[name].columns
        joined = [np.concatenate([part[name][c] for part in of_parts]) for c in columns]
        rows = sorted(zip(*joined))
        assert rows == sorted(zip(*(of_whole[name][c] for c in columns))), name
    assert len(of_whole['skeleton_edges']['neuron']) > 20
    totals = {}
    for part in of_parts:
        for neuron, voxels in zip(part['neurites']['neuron'], part['neurites']['voxels']):
            totals[neuron] = totals.get(neuron, 0) + voxels
    expected = dict(zip(of_whole['neurites']['neuron'], of_whole['neurites']['voxels']))
    assert totals == expected


def test_neurons_hang_together():
    """Pieces that hang in the air, cut from their neuron, are a small part of the tissue."""
    shape = (48, 160, 160)
    labels = make_phantom(config(seed=11), BoundingBox((0, 0, 0), shape)).neuron
    pieces = cc3d.connected_components(labels, connectivity=26)
    found = cc3d.statistics(pieces)
    inner = [
        voxels
        for voxels, box in zip(found['voxel_counts'][1:], found['bounding_boxes'][1:])
        if all(s.start > 0 and s.stop < n for s, n in zip(box, shape))
    ]
    assert len(found['voxel_counts']) > 40
    assert sum(inner) < 0.02 * np.count_nonzero(labels)


def test_tissue_is_that_of_cortex():
    found = make_phantom(config(seed=2), BoundingBox((0, 0, 0), (32, 192, 192)))
    axon, dendrite = ((found.structure == kind).mean() for kind in (1, 2))
    assert 0.25 < axon < 0.6 and 0.15 < dendrite < 0.5
    assert 0.08 < (found.structure == 8).mean() < 0.25
    assert (found.structure == 0).mean() < 0.1
    grey = found.image.astype(float)
    assert 110 < grey.mean() < 160 and 40 < grey.std() < 70
    assert grey[found.structure == 8].mean() < grey[found.neuron > 0].mean() - 60
    mitochondria = found.organelle == 1
    assert 0.003 < mitochondria.mean() < 0.08
    assert grey[mitochondria].mean() < grey[found.neuron > 0].mean() - 30
    # Truth is 0 exactly in membranes, myelin and outside.
    np.testing.assert_array_equal(found.neuron == 0, np.isin(found.structure, (0, 7, 8)))


def test_the_same_tissue_at_another_voxel_size():
    fine = make_phantom(config(voxel_size_nm=(30.0, 8.0, 8.0)), BoundingBox((0, 0, 0), (8, 96, 96)))
    coarse = make_phantom(config(), BoundingBox((0, 0, 0), (8, 48, 48)))
    both = (fine.neuron[:, ::2, ::2] > 0) & (coarse.neuron > 0)
    assert both.mean() > 0.5
    assert (fine.neuron[:, ::2, ::2] == coarse.neuron)[both].mean() > 0.97


def test_synapses_lie_where_their_partners_touch(whole):
    rows = truth_tables(whole, VOXEL_SIZE_NM)['synapses']
    contacts = whole.anatomy.contacts
    assert len(contacts) > 5
    first, second = nearest_two(whole.anatomy.surface, contacts.point)
    pairs = {frozenset(pair) for pair in zip(contacts.pre.tolist(), contacts.post.tolist())}
    assert {frozenset(pair) for pair in zip(first.tolist(), second.tolist())} == pairs
    assert (contacts.pre != contacts.post).all()
    for n, pre in enumerate(rows['pre']):
        point = [rows[f'{axis}_nm'][n] for axis in 'zyx']
        voxel = [int(p // v) - s for p, v, s in zip(point, VOXEL_SIZE_NM, WHOLE.start)]
        near = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(voxel, (3, 5, 5)))
        ids = set(whole.neuron[near].ravel().tolist())
        assert {int(pre), int(rows['post'][n])} & ids


def test_difficulty_weakens_membranes_and_thins_axons():
    box = BoundingBox((0, 0, 0), (12, 128, 128))
    easy, hard = (make_phantom(config(difficulty=d), box) for d in (0.0, 1.0))

    def contrast(found):
        grey = found.image.astype(float)
        return grey[found.neuron > 0].mean() - grey[found.structure == 8].mean()

    assert contrast(hard) < 0.8 * contrast(easy)
    assert (hard.structure == 1).sum() < (easy.structure == 1).sum()


@pytest.mark.parametrize(
    ('changes', 'field'),
    [
        ({'voxel_size_nm': (30.0, 0.0, 8.0)}, 'voxel_size_nm'),
        ({'difficulty': 2.0}, 'difficulty'),
        ({'seed': -1}, 'seed'),
        ({'shape': (0, 4, 4)}, 'shape'),
        ({'shape': (4, 4, 10**8)}, 'shape'),
    ],
)
def test_bad_configurations_name_the_field(changes, field):
    with pytest.raises(ValueError, match=field):
        config(**changes)


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match='box'):
        make_phantom(config(), BoundingBox((0, 0, 0), (0, 4, 4)))
