from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from h01_beam.model_file import ModelCard
from h01_beam.segmentation import seeds
from h01_beam.segmentation.canvas import COUNTERS, Canvas
from h01_beam.segmentation.ffn import FfnConfig, flood_fill
from tests.segmentation import oracle

SEED = (14, 18, 22)


def flood(image, predict=oracle.predict, config=oracle.CONFIG, **arguments):
    return flood_fill(image, predict, oracle.FOV_SHAPE, oracle.DELTAS, config, **arguments)


def logit(probability):
    return math.log(probability / (1 - probability))


def reference_flood_fill(image, predict, fov_shape, deltas, config, points):
    """The published algorithm, as plainly as it can be written: no boxes, no reuse."""
    fov_shape, deltas = np.array(fov_shape), np.array(deltas)
    margin = fov_shape // 2
    threshold = logit(config.move_threshold)
    mean, stddev = map(np.float32, config.grey_levels)
    normalized = (image.astype(np.float32) - mean) / stddev
    labels = np.zeros(image.shape, int)
    objects, steps = [], 0

    def cell(position, seed):
        return tuple((np.array(position) - seed + deltas // 2) // np.maximum(deltas, 1))

    def fits(position):
        return np.all(position - margin >= 0) and np.all(position + margin < image.shape)

    for seed in (tuple(p) for p in points):
        if not fits(np.array(seed)) or labels[seed]:
            continue
        distance = np.array(config.min_boundary_dist)
        near = tuple(
            slice(max(a, 0), b) for a, b in zip(seed - distance, seed + distance + 1, strict=True)
        )
        if labels[near].any():
            continue
        canvas = np.full(image.shape, np.nan, np.float32)
        canvas[seed] = logit(config.init_activation)
        queue, done, iterations = [seed], set(), 0
        while queue:
            position = queue.pop(0)
            if cell(position, seed) in done or canvas[position] < threshold:
                continue
            if not fits(np.array(position)) or labels[position]:
                continue
            if canvas[seed] < threshold:
                break
            start = np.array(position) - margin
            fov = tuple(slice(a, a + n) for a, n in zip(start, fov_shape, strict=True))
            old = canvas[fov]
            shown = np.where(np.isnan(old), np.float32(logit(config.pad_value)), old)
            new = predict(normalized[fov], shown)
            if config.disco_seed_threshold is not None:
                if np.mean(new >= threshold) > config.disco_seed_threshold:
                    new = np.where((old < 0) & (new > old), old, new)
            canvas[fov] = new
            iterations += 1
            done.add(cell(position, seed))
            moves = set()
            for axis in range(3):
                for sign in (-1, 1):
                    low, high = margin - deltas, margin + deltas
                    low[axis] = high[axis] = margin[axis] + sign * deltas[axis]
                    face = new[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
                    best = np.array(np.unravel_index(face.argmax(), face.shape))
                    if deltas[axis] and face[tuple(best)] >= threshold:
                        moves.add((float(face[tuple(best)]), tuple(low + best - margin)))
            for _, offset in sorted(moves, reverse=True):
                queue.append(tuple(int(p + o) for p, o in zip(position, offset, strict=True)))
        steps += iterations
        if canvas[seed] < threshold:
            continue
        mask = (canvas >= logit(config.segment_threshold)) & (labels == 0)
        if mask.sum() < config.min_segment_size:
            continue
        labels[mask] = len(objects) + 1
        objects.append((len(objects) + 1, seed, int(mask.sum()), iterations))
    return labels, objects, steps


def grey_noise(seed=0):
    return np.random.default_rng(seed).integers(60, 180, oracle.SHAPE, dtype=np.uint8)


@pytest.mark.parametrize('disco_seed_threshold', [None, 0.0, 0.2])
@pytest.mark.parametrize('predict', [oracle.predict, oracle.restless_predict])
@pytest.mark.parametrize('deltas', [(1, 3, 4), (2, 2, 5), (0, 4, 3)])
def test_equals_the_plain_algorithm(predict, deltas, disco_seed_threshold):
    image = oracle.tissue() if predict is oracle.predict else grey_noise()
    config = dataclasses.replace(
        oracle.CONFIG,
        disco_seed_threshold=disco_seed_threshold,
        min_segment_size=30,
        min_boundary_dist=(0, 1, 2),
        move_threshold=0.7,
    )
    points = seeds.grid_points(image.shape, step=9, offsets=(0, 5))
    result = flood_fill(image, predict, oracle.FOV_SHAPE, deltas, config, seed_points=points)
    labels, objects, steps = reference_flood_fill(
        image, predict, oracle.FOV_SHAPE, deltas, config, points.tolist()
    )
    assert len(objects) > 2
    np.testing.assert_array_equal(result.labels, labels)
    assert [(i, tuple(s), v, n) for i, s, v, n in result.objects.tolist()] == objects
    assert result.counters['fov_steps'] == steps


def test_restless_network_exercises_every_way_to_fail():
    config = dataclasses.replace(oracle.CONFIG, move_threshold=0.7, min_segment_size=200)
    points = seeds.grid_points(oracle.SHAPE, step=6, offsets=(0, 3))
    counters = flood(grey_noise(), oracle.restless_predict, config, seed_points=points).counters
    for name in ('rejected_weak', 'rejected_small', 'objects', 'moves_skipped_threshold'):
        assert counters[name] > 0, counters


def test_objects_stay_within_their_cells_and_cover_the_tissue():
    image = oracle.tissue()
    result = flood(image)
    assert result.labels.dtype == np.uint32 and result.labels.shape == image.shape
    assert len(result.objects) > 5
    for record in result.objects:
        greys = np.unique(image[result.labels == record['id']])
        assert greys.tolist() == [image[tuple(record['seed'])]]
    assert np.mean(result.labels[image > 0] > 0) > 0.8


def test_records_and_counters_agree_with_the_labels():
    result = flood(oracle.tissue())
    ids, voxels = np.unique(result.labels[result.labels > 0], return_counts=True)
    assert result.objects['id'].tolist() == ids.tolist() == list(range(1, len(ids) + 1))
    assert result.objects['voxels'].tolist() == voxels.tolist()
    assert [result.labels[tuple(seed)] for seed in result.objects['seed']] == ids.tolist()
    counters = result.counters
    assert set(counters) == set(COUNTERS)
    assert counters['objects'] == len(ids)
    assert counters['voxels'] == voxels.sum()
    accepted = counters['fov_steps'] - counters['fov_steps_rejected']
    assert accepted == result.objects['iterations'].sum()
    rejected = counters['rejected_small'] + counters['rejected_weak']
    assert counters['seeds_tried'] == counters['objects'] + rejected
    assert set(result.seconds) == {'seeds', 'predict', 'total'}
    assert sum(result.seconds.values()) < 2 * result.seconds['total']


def test_same_input_gives_same_bytes():
    image = oracle.tissue()
    first, second = flood(image), flood(image)
    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.objects.tobytes() == second.objects.tobytes()
    assert first.counters == second.counters


def test_network_sees_the_normalized_image_and_the_padded_seed():
    image = grey_noise()
    seen = []

    def predict(image_fov, logit_fov):
        seen.append((image_fov.copy(), logit_fov.copy()))
        return np.full(oracle.FOV_SHAPE, -4, np.float32)

    config = FfnConfig(image_mean=100.0, image_stddev=20.0, init_activation=0.97, pad_value=0.1)
    flood(image, predict, config, seed_points=np.array([SEED]))
    (image_fov, logit_fov), *rest = seen
    assert not rest
    assert image_fov.dtype == logit_fov.dtype == np.float32
    np.testing.assert_allclose(
        image_fov, (image[12:17, 14:23, 17:28].astype(float) - 100) / 20, rtol=1e-6, atol=1e-6
    )
    expected = np.full(oracle.FOV_SHAPE, logit(0.1))
    expected[2, 4, 5] = logit(0.97)
    np.testing.assert_allclose(logit_fov, expected, rtol=1e-6)


def test_next_object_starts_on_an_empty_canvas():
    image = oracle.tissue()
    canvas = Canvas(image, oracle.predict, oracle.FOV_SHAPE, oracle.DELTAS, oracle.CONFIG)
    canvas.flood((16, 16, 32))
    assert np.isfinite(canvas.logits).sum() > 5000
    canvas.flood((8, 8, 40))
    painted = np.isfinite(canvas.logits)
    only = Canvas(image, oracle.predict, oracle.FOV_SHAPE, oracle.DELTAS, oracle.CONFIG)
    only.flood((8, 8, 40))
    np.testing.assert_array_equal(painted, np.isfinite(only.logits))
    np.testing.assert_array_equal(canvas.logits, only.logits)


def test_weak_seed_makes_no_object_and_stops_at_once():
    image = np.full(oracle.SHAPE, 100, np.uint8)

    def doubtful(image_fov, logit_fov):
        logits = np.full(oracle.FOV_SHAPE, 5, np.float32)
        logits[2, 4, 5] = logit(0.5)  # all of it is sure, but for the seed
        return logits

    result = flood(image, doubtful, seed_points=np.array([SEED]))
    assert result.counters['rejected_weak'] == 1
    assert result.counters['fov_steps'] == result.counters['fov_steps_rejected'] == 1
    assert not result.labels.any() and len(result.objects) == 0


def claim_everything(image_fov, logit_fov):
    return np.full(logit_fov.shape, 5, np.float32)


def centred(image_fov, logit_fov):
    """Claims everything, surest in the middle of each face."""
    offsets = np.indices(logit_fov.shape) - np.reshape(logit_fov.shape, (3, 1, 1, 1)) // 2
    return (5 - 0.1 * np.abs(offsets).sum(axis=0)).astype(np.float32)


def test_small_object_is_rejected_by_its_new_voxels_only():
    image = np.full((5, 9, 20), 100, np.uint8)  # fields of view fit at x = 5 ... 14
    both = np.array([[2, 4, 5], [2, 4, 14]])
    config = dataclasses.replace(oracle.CONFIG, min_boundary_dist=(0, 0, 0))
    fov_voxels = math.prod(oracle.FOV_SHAPE)

    def in_place(image_fov, logit_fov):
        # No moves: all but the middle of the field of view is unsure of going on.
        logits = np.full(oracle.FOV_SHAPE, logit(0.65), np.float32)
        logits[2, 4, 5] = 5
        return logits

    new_voxels = 9 * 9 * 5  # the second field of view overlaps the first by two planes
    keep = flood(
        image, in_place, dataclasses.replace(config, min_segment_size=new_voxels), seed_points=both
    )
    assert keep.objects['voxels'].tolist() == [fov_voxels, new_voxels]
    assert keep.counters['voxels_overlapping'] == fov_voxels - new_voxels
    shared = fov_voxels - new_voxels
    assert keep.overlaps.tolist() == [(1, 2, shared, fov_voxels, fov_voxels)]
    drop = flood(
        image,
        in_place,
        dataclasses.replace(config, min_segment_size=new_voxels + 1),
        seed_points=both,
    )
    assert drop.objects['voxels'].tolist() == [fov_voxels]
    assert drop.counters['rejected_small'] == 1
    assert drop.counters['fov_steps_rejected'] == 1
    np.testing.assert_array_equal(drop.labels, keep.labels * (keep.labels == 1))


def test_small_piece_apart_from_an_object_stays_blank():
    image = np.full(oracle.FOV_SHAPE, 100, np.uint8)
    pieces = np.zeros(oracle.FOV_SHAPE, np.uint8)
    pieces[1:4, 3:6, 3:7] = 1  # 36 voxels, with the seed
    pieces[0, 2, 2] = 1  # touches them by a corner
    pieces[1, 1, 9:11] = 2  # two voxels apart
    logits = np.where(pieces > 0, np.float32(logit(0.65)), np.float32(-3))
    logits[2, 4, 5] = 5
    seed = np.array([[2, 4, 5]])
    for least, kept in ((1, pieces > 0), (2, pieces > 0), (3, pieces == 1)):
        config = dataclasses.replace(oracle.CONFIG, min_segment_size=30, min_piece_size=least)
        found = flood(image, lambda *_: logits.copy(), config, seed_points=seed)
        np.testing.assert_array_equal(found.labels > 0, kept)
        assert found.objects['voxels'].tolist() == [kept.sum()]


@pytest.mark.parametrize('axis', range(3))
@pytest.mark.parametrize('distance', [0, 1, 3])
def test_seed_near_an_object_is_skipped(axis, distance):
    image = np.full(oracle.SHAPE, 100, np.uint8)
    config = dataclasses.replace(
        oracle.CONFIG,
        min_boundary_dist=tuple(distance if a == axis else 0 for a in range(3)),
        min_segment_size=1,
    )

    def one_step(image_fov, logit_fov):
        logits = np.full(oracle.FOV_SHAPE, logit(0.65), np.float32)
        logits[2, 4, 5] = 5
        return logits

    for gap in (distance, distance + 1):  # voxels from the object's last to the seed
        second = list(SEED)
        second[axis] += oracle.FOV_SHAPE[axis] // 2 + gap
        result = flood(image, one_step, config, seed_points=np.array([SEED, second]))
        counters = result.counters
        if gap > distance:
            assert len(result.objects) == 2
        elif gap == 0:
            assert counters['seeds_skipped_labelled'] == 1
        else:
            assert counters['seeds_skipped_near_object'] == 1


def test_centre_stays_out_of_the_mask():
    image = np.full(oracle.SHAPE, 100, np.uint8)
    mask = np.zeros(oracle.SHAPE, bool)
    mask[:, :, 30:] = True
    centres = []
    image[...] = np.arange(oracle.SHAPE[2])  # the grey level of the centre tells its x

    def predict(image_fov, logit_fov):
        centres.append(round(float(image_fov[2, 4, 5]) * 33 + 128))
        return claim_everything(image_fov, logit_fov)

    result = flood(image, predict, mask=mask, seed_points=np.array([SEED]))
    assert len(centres) > 20 and max(centres) < 30
    assert result.counters['moves_skipped_masked'] > 0
    # Half a field of view reaches into the mask, no more.
    assert np.flatnonzero(result.labels.any(axis=(0, 1))).max() <= 29 + 5

    masked = flood(image, predict, mask=mask, seed_points=np.array([(14, 18, 35)]))
    assert masked.counters['seeds_skipped_masked'] == 1
    assert masked.counters['fov_steps'] == 0


def test_field_of_view_never_leaves_the_image_and_reaches_its_border():
    image = np.full(oracle.SHAPE, 100, np.uint8)
    result = flood(image, centred, seed_points=np.array([SEED]))
    assert result.counters['moves_skipped_border'] > 0
    # Centres move on a lattice, so up to a delta may be missing at a border.
    covered = np.argwhere(result.labels)
    missing = np.maximum(covered.min(axis=0), np.subtract(image.shape, 1) - covered.max(axis=0))
    assert np.all(missing < oracle.DELTAS)


def test_volume_of_one_field_of_view_is_flooded():
    image = np.full(oracle.FOV_SHAPE, 100, np.uint8)
    result = flood(image, claim_everything, seed_points=np.array([[2, 4, 5]]))
    assert (result.labels == 1).all()
    assert result.counters['fov_steps'] == 1


def test_earlier_object_keeps_its_voxels():
    image = np.full(oracle.SHAPE, 100, np.uint8)
    claim_all = flood(image, claim_everything, seed_points=np.array([SEED, (3, 5, 6)]))
    assert claim_all.counters['objects'] == 1
    assert claim_all.counters['seeds_skipped_labelled'] == 1


def test_seeds_are_not_computed_when_points_are_given(monkeypatch):
    monkeypatch.setattr(seeds, 'propose_seeds', None)
    assert len(flood(oracle.tissue(), seed_points=np.array([[16, 16, 32]])).objects) == 1


def test_no_seeds_give_an_empty_result():
    result = flood(oracle.tissue(), seed_points=np.empty((0, 3), int))
    assert not result.labels.any()
    assert result.objects.shape == (0,) and result.objects.dtype.names[0] == 'id'


def test_disconnected_stays_disconnected():
    image = np.full(oracle.FOV_SHAPE, 100, np.uint8)
    config = dataclasses.replace(oracle.CONFIG, disco_seed_threshold=0.5, min_segment_size=1)
    canvas = Canvas(image, claim_everything, oracle.FOV_SHAPE, oracle.DELTAS, config)
    canvas.logits[...] = np.nan
    canvas.logits[:, :, :4] = -2.0
    canvas.logits[:, :, 4] = 1.0
    result = canvas._step((2, 4, 5))
    assert (canvas.logits[:, :, :4] == -2.0).all()
    assert (canvas.logits[:, :, 4:] == 5.0).all()
    np.testing.assert_array_equal(result, canvas.logits)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((9, 9), np.uint8), r'shape \(9, 9\): must have three axes'),
        (np.zeros((9, 9, 11, 1), np.uint8), 'must have three axes'),
        (np.zeros(oracle.SHAPE, np.uint16), 'dtype uint16: must be uint8; scale'),
        (np.zeros(oracle.SHAPE, np.float32), 'dtype float32: must be uint8; scale'),
        (np.full(oracle.SHAPE, np.nan, np.float32), 'holds NaN: must be uint8; fill'),
        (np.zeros((5, 8, 11), np.uint8), r'\(5, 8, 11\), smaller than .* \(5, 9, 11\) \(zyx\)'),
        (np.zeros((0, 9, 11), np.uint8), 'smaller than one field of view'),
    ],
)
def test_unfit_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        flood(image)


