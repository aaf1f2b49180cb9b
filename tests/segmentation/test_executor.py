from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from h01_beam.segmentation.executor import BatchExecutor, NetworkError
from h01_beam.segmentation.ffn import flood_fill
from tests.segmentation import oracle

# A test that would hang fails after this long instead.
LIMIT_S = 30


def request(value, shape=oracle.FOV_SHAPE):
    """A field of view that encodes the request and its position."""
    image_fov = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * value
    return image_fov, np.full(shape, value, np.float32)


def subtract(batch):
    return batch[..., 0] - 2 * batch[..., 1]


def in_threads(work, arguments):
    """Results of `work` in one thread for each argument; exceptions instead of results."""
    results = {}

    def run(key, argument):
        try:
            results[key] = work(argument)
        except BaseException as error:
            results[key] = error

    threads = [
        threading.Thread(target=run, args=item, daemon=True) for item in enumerate(arguments)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), 'threads hang'
    return [results[key] for key in range(len(threads))]


def flood_blocks(executor, images, canvases):
    def flood(image):
        with executor.client() as predict:
            return flood_fill(image, predict, oracle.FOV_SHAPE, oracle.DELTAS, oracle.CONFIG)

    with ThreadPoolExecutor(canvases) as pool:
        futures = [pool.submit(flood, image) for image in images]
        return [future.result(timeout=LIMIT_S) for future in futures]


@pytest.mark.parametrize('canvases', [1, 2, 8])
@pytest.mark.parametrize(('batch_size', 'runners'), [(1, 1), (1, 2), (4, 1), (4, 2)])
def test_same_objects_at_any_number_of_canvases(canvases, batch_size, runners):
    images = [np.roll(oracle.tissue(), shift, axis=2)[:20, :25, :28] for shift in range(0, 40, 5)]
    expected = [
        flood_fill(image, oracle.predict, oracle.FOV_SHAPE, oracle.DELTAS, oracle.CONFIG)
        for image in images
    ]
    steps = sum(result.counters['fov_steps'] for result in expected)
    assert steps > 200 and len({result.labels.tobytes() for result in expected}) == len(images)

    shapes = set()

    def network(batch):
        shapes.add(batch.shape)
        return oracle.network(batch)

    with BatchExecutor(network, batch_size, oracle.FOV_SHAPE, runners) as executor:
        results = flood_blocks(executor, images, canvases)
    for result, reference in zip(results, expected, strict=True):
        assert result.labels.tobytes() == reference.labels.tobytes()
        assert result.objects.tobytes() == reference.objects.tobytes()
        assert result.counters == reference.counters
    assert shapes == {(batch_size, *oracle.FOV_SHAPE, 2)}
    counters = executor.counters
    assert counters.fov_steps == steps
    assert counters.batches * batch_size == steps + counters.slots_padded
    assert 0 < counters.busy_s <= counters.network_s + 1e-6
    if canvases == 8 and runners == 1:
        assert counters.slots_padded < 0.4 * steps


def test_requests_reach_the_network_and_come_back_in_place():
    with BatchExecutor(subtract, 3, oracle.FOV_SHAPE) as executor:

        def ask(value):
            with executor.client() as predict:
                return [predict(*request(value + i)) for i in range(20)]

        for start, answers in zip(
            [100, 200, 300, 400], in_threads(ask, [100, 200, 300, 400]), strict=True
        ):
            for i, answer in enumerate(answers):
                image_fov, logit_fov = request(start + i)
                np.testing.assert_array_equal(answer, image_fov - 2 * logit_fov)
                assert answer.dtype == np.float32


def test_batch_waits_until_it_is_full():
    first_entered = threading.Event()

    def network(batch):
        if not first_entered.is_set():
            # The first batch holds only one request. Hold it back until all have registered.
            first_entered.set()
            time.sleep(0.2)
        return subtract(batch)

    with BatchExecutor(network, 4, oracle.FOV_SHAPE) as executor:

        def ask(delay_s):
            with executor.client() as predict:
                if delay_s:
                    assert first_entered.wait(LIMIT_S)
                for _ in range(10):
                    time.sleep(delay_s)
                    predict(*request(1))

        in_threads(ask, [0.0, 0.002, 0.004, 0.006])
    # One batch of the first alone, one of the three others, and then full ones but for the end.
    assert executor.counters.fov_steps == 40
    assert executor.counters.batches <= 13


def test_last_canvases_do_not_wait_for_company():
    with BatchExecutor(subtract, 4, oracle.FOV_SHAPE) as executor:

        def ask(requests):
            with executor.client() as predict:
                for _ in range(requests):
                    predict(*request(1))
            return True

        assert in_threads(ask, [1, 5, 10, 50]) == [True] * 4
    counters = executor.counters
    assert counters.fov_steps == 66
    # The last 40 requests came from one canvas alone: three padded slots in each batch.
    assert counters.slots_padded >= 40 * 3


def test_padding_is_zero_and_batches_before_leave_no_trace():
    seen = []

    def network(batch):
        seen.append(batch.copy())
        time.sleep(0.005)  # long enough for the others to queue up
        return subtract(batch)

    with BatchExecutor(network, 3, oracle.FOV_SHAPE) as executor:

        def ask(value):
            with executor.client() as predict:
                for _ in range(10):
                    predict(*request(value))

        in_threads(ask, [5, 6, 7])
        assert any(batch[..., 1].all() for batch in seen)
        executor.predict(*request(9))
    assert (seen[-1][0, ..., 1] == 9).all()
    assert not seen[-1][1:].any()


