"""The flood-filling network: a stack of residual 3-d convolutions.

Source: Januszewski et al., "High-precision automated reconstruction of neurons with
flood-filling networks", Nature Methods 15 (2018), and the `convstack_3d` model of
https://github.com/google/ffn. With layer normalization, the stack is that of
https://github.com/google-research/connectomics (`ResConvStack`).

    inputs (b, z, y, x, 2) = normalized image, object logits ("seed")
      |
      +-> conv0_a > relu > conv0_b
      |     '-> depth - 1 times:  + <- conv_b < relu < conv_a < relu     (residual module)
      |           '-> relu > logit_update (1 x 1 x 1) --+
      '-> seed_logits ----------------------------------+--> logits (b, z, y, x, 1)

Built-in layers only, each with a name of its own: the saved file loads in Keras' safe mode on
every backend, and equal networks make equal files. Layers with `logit` in their name stay in
float32 whatever the precision of the rest (see `h01_beam.models`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
from keras import layers

# Stated, as the user's ~/.keras/keras.json could say otherwise.
CHANNELS_LAST = 'channels_last'
# Flax's, in which the published networks with layer normalization were trained.
LAYER_NORM_EPSILON = 1e-6


def build_ffn(
    fov_shape: Sequence[int],
    depth: int = 12,
    features: int = 32,
    kernel_shape: Sequence[int] = (3, 3, 3),
    layer_norm: bool = False,
) -> keras.Model:
    """Builds a flood-filling network with random weights.

    Args:
      fov_shape: field of view, zyx; odd, so that it has a centre voxel.
      depth: number of pairs of convolutions: the first, then `depth - 1` residual modules.
      features: channels of every convolution but the last.
      kernel_shape: zyx, odd.
      layer_norm: normalize after the first convolution, at the start of every residual module
        and before the output, which steadies the training of deep networks (20 or so).

    Returns:
      a model from (b, z, y, x, 2) float32, channels normalized image and object logits, to
      (b, z, y, x, 1) float32, the updated logits: the input logits plus what the network adds.

    Raises:
      ValueError: a shape is not odd and positive, or `depth` or `features` is less than 1.
    """
    fov, kernel = _odd('fov_shape', fov_shape), _odd('kernel_shape', kernel_shape)
    for name, value in (('depth', depth), ('features', features)):
        if value < 1:
            raise ValueError(f'{name} is {value}: must be at least 1')

    # What a residual module adds starts small, or the sum of all of them would drown what came in.
    begin = keras.initializers.HeNormal
    add = partial(keras.initializers.VarianceScaling, 0.2 / depth)

    def conv(name: str, relu: bool = False) -> Any:
        return layers.Conv3D(
            features,
            kernel,
            padding='same',
            data_format=CHANNELS_LAST,
            activation='relu' if relu else None,
            kernel_initializer=begin() if relu or name == 'conv0_b' else add(),
            name=name,
        )

    def norm(net: Any, name: str) -> Any:
        if not layer_norm:
            return net
        return layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name)(net)

    inputs = keras.Input((*fov, 2), name='image_and_logits', dtype='float32')
    if layer_norm:
        net = norm(conv('conv0_a')(inputs), 'norm0')
        net = layers.ReLU(name='relu0')(net)
    else:
        # The same function; but a convolution with its activation runs as one kernel.
        net = conv('conv0_a', relu=True)(inputs)
    net = conv('conv0_b')(net)
    for i in range(1, depth):
        skip = net
        net = layers.ReLU(name=f'relu{i}')(norm(net, f'norm{i}'))
        net = conv(f'conv{i}_a', relu=True)(net)
        net = conv(f'conv{i}_b')(net)
        net = layers.Add(name=f'residual{i}')([net, skip])
    net = layers.ReLU(name='relu_out')(norm(net, 'norm_out'))
    return keras.Model(inputs, _update_logits(inputs, net), name='ffn')


def _update_logits(inputs: Any, net: Any) -> Any:
    """Adds the update that the last, 1 x 1 x 1, convolution makes to the input logits."""
    update = layers.Conv3D(
        1, (1, 1, 1), data_format=CHANNELS_LAST, dtype='float32', name='logit_update'
    )(net)
    # Named channels_first, axes 2 to 4 are what this layer crops: here y, x and the channels.
    # Unlike `inputs[..., 1:]` it is a layer, whose name does not depend on what was built before.
    seed = layers.Cropping3D(
        ((0, 0), (0, 0), (1, 0)), data_format='channels_first', dtype='float32', name='seed_logits'
    )(inputs)
    return layers.Add(dtype='float32', name='logits')([seed, update])


def _odd(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    result = tuple(int(n) for n in shape)
    if len(result) != 3 or any(n < 1 or n % 2 == 0 for n in result):
        raise ValueError(
            f'{name} is {result}: must be three odd positive numbers, zyx, for example (33, 33, 33)'
        )
    return result