@pytest.mark.parametrize(
    'mask', [np.zeros(oracle.SHAPE[::-1], bool), np.zeros(oracle.SHAPE, np.uint8)]
)
def test_unfit_mask_is_refused(mask):
    with pytest.raises(ValueError, match='mask has shape .*: must be bool'):
        flood(oracle.tissue(), mask=mask)


def test_deltas_and_shapes_are_checked():
    with pytest.raises(ValueError, match='leaves the field of view'):
        flood_fill(oracle.tissue(), oracle.predict, oracle.FOV_SHAPE, (3, 3, 4))
    with pytest.raises(ValueError, match='fov_shape'):
        flood_fill(oracle.tissue(), oracle.predict, (5, 9), oracle.DELTAS)


def test_wrong_prediction_is_refused():
    image = oracle.tissue()
    point = np.array([[16, 16, 32]])
    with pytest.raises(ValueError, match=r'shape \(11, 9, 5\) for a field of view of \(5, 9, 11\)'):
        flood(image, lambda image_fov, logit_fov: logit_fov.T, seed_points=point)

    def overflow(image_fov, logit_fov):
        logits = claim_everything(image_fov, logit_fov)
        logits[0, 0, 0] = np.nan
        return logits

    with pytest.raises(ValueError, match=r'NaN or infinite logits at \(16, 16, 32\)'):
        flood(image, overflow, seed_points=point)


