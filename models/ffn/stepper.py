"""One gradient step, on TensorFlow or JAX: the only place that knows which."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.ffn.train_config import OptimizerConfig

Real = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


class Stepper(Protocol):
    """Trains a model in place."""

    def step(self, inputs: Real, targets: Real) -> tuple[float, Real]:
        """One step; returns the loss and the logits (b, z, y, x, 1) that it was taken from."""
        ...

    def state(self) -> Arrays:
        """Weights and optimizer, by name."""
        ...

    def restore(self, state: Arrays) -> None:
        """Inverse of `state`."""
        ...

    def sync(self) -> Any:
        """The Keras model with the weights of now."""
        ...


def make_stepper(model: Any, config: OptimizerConfig, total_steps: int) -> Stepper:
    """Prepares training on Keras' backend of now.

    Args:
      model: keras.Model of a flood-filling network.
      config: the optimizer.
      total_steps: over which the learning rate falls.

    Raises:
      ValueError: the backend is neither TensorFlow nor JAX.
    """
    import keras

    schedule = learning_rates(config, total_steps)
    if config.kind == 'adam':
        optimizer = keras.optimizers.Adam(schedule, global_clipnorm=config.clip_norm)
    else:
        optimizer = keras.optimizers.SGD(schedule, momentum=0.9, global_clipnorm=config.clip_norm)
    optimizer.build(model.trainable_variables)
    backend = keras.backend.backend()
    if backend == 'tensorflow':
        return _TensorFlowStepper(model, optimizer)
    if backend == 'jax':
        return _JaxStepper(model, optimizer)
    raise ValueError(f'KERAS_BACKEND is {backend!r}: must be tensorflow or jax')


def learning_rates(config: OptimizerConfig, total_steps: int) -> Any:
    """Half a cosine from each start to the next.

    Args:
      config: the optimizer.
      total_steps: of the training.

    Returns:
      keras schedule, the learning rate by step.
    """
    import keras

    starts = (0, *config.restart_steps)
    falls = [
        keras.optimizers.schedules.CosineDecay(
            0.0,
            max(1, end - start - config.warmup_steps),
            alpha=config.final_learning_rate / config.learning_rate,
            warmup_target=config.learning_rate / 2**n,
            warmup_steps=config.warmup_steps,
        )
        for n, (start, end) in enumerate(zip(starts, (*starts[1:], total_steps), strict=True))
    ]

    class _Falls(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            rate = falls[0](step)
            for start, fall in zip(starts[1:], falls[1:], strict=True):
                rate = keras.ops.where(step >= start, fall(step - start), rate)
            return rate

    return _Falls() if config.restart_steps else falls[0]


def _loss(ops: Any, logits: Any, targets: Any) -> Any:
    """Mean sigmoid cross-entropy, in the form that does not overflow."""
    losses = ops.maximum(logits, 0.0) - logits * targets + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.mean(losses)


class _Base:
    def __init__(self, model: Any, optimizer: Any) -> None:
        self._model, self._optimizer = model, optimizer

    def state(self) -> Arrays:
        self.sync()
        weights = {f'w{n}': np.asarray(v) for n, v in enumerate(self._model.get_weights())}
        slots = {f'o{n}': np.asarray(v) for n, v in enumerate(self._optimizer.variables)}
        return weights | slots

    def restore(self, state: Arrays) -> None:
        count = len(self._model.get_weights())
        self._model.set_weights([state[f'w{n}'] for n in range(count)])
        for n, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f'o{n}'])

    def sync(self) -> Any:
        return self._model


class _TensorFlowStepper(_Base):
    def __init__(self, model: Any, optimizer: Any) -> None:
        super().__init__(model, optimizer)
        import keras
        import tensorflow as tf

        def step(inputs: Any, targets: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                logits = model(inputs, training=True)
                loss = _loss(keras.ops, logits, targets)
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss, logits

        self._step = tf.function(step, autograph=False)

    def step(self, inputs: Real, targets: Real) -> tuple[float, Real]:
        import tensorflow as tf

        loss, logits = self._step(tf.constant(inputs), tf.constant(targets))
        return _finite(float(loss)), logits.numpy()


class _JaxStepper(_Base):
    def __init__(self, model: Any, optimizer: Any) -> None:
        super().__init__(model, optimizer)
        import jax
        import keras

        def loss_of(weights: Any, rest: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
            logits, _ = model.stateless_call(weights, rest, inputs, training=True)
            return _loss(keras.ops, logits, targets), logits

        gradient = jax.value_and_grad(loss_of, has_aux=True)

        def step(weights: Any, rest: Any, slots: Any, inputs: Any, targets: Any) -> Any:
            (loss, logits), gradients = gradient(weights, rest, inputs, targets)
            weights, slots = optimizer.stateless_apply(slots, gradients, weights)
            return loss, logits, weights, slots

        self._step = jax.jit(step, donate_argnums=(0, 2))
        self._weights: Any
        self._rest: Any
        self._slots: Any
        self._load()

    def step(self, inputs: Real, targets: Real) -> tuple[float, Real]:
        loss, logits, self._weights, self._slots = self._step(
            self._weights, self._rest, self._slots, inputs, targets
        )
        return _finite(float(loss)), np.asarray(logits)

    def restore(self, state: Arrays) -> None:
        super().restore(state)
        self._load()

    def sync(self) -> Any:
        for variable, value in zip(self._model.trainable_variables, self._weights, strict=True):
            variable.assign(value)
        for variable, value in zip(self._optimizer.variables, self._slots, strict=True):
            variable.assign(value)
        return self._model

    def _load(self) -> None:
        # Copies: the step donates them, and the model keeps its own.
        import jax.numpy as jnp

        self._weights = [jnp.array(v.value) for v in self._model.trainable_variables]
        self._rest = [jnp.array(v.value) for v in self._model.non_trainable_variables]
        self._slots = [jnp.array(v.value) for v in self._optimizer.variables]


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f'the loss is {loss}: lower optimizer.learning_rate, or train in float32'
        )
    return loss