def test_client_that_leaves_lets_the_others_go_on():
    with BatchExecutor(subtract, 2, oracle.FOV_SHAPE) as executor:
        registered = threading.Event()

        def stay(_):
            assert registered.wait(LIMIT_S)
            with executor.client() as predict:
                return predict(*request(1)).shape

        def leave(_):
            try:
                with executor.client() as predict:
                    predict(*request(2))
                    registered.set()
                    time.sleep(0.1)  # the other one waits for us meanwhile
                    raise KeyError('this canvas broke')
            except KeyError:
                return 'left'

        results = in_threads(lambda work: work(None), [stay, leave])
    assert results == [oracle.FOV_SHAPE, 'left']
    assert executor.counters.batches == 2


def test_client_without_a_request_holds_nobody_up():
    with BatchExecutor(subtract, 2, oracle.FOV_SHAPE) as executor:
        with executor.client(), executor.client() as predict:
            assert in_threads(lambda value: predict(*request(value)).shape, [1]) == [
                oracle.FOV_SHAPE
            ]


@pytest.mark.parametrize('batch_size', [1, 3])
def test_failure_of_the_network_reaches_every_client(batch_size):
    def network(batch):
        raise MemoryError('no memory left for the convolution')

    with BatchExecutor(network, batch_size, oracle.FOV_SHAPE) as executor:

        def ask(value):
            with executor.client() as predict:
                predict(*request(value))

        errors = in_threads(ask, range(5))
    for error in errors:
        assert isinstance(error, NetworkError)
        assert 'no memory left for the convolution' in str(error)
        assert isinstance(error.__cause__, MemoryError)


def test_executor_works_again_after_a_failure():
    failures = iter([True, False, False])

    def network(batch):
        if next(failures):
            raise OSError('the accelerator went away')
        return subtract(batch)

    with BatchExecutor(network, 2, oracle.FOV_SHAPE) as executor:
        with executor.client() as predict:
            with pytest.raises(NetworkError, match='the accelerator went away'):
                predict(*request(1))
            np.testing.assert_array_equal(predict(*request(3)), subtract_of(3))
        np.testing.assert_array_equal(executor.predict(*request(4)), subtract_of(4))


def subtract_of(value):
    image_fov, logit_fov = request(value)
    return image_fov - 2 * logit_fov


def test_interrupt_in_the_network_is_not_swallowed():
    started = threading.Barrier(2)

    def network(batch):
        raise KeyboardInterrupt

    with BatchExecutor(network, 2, oracle.FOV_SHAPE) as executor:

        def ask(value):
            with executor.client() as predict:
                started.wait(LIMIT_S)
                predict(*request(value))

        errors = in_threads(ask, [1, 2])
    assert any(isinstance(error, KeyboardInterrupt) for error in errors)
    assert all(isinstance(error, (KeyboardInterrupt, NetworkError)) for error in errors)


def test_wrong_shape_from_the_network_is_named():
    with BatchExecutor(lambda batch: batch, 2, oracle.FOV_SHAPE) as executor:
        with pytest.raises(NetworkError, match=r'must be \(2, 5, 9, 11\)'):
            executor.predict(*request(1))


def test_request_of_another_shape_is_refused_and_harms_nobody():
    with BatchExecutor(subtract, 2, oracle.FOV_SHAPE) as executor:
        with executor.client() as predict:
            with pytest.raises(ValueError):
                predict(*request(1, oracle.FOV_SHAPE[::-1]))
        np.testing.assert_array_equal(executor.predict(*request(4)), subtract_of(4))
    assert executor.counters.fov_steps == 1


def test_closed_executor_refuses_and_releases():
    entered, release = threading.Event(), threading.Event()

    def network(batch):
        entered.set()
        assert release.wait(LIMIT_S)
        return subtract(batch)

    executor = BatchExecutor(network, 1, oracle.FOV_SHAPE)

    def ask(value):
        with executor.client() as predict:
            return predict(*request(value))

    def close(_):
        assert entered.wait(LIMIT_S)
        time.sleep(0.1)  # the other two are queued by now
        executor.close()
        release.set()

    results = in_threads(lambda work: work(1), [ask, ask, ask, close])
    answered = [r for r in results[:3] if isinstance(r, np.ndarray)]
    refused = [r for r in results[:3] if isinstance(r, NetworkError)]
    assert len(answered) == 1 and len(refused) == 2
    with pytest.raises(NetworkError, match='closed'):
        executor.predict(*request(1))


def test_runners_bound_the_concurrent_calls():
    lock = threading.Lock()
    under_way, most = 0, 0

    def network(batch):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.005)
        with lock:
            under_way -= 1
        return subtract(batch)

    with BatchExecutor(network, 1, oracle.FOV_SHAPE, runners=2) as executor:

        def ask(value):
            with executor.client() as predict:
                for _ in range(10):
                    predict(*request(value))

        in_threads(ask, range(6))
    assert most == 2
    counters = executor.counters
    assert counters.batches == 60 and counters.slots_padded == 0
    assert counters.busy_s < counters.network_s


@pytest.mark.parametrize(('batch_size', 'runners'), [(0, 1), (1, 0)])
def test_sizes_are_checked(batch_size, runners):
    with pytest.raises(ValueError, match='must be at least 1'):
        BatchExecutor(subtract, batch_size, oracle.FOV_SHAPE, runners)