@pytest.mark.parametrize(
    ('field', 'value', 'rule'),
    [
        ('init_activation', 1.0, r'must lie in \(0, 1\)'),
        ('pad_value', 0.0, r'must lie in \(0, 1\)'),
        ('move_threshold', 90, r'must lie in \(0, 1\)'),
        ('segment_threshold', float('nan'), r'must lie in \(0, 1\)'),
        ('init_activation', 0.8, 'must reach ffn.move_threshold'),
        ('pad_value', 0.95, 'must be less than ffn.init_activation'),
        ('min_boundary_dist', (1, 1), 'must be three whole numbers'),
        ('min_boundary_dist', (1, -1, 1), 'must be three whole numbers'),
        ('min_segment_size', 0, 'at least 1'),
        ('min_segment_size', 10.5, 'whole number'),
        ('min_piece_size', 0, 'at least 1'),
        ('min_piece_size', 5000, 'at most ffn.min_segment_size'),
        ('disco_seed_threshold', 1.0, r'must lie in \[0, 1\)'),
        ('image_mean', float('inf'), 'finite'),
        ('image_stddev', 0.0, 'positive'),
        ('seed_policy', 'best', 'must be one of peaks, peaks_2d, grid_3d'),
        ('seed_voxel_size_nm', (30.0, 6.0), 'three positive lengths'),
        ('seed_voxel_size_nm', (30.0, 6.0, 0.0), 'three positive lengths'),
    ],
)
def test_impossible_setting_is_refused(field, value, rule):
    with pytest.raises(ValueError, match=rf'ffn\.{field} is .*{rule}'):
        FfnConfig(**{field: value})


