r"""Converts a published FFN checkpoint (google/ffn, TensorFlow 1) to a `.keras` file with its card.

    python -m models.ffn.convert --checkpoint ffn/model.ckpt-27465036 --output ffn.keras \
        --fov_size 33,33,33 --deltas 8,8,8 --voxel_size_nm 10,10,10

Depth, features and kernel are read off the variables. Field of view, moves and normalization
are in no checkpoint: they are in the `model_args` and the inference request that came with it.
Beware: these state `fov_size` and `deltas` as x, y, z. So do the two flags of that name here;
the card that is written has z, y, x, like all the rest.

Variables of a checkpoint: `seed_update/conv0_a/{weights,biases}`, conv0_b, conv1_a, conv1_b, ...,
conv_lom, in the layouts that Keras uses (source: ffn/training/models/convstack_3d.py in
https://github.com/google/ffn).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app
from absl import flags as absl_flags

from h01_beam import storage
from h01_beam.models import ModelCard, ModelRef, import_keras, save_model

Array = npt.NDArray[Any]

SCOPE = 'seed_update/'
OUTPUT_LAYER = 'conv_lom'
_LAYER = re.compile(r'(conv\d+_[ab]|conv_lom)/(weights|biases)')
# What optimizers and averages leave beside a variable.
_SLOT = re.compile(
    r'.+/(weights|biases)/(Momentum|Adam(_\d)?|Adagrad|RMSProp(_\d)?|ExponentialMovingAverage)'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the variables of a checkpoint say about its network; kernel_shape is zyx."""

    depth: int
    features: int
    kernel_shape: tuple[int, int, int]


def convert(
    checkpoint: str,
    output: str,
    *,
    fov_shape: Sequence[int],
    deltas: Sequence[int],
    voxel_size_nm: Sequence[float] | None = None,
    image_mean: float = 128.0,
    image_stddev: float = 33.0,
) -> ModelRef:
    """Converts a checkpoint.

    Args:
      checkpoint: its path without `.index` or `.data-00000-of-00001`.
      output: path or gs:// URL of the file to write; ends in `.keras`.
      fov_shape: field of view, zyx voxels.
      deltas: moves, zyx voxels.
      voxel_size_nm: zyx, of the training images.
      image_mean: grey value that the network sees as 0.
      image_stddev: grey values per unit of the network's input.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: it holds no convolution-stack FFN (the message names the variable), or the
        other arguments make no valid card.
    """
    variables, global_step = read_checkpoint(checkpoint)
    architecture = infer_architecture({name: v.shape for name, v in variables.items()})
    card = ModelCard(
        name=Path(checkpoint).name,
        fov_shape=tuple(fov_shape),  # type: ignore[arg-type]
        deltas=tuple(deltas),  # type: ignore[arg-type]
        voxel_size_nm=tuple(voxel_size_nm) if voxel_size_nm else None,  # type: ignore[arg-type]
        image_mean=image_mean,
        image_stddev=image_stddev,
        depth=architecture.depth,
        features=architecture.features,
        recipe={
            'converted_from': 'google/ffn convstack_3d, TensorFlow 1',
            'global_step': global_step,
            'variables_sha256': _hash(variables),
        },
    )
    return save_model(make_model(variables, architecture, card.fov_shape), card, output)


def read_checkpoint(prefix: str) -> tuple[dict[str, Array], int | None]:
    """Reads the network's variables, and the training step if it is there.

    Returns:
      arrays by name within the scope `seed_update`, for example `conv0_a/weights`.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: it cannot be read, or has variables that no convolution-stack FFN has.
    """
    if not storage.exists(prefix + '.index'):
        raise FileNotFoundError(_no_checkpoint(prefix))
    import_keras()
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        names = _network_variables(shapes)
        variables = {name: np.asarray(reader.get_tensor(SCOPE + name)) for name in names}
    except (tf.errors.OpError, RuntimeError) as error:
        raise ValueError(f'checkpoint {prefix!r} cannot be read: {error}') from error
    for name, value in variables.items():
        if not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
            raise ValueError(
                f'variable {SCOPE + name!r} has dtype {value.dtype} or values that are not finite: '
                'must be finite floats; the checkpoint is damaged, or its training diverged'
            )
    step = int(reader.get_tensor('global_step')) if 'global_step' in shapes else None
    return variables, step


