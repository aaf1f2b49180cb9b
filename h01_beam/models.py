"""Model artifacts: a `.keras` file with its card, loaded once per process and run in batches.

A model is one file, local or in a bucket: Keras' zip archive with one more member, `card.json`
(`ModelCard`), which holds what the weights cannot say. Its identity is the SHA-256 of the file.
`save_model` writes equal models as equal bytes, and a readable `NAME.card.json` beside them.

    ref = ModelRef.resolve('gs://bucket/ffn.keras')  # driver: reads and checks, needs no Keras
    network = ref.load(precision='bfloat16', batch_size=4, threads=1)  # worker: once per process
    logits = network(batch)  # (b, z, y, x, 2) -> (b, z, y, x)

A sample's logits do not depend on its slot, on what the other slots hold, or on `threads`: the
same bytes on one kind of processor (in `bfloat16`, if it computes in that: see
`computes_bfloat16`). Precision is a choice at load time. In `bfloat16` all layers
compute in bfloat16 (weights stay float32 in the file), except those with `logit` in their name,
so that logits are never rounded. Only built-in layers load (Keras' safe mode).

This module and `models/` are the only ones that know Keras and TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from absl import logging

from h01_beam import config as config_lib
from h01_beam import storage
from h01_beam.geometry import Triple
from h01_beam.model_file import (
    CARD,
    HOW_TO_MAKE,
    SUFFIX,
    ModelCard,
    input_shapes,
    pack,
    read_file,
    to_json,
    unpack,
)

__all__ = [
    'ModelCard',
    'ModelRef',
    'Network',
    'Precision',
    'RUNTIME_BYTES',
    'import_keras',
    'load_keras',
    'save_model',
    'with_precision',
]

Float32: TypeAlias = npt.NDArray[np.float32]
Precision: TypeAlias = Literal['float32', 'bfloat16']

# Keras' dtype policies: in the mixed one, variables are float32 and everything else bfloat16.
_POLICIES: Mapping[str, str] = {'float32': 'float32', 'bfloat16': 'mixed_bfloat16'}

# Measured on Linux with TensorFlow 2.21, batches of 1 to 16, both precisions, and rounded up; most
# of it on a processor with AVX2 alone (1.07 GB with a large network and its pass).
RUNTIME_BYTES = 1 << 30
_WEIGHT_COPIES = 8
_LIVE_ACTIVATIONS = 6
_LOGIT_BYTES = 64


@dataclasses.dataclass(frozen=True)
class ModelRef:
    """A checked model file, small enough to travel with a pipeline.

    Attributes:
      uri: local path or gs:// URL.
      sha256: of the file, hex; the model's identity wherever results depend on it.
      card: the card in the file.
      file_bytes: its size.
    """

    uri: str
    sha256: str
    card: ModelCard
    file_bytes: int

    @classmethod
    def resolve(cls, uri: str) -> ModelRef:
        """Reads a model file and checks its card, without Keras.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no `.keras` archive, has no card or an invalid one, or its network
            does not take the fields of view that the card states.
        """
        data = read_file(uri)
        members = unpack(uri, data)
        if CARD not in members:
            raise ValueError(
                f'model {uri!r} has no card ({CARD} in the archive), so its moves and its '
                f'normalization are unknown; {HOW_TO_MAKE}'
            )
        try:
            card = config_lib.from_dict(ModelCard, json.loads(members[CARD]))
        except (ValueError, TypeError) as error:
            raise ValueError(f'model {uri!r} has an invalid card: {error}') from error
        _check_shape(uri, 'input', card.input_shape, input_shapes(members['config.json']))
        return cls(uri, hashlib.sha256(data).hexdigest(), card, len(data))

    def load(
        self, *, precision: Precision = 'float32', batch_size: int = 1, threads: int = 1
    ) -> Network:
        """The network, ready to run; loaded on the first call with these arguments. Thread-safe.

        Args:
          precision: 'float32', or 'bfloat16' (about twice as fast where processors have it).
          batch_size: samples per call; fixed.
          threads: of TensorFlow, for one call; 0 for all cores. They are set once per process:
            if TensorFlow already runs with another number, it stays and a warning is logged.

        Raises:
          FileNotFoundError: the file has gone.
          ValueError: an argument is out of range, the file is no longer the one that was
            resolved, or Keras cannot load it.
        """
        if precision not in get_args(Precision):
            raise ValueError(
                f'precision is {precision!r}: must be one of {", ".join(get_args(Precision))}'
            )
        for name, value, least in (('batch_size', batch_size, 1), ('threads', threads, 0)):
            if value < least:
                raise ValueError(f'{name} is {value}: must be at least {least}')
        key = (self.sha256, precision, batch_size, threads)
        with _cache_lock:
            if key not in _cache:
                _cache[key] = _load_network(self, precision, batch_size, threads)
            return _cache[key]

    def projected_bytes(self, batch_size: int, precision: Precision = 'float32') -> int:
        """Memory of the weights and of one forward pass at a time, on a CPU; an upper bound.

        Comes on top of `RUNTIME_BYTES`, which a process pays once.
        """
        channel_bytes = 4 if precision == 'float32' else 2
        per_voxel = _LIVE_ACTIVATIONS * self.card.features * channel_bytes + _LOGIT_BYTES
        return _WEIGHT_COPIES * self.file_bytes + (
            batch_size * math.prod(self.card.fov_shape) * per_voxel
        )


_cache: dict[tuple[str, str, int, int], Network] = {}
_cache_lock = threading.Lock()


class Network:
    """A loaded network with a fixed batch shape. Calls may come from several threads at once.

    Attributes:
      batch_size: samples per call.
      fov_shape: zyx.
      precision: 'float32' or 'bfloat16'.
    """

    def __init__(
        self,
        function: Callable[[Float32], Float32],
        batch_size: int,
        fov_shape: Triple,
        precision: Precision,
    ) -> None:
        self._function = function
        self.batch_size = batch_size
        self.fov_shape = fov_shape
        self.precision = precision

    def __call__(self, batch: Float32) -> Float32:
        """Runs the network.

        Args:
          batch: (b, z, y, x, 2) float32; channels normalized image and object logits.

        Returns:
          (b, z, y, x) float32, new: the logits plus the network's update.

        Raises:
          ValueError: the batch has another shape or dtype.
        """
        expected = (self.batch_size, *self.fov_shape, 2)
        if batch.shape != expected or batch.dtype != np.float32:
            raise ValueError(
                f'batch is {batch.dtype} of shape {batch.shape}: must be float32 of shape '
                f'{expected} (b, z, y, x, channel); pad smaller batches'
            )
        return self._function(batch)[..., 0]


def save_model(model: Any, card: ModelCard, uri: str) -> ModelRef:
    """Writes a Keras model with its card; equal weights and cards make equal bytes.

    Without optimizer and in float32, whatever the model was trained in.

    Args:
      model: keras.Model of built-in layers; (b, *fov, 2) in, (b, *fov, 1) out.
      card: its card.
      uri: where to, local or gs://; ends in `.keras`. `NAME.card.json`, with the hash, goes
        beside it.

    Raises:
      ValueError: the card's field of view is not the model's, or `uri` has another ending.
    """
    if not uri.endswith(SUFFIX):
        raise ValueError(f'uri is {uri!r}: must end in {SUFFIX}')
    _check_shapes(uri, card, model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model' + SUFFIX)
        with_precision(model, 'float32').save(path)
        members = unpack(uri, path.read_bytes())
    metadata = json.loads(members['metadata.json'])
    metadata.pop('date_saved', None)
    members['metadata.json'] = to_json(metadata)
    members[CARD] = to_json(config_lib.as_dict(card))
    data = pack(members)
    ref = ModelRef(uri, hashlib.sha256(data).hexdigest(), card, len(data))
    storage.write_bytes(uri, data)
    beside = {'file': uri.rpartition('/')[2], 'sha256': ref.sha256, **config_lib.as_dict(card)}
    storage.write_bytes(uri.removesuffix(SUFFIX) + '.' + CARD, to_json(beside))
    return ref


def _check_shapes(uri: str, card: ModelCard, model: Any) -> None:
    for kind, expected, tensors in (
        ('input', card.input_shape, model.inputs),
        ('output', (*card.fov_shape, 1), model.outputs),
    ):
        _check_shape(uri, kind, expected, [tuple(tensor.shape[1:]) for tensor in tensors])


def _check_shape(uri: str, kind: str, expected: tuple[int, ...], found: list[Any]) -> None:
    if found != [expected]:
        raise ValueError(
            f'model {uri!r} is no flood-filling network that fits its card: the shape of its '
            f'{kind} is {", ".join(map(str, found)) or "not stated"}, but card.fov_shape, '
            f'{expected[:3]} (zyx), needs one {kind} of shape {expected}; correct the card, or use '
            'another file'
        )


def _load_network(ref: ModelRef, precision: Precision, batch_size: int, threads: int) -> Network:
    data = read_file(ref.uri)
    found = hashlib.sha256(data).hexdigest()
    if found != ref.sha256:
        raise ValueError(
            f'model {ref.uri!r} has SHA-256 {found}, but this run was planned with {ref.sha256}: '
            'the file was replaced; put it back, or start the run again'
        )
    model = _read_keras(ref.uri, data, import_keras(threads))
    if precision == 'bfloat16' and not computes_bfloat16():
        logging.warning(
            'inference.precision is bfloat16, which this processor lacks: it is slower here than '
            'float32, and logits may differ in their last bits with what shares a batch'
        )
    _check_shapes(ref.uri, ref.card, model)
    function = _compile(with_precision(model, precision), (batch_size, *ref.card.input_shape))
    # The first call lays out weights and may fail; better here than in the middle of a canvas.
    function(np.zeros((batch_size, *ref.card.input_shape), np.float32))
    logging.info('loaded %s (%s, batch %d)', ref.uri, precision, batch_size)
    return Network(function, batch_size, ref.card.fov_shape, precision)


@functools.cache
def computes_bfloat16() -> bool:
    """Whether this machine multiplies in bfloat16 (by its processor, or an accelerator)."""
    import tensorflow as tf

    if any(device.device_type != 'CPU' for device in tf.config.list_physical_devices()):
        return True
    try:
        flags = Path('/proc/cpuinfo').read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ('avx512_bf16', 'amx_bf16', ' bf16'))


def load_keras(uri: str, keras: Any) -> Any:
    """The Keras model in a file, for training; inference uses `ModelRef.load`.

    Raises:
      FileNotFoundError, ValueError: as `ModelRef.resolve` and `ModelRef.load`.
    """
    return _read_keras(uri, read_file(uri), keras)


def _read_keras(uri: str, data: bytes, keras: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model' + SUFFIX)
        path.write_bytes(data)
        try:
            return keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise ValueError(
                f'model {uri!r} cannot be loaded by Keras {keras.__version__}: '
                f'{type(error).__name__}: {error}; only built-in layers are allowed'
            ) from error


def with_precision(model: Any, precision: Precision) -> Any:
    """A copy of the model, without optimizer, whose layers compute in `precision`."""
    config = model.get_config()
    for layer in config['layers']:
        if layer['class_name'] != 'InputLayer':
            in_float32 = 'logit' in layer['config']['name']
            layer['config']['dtype'] = 'float32' if in_float32 else _POLICIES[precision]
    result = type(model).from_config(config)
    result.set_weights(model.get_weights())
    return result


def _compile(model: Any, batch_shape: tuple[int, ...]) -> Callable[[Float32], Float32]:
    import keras

    if keras.backend.backend() != 'tensorflow':
        return model.predict_on_batch
    import tensorflow as tf

    for layer in model.layers:
        if isinstance(layer, keras.layers.Add):
            layer.call = functools.partial(_add_unfused, tf.ensure_shape, layer.call)
    # Weights as constants are converted to the layout of the kernels once, not in every call.
    weights = [
        [variable.numpy() for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    function = tf.function(
        lambda batch: model.stateless_call(*weights, batch, training=False)[0],
        input_signature=[tf.TensorSpec(batch_shape, tf.float32)],
        autograph=False,
    ).get_concrete_function()
    return lambda batch: function(tf.constant(batch)).numpy()


def _add_unfused(ensure_shape: Any, add: Any, inputs: Sequence[Any]) -> Any:
    """Adds without being fused with the convolutions that come before.

    TensorFlow 2.21 tries to, fails in chains of residual modules ("remapper failed", at one of
    them or another) and then fuses nothing. A check of the shape, which costs nothing, keeps the
    addition apart, and every convolution is fused with its bias and activation: always the same
    kernels, 5 % faster.
    """
    return add([ensure_shape(tensor, tensor.shape) for tensor in inputs])


def import_keras(threads: int = 0) -> Any:
    """Imports Keras and its backend, without their greetings on stderr; returns `keras`.

    Args:
      threads: of TensorFlow, for one operation; 0 for all cores.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    with _without_greetings():
        import keras

        if keras.backend.backend() == 'tensorflow':
            import tensorflow as tf

            _set_threads(tf.config.threading, threads)
            tf.config.list_logical_devices()
    return keras


def _set_threads(config: Any, threads: int) -> None:
    try:
        config.set_intra_op_parallelism_threads(threads)
        # A network is one chain of operations, so this is how many calls run side by side: with
        # one thread between operations they would take turns.
        config.set_inter_op_parallelism_threads(max(2, os.cpu_count() or 1))
    except RuntimeError:
        logging.warning(
            'TensorFlow already runs with %s threads per operation in this process, not the %s '
            'asked for: the results are the same, the speed may not be',
            config.get_intra_op_parallelism_threads() or 'all',
            threads or 'all',
        )


# What TensorFlow 2.21 tells before its own log level is in force: information, and, as an error,
# that there is no GPU.
_GREETINGS = re.compile(rb'I\d{4} |WARNING: All log messages before absl::|E\d{4} .*cuInit: ')


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Holds stderr back while libraries load, then passes on all that is no greeting."""
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL') == '0':
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _GREETINGS.match(line):
                    os.write(2, line)