@pytest.mark.slow
def test_published_objects_are_reproduced_to_the_voxel(shared_data, tmp_path):
    from models.ffn.convert import convert

    folder = shared_data / 'fib25'
    model = convert(
        str(folder / 'google_ffn_checkpoint' / 'model.ckpt-27465036'),
        str(tmp_path / 'fib25.keras'),
        fov_shape=(33, 33, 33),
        deltas=(8, 8, 8),
    )
    network = model.load(precision='float32', batch_size=1, threads=1)
    image = np.load(folder / 'fib25_z0-170.npz')['image']
    published = np.load(folder / 'google_ffn_published_z0-170.npz')['labels']
    fov_shape = model.card.fov_shape
    canvas = Canvas(
        image,
        lambda image_fov, logit_fov: network(np.stack([image_fov, logit_fov], axis=-1)[None])[0],
        fov_shape,
        model.card.deltas,
        FfnConfig(),
    )
    points = seeds.usable_seeds(seeds.propose_seeds(image), image.shape, fov_shape)
    found = published[tuple(points.T)]
    for label, steps in ((2, 7), (3, 1), (7, 8), (16, 3)):
        canvas.labels[...] = np.where(published < label, published, 0)
        seed = tuple(points[found == label][0].tolist())
        assert canvas.flood(seed) == steps
        painted = canvas.logits >= logit(FfnConfig().segment_threshold)
        np.testing.assert_array_equal(painted & (canvas.labels == 0), published == label)