def infer_architecture(shapes: Mapping[str, Sequence[int]]) -> Architecture:
    """Reads depth, features and kernel off the shapes of a network's variables.

    Args:
      shapes: by name within the scope, as from `read_checkpoint`.

    Raises:
      ValueError: a variable is missing, or has a shape that does not fit the others.
    """
    stages = {int(m[1]) for m in (re.match(r'conv(\d+)_', name) for name in shapes) if m}
    first = tuple(shapes.get('conv0_a/weights', ()))
    if len(first) != 5 or first[3] != 2:
        raise _other_architecture(
            'conv0_a/weights', f'has shape {first or "none (it is missing)"}',
            'must be (z, y, x, 2, features): a 3-d kernel over image and object logits',
        )  # fmt: skip
    kernel, features, depth = first[:3], first[4], max(stages) + 1
    layers = [f'conv{i}_{half}' for i in range(depth) for half in 'ab'] + [OUTPUT_LAYER]
    expected: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        weights = (*kernel, features, features)
        if layer == layers[0]:
            weights = first
        if layer == OUTPUT_LAYER:
            weights = (1, 1, 1, features, 1)
        expected |= {f'{layer}/weights': weights, f'{layer}/biases': weights[-1:]}
    for name, shape in expected.items():
        if name not in shapes:
            raise _other_architecture(name, 'is missing', f'depth {depth} needs it')
        if tuple(shapes[name]) != shape:
            raise _other_architecture(name, f'has shape {tuple(shapes[name])}', f'must be {shape}')
    return Architecture(depth=depth, features=features, kernel_shape=kernel)


def make_model(
    variables: Mapping[str, Array], architecture: Architecture, fov_shape: Sequence[int]
) -> Any:
    """A `keras.Model` with the variables of a checkpoint (see `read_checkpoint`)."""
    import_keras()
    from models.ffn.network import build_ffn

    model = build_ffn(
        fov_shape, architecture.depth, architecture.features, architecture.kernel_shape
    )
    for layer in model.layers:
        if layer.weights:
            source = OUTPUT_LAYER if layer.name == 'logit_update' else layer.name
            layer.set_weights([variables[f'{source}/weights'], variables[f'{source}/biases']])
    return model


def _network_variables(names: Mapping[str, Any]) -> list[str]:
    inside = [name.removeprefix(SCOPE) for name in sorted(names) if name.startswith(SCOPE)]
    if not inside:
        raise ValueError(
            f'the checkpoint has no variable {SCOPE}conv0_a/weights, so it holds no FFN of '
            f'google/ffn (convstack_3d); it has {", ".join(sorted(names)[:5]) or "none"}, ...'
        )
    network = [name for name in inside if not _SLOT.fullmatch(name)]
    for name in network:
        if not _LAYER.fullmatch(name):
            raise _other_architecture(name, 'is unknown', 'only conv<N>_a, conv<N>_b and conv_lom')
    return network


def _other_architecture(name: str, found: str, rule: str) -> ValueError:
    return ValueError(
        f'variable {SCOPE + name!r} {found} ({rule}): the checkpoint is of another architecture '
        'than convstack_3d of google/ffn, the one that can be converted'
    )


def _no_checkpoint(prefix: str) -> str:
    folder = Path(prefix) if Path(prefix).is_dir() else Path(prefix).parent
    found = sorted(str(file.with_suffix('')) for file in folder.glob('*.index'))
    hint = f'found {", ".join(found)}' if found else f'{str(folder)!r} has no .index file'
    return (
        f'checkpoint is {prefix!r}: there is no {prefix}.index; name the files without .index or '
        f'.data-00000-of-00001 ({hint})'
    )


def _hash(variables: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(variables):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(variables[name], '<f4').tobytes())
    return digest.hexdigest()


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(','))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(','))


def _flags() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog='python -m models.ffn.convert', description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = result.add_argument
    add('--checkpoint', required=True, metavar='PREFIX', help='path without .index')
    add('--output', required=True, metavar='FILE.keras', help='local path or gs:// URL')
    add(
        '--fov_size', type=_integers, default=(33, 33, 33), metavar='X,Y,Z',
        help='field of view in voxels; x,y,z, as in model_args of google/ffn (default 33,33,33)',
    )  # fmt: skip
    add(
        '--deltas', type=_integers, default=(8, 8, 8), metavar='X,Y,Z',
        help='moves in voxels; x,y,z, as in model_args of google/ffn (default 8,8,8)',
    )  # fmt: skip
    add(
        '--voxel_size_nm', type=_numbers, metavar='Z,Y,X',
        help='of the images that the network was trained on; z,y,x (default: not stated)',
    )  # fmt: skip
    add('--image_mean', type=float, default=128.0, help='grey value (default %(default)g)')
    add('--image_stddev', type=float, default=33.0, help='grey values (default %(default)g)')
    return result


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _flags()
    args, unknown = parser.parse_known_args(argv[1:])
    try:
        left = absl_flags.FLAGS([argv[0], *unknown])[1:]
    except absl_flags.Error as error:
        parser.error(str(error))
    if left:
        parser.error(f'unrecognized arguments: {" ".join(left)}')
    return args


def main(args: argparse.Namespace) -> None:
    """Converts, and says what was found; ends the process with a message if it cannot."""
    try:
        ref = convert(
            args.checkpoint,
            args.output,
            fov_shape=args.fov_size[::-1],
            deltas=args.deltas[::-1],
            voxel_size_nm=args.voxel_size_nm,
            image_mean=args.image_mean,
            image_stddev=args.image_stddev,
        )
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    card = ref.card
    print(
        f'wrote {ref.uri}: depth {card.depth}, {card.features} features, field of view '
        f'{card.fov_shape} and deltas {card.deltas} (zyx)\nsha256 {ref.sha256}'
    )


if __name__ == '__main__':
    app.run(main, flags_parser=_parse)