def test_grey_levels_are_those_of_the_model():
    card = ModelCard(
        name='net', fov_shape=(9, 33, 33), deltas=(2, 8, 8), depth=2, features=2,
        image_mean=120.0, image_stddev=20.0,
    )  # fmt: skip
    assert FfnConfig().grey_levels == (128.0, 33.0)
    assert FfnConfig().for_model(card).grey_levels == (120.0, 20.0)
    assert FfnConfig(image_mean=120.0).for_model(card).grey_levels == (120.0, 20.0)
    with pytest.raises(ValueError, match=r"ffn.image_stddev is 33.0, but .* 'net' says 20.0: must"):
        FfnConfig(image_stddev=33.0).for_model(card)


def test_a_reflected_border_is_reached_and_leaves_no_trace_elsewhere():
    """Mirrored, an object that only touches a face is found; seeds and labels stay in the image."""
    image = np.full((11, 25, 25), 20, np.uint8)
    image[:, 12:, :6] = 220  # Within half a field of view of the face x = 0.
    mask = np.zeros(image.shape, bool)
    mask[:, :, 20:] = True

    def predict(image_fov, logit_fov):
        return np.where(image_fov > 0, np.float32(6), np.float32(-6))

    def flood(border, faces=((True, True),) * 3):
        config = FfnConfig(min_segment_size=10, border=border, disco_seed_threshold=None)
        return flood_fill(image, predict, (5, 15, 15), (1, 4, 4), config, mask, faces=faces)

    assert not flood('clip').labels[:, 12:, :6].any()
    found = flood('reflect')
    assert found.labels.shape == image.shape
    assert found.labels[5, 18, 3] and (found.labels > 0).sum() > 0.6 * (image > 100).sum()
    assert not found.labels[image < 100].any()
    assert all((0 <= seed).all() and (seed < image.shape).all() for seed in found.objects['seed'])
    # Not at that face: as if clipped.
    inner = flood('reflect', ((True, True), (True, True), (False, True)))
    assert not inner.labels[:, 12:, :6].any()
