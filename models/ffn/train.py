r"""Trains a flood-filling network, or goes on from one.

A new network on synthetic tissue:
    python -m models.ffn.train --config models/ffn/configs/phantom_30x16x16.yaml --output trained
A converted checkpoint on labelled volumes:
    python -m models.ffn.train --config models/ffn/configs/fib25_finetune.yaml \
        --set network.init=fib25.keras --output tuned

Training goes in rounds, each a function of the checkpoint before it. Killed at any moment, the same
command goes on from the last finished round, and ends with the same network. `OUTPUT/model.keras`
is the best so far on held-out tissue, or the last where none is given; `curves.png` shows how it
went. KERAS_BACKEND=jax trains on a GPU or TPU.

Source of the method: Januszewski et al., Nature Methods 15, 2018; google/ffn.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import app, logging
from absl import flags as absl_flags

from h01_beam import config as config_lib
from h01_beam import models, storage
from h01_beam.model_file import ModelCard
from h01_beam.progress import counting
from models.ffn.curves import draw_curves
from models.ffn.examples import draw_examples
from models.ffn.moving_fov import MovingFov, count_overlap, patch_shape
from models.ffn.sources import load_tissues
from models.ffn.stepper import Stepper, make_stepper
from models.ffn.train_config import NetworkConfig, TrainConfig
from models.ffn.validate import validate

CHECKPOINT, CURVE = 'checkpoint.npz', 'curve.json'
MODEL, CANDIDATE = 'model.keras', 'candidate.keras'


def train(config: TrainConfig, output: str) -> models.ModelRef:
    """Trains to the end, from the last checkpoint in `output` if there is one.

    Args:
      config: the training.
      output: folder, local or gs://.

    Returns:
      the model written to OUTPUT/model.keras.

    Raises:
      ValueError: the data do not fit the network, or `output` holds another training.
    """
    keras = models.import_keras(config.threads)
    card = starting_card(config)
    trainer = _Trainer(config, card, output, keras)
    trainer.resume()
    rounds, steps = config.rounds, config.round_steps
    with counting('training', rounds * steps, 'steps', trainer.round * steps) as stepped:
        while trainer.round < rounds:
            trainer.run_round(stepped)
    return trainer.finish()


def starting_card(config: TrainConfig) -> ModelCard:
    """What the trained network will be, without scores."""
    network = config.network
    if network.init:
        ref = models.ModelRef.resolve(network.init)
        origin = {'uri': ref.uri, 'sha256': ref.sha256, 'recipe': ref.card.recipe}
        card = dataclasses.replace(
            ref.card, name=config.name, scores={}, recipe={'trained_from': origin}
        )
        if network.voxel_size_nm is None:
            return card
        return dataclasses.replace(card, voxel_size_nm=network.voxel_size_nm)
    fields = {f.name for f in dataclasses.fields(NetworkConfig)} - {'init'}
    return ModelCard(name=config.name, **{name: getattr(network, name) for name in fields})


class _Trainer:
    """State of a training between rounds."""

    def __init__(self, config: TrainConfig, card: ModelCard, output: str, keras: Any) -> None:
        self._config, self._card, self._output, self._keras = config, card, output, keras
        self._fingerprint = config_lib.fingerprint(config_lib.as_dict(config))
        self._patch = patch_shape(card.fov_shape, card.deltas)
        self._tissues = load_tissues(config.data, card.voxel_size_nm, self._patch)
        self._held_out = load_tissues(config.validation.sources, card.voxel_size_nm, card.fov_shape)
        keras.utils.set_random_seed(config.seed)
        if keras.backend.backend() == 'tensorflow':
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
        self._model = _starting_model(config, card, keras)
        self._stepper: Stepper = make_stepper(
            self._model, config.optimizer, config.rounds * config.round_steps
        )
        self.round = 0
        self._curve: list[dict[str, Any]] = []

    def resume(self) -> None:
        path = storage.join(self._output, CHECKPOINT)
        if not storage.exists(path):
            return
        with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as saved:
            state = {name: saved[name] for name in saved.files}
        told = json.loads(state.pop('told').tobytes())
        if told['fingerprint'] != self._fingerprint:
            raise ValueError(
                f'--output is {self._output!r}: it holds a training with another configuration; '
                'choose another folder, or delete that one'
            )
        self._stepper.restore(state)
        self.round, self._curve = told['round'], told['curve']
        logging.info('going on after round %d', self.round)

    def run_round(self, stepped: Callable[[], None]) -> None:
        """Trains one round, validates if it is time, and leaves a checkpoint.

        Args:
          stepped: is called after each step.
        """
        config, started = self._config, time.perf_counter()
        fov = self._place_fields_of_view()
        losses = np.empty(config.round_steps)
        overlap = np.zeros(3, np.int64)
        for step in range(config.round_steps):
            inputs, targets = fov.next_batch()
            losses[step], logits = self._stepper.step(inputs, targets)
            fov.put_back(logits)
            overlap += count_overlap(logits, targets)
            stepped()
        self.round += 1
        both, told, true = overlap.tolist()
        record: dict[str, Any] = {
            'round': self.round,
            'steps': self.round * config.round_steps,
            'loss': float(losses.mean()),
            'f1': 2 * both / max(1, told + true),
            'seconds': round(time.perf_counter() - started, 2),
        }
        self._curve.append(record)
        if self._is_time_to_validate():
            record['validation'] = self._validate()
        self._save()
        print(_describe(record, config.rounds), flush=True)

    def _place_fields_of_view(self) -> MovingFov:
        """New examples in all slots: a function of the seed and the round alone."""
        config, card = self._config, self._card
        examples = draw_examples(
            self._tissues, self._patch, card.fov_shape, config.sampling, config.augment,
            (config.seed, self.round),
        )  # fmt: skip
        return MovingFov(
            examples,
            config.batch_size,
            card.fov_shape,
            card.deltas,
            (card.image_mean, card.image_stddev),
            config.sampling,
        )

    def finish(self) -> models.ModelRef:
        """Writes the card with all that is known by now, and the curves."""
        path = storage.join(self._output, MODEL)
        best = self._best()
        if best is None:
            ref = self._write_model(path, self._curve[-1])
        else:
            ref = models.ModelRef.resolve(path)
        storage.write_bytes(storage.join(self._output, 'curves.png'), draw_curves(self._curve))
        return ref

    def _is_time_to_validate(self) -> bool:
        last = self.round == self._config.rounds
        return bool(self._held_out) and (
            last or self.round % self._config.validation.every_rounds == 0
        )

    def _validate(self) -> dict[str, Any]:
        """Scores the network of now; the best yet becomes OUTPUT/model.keras."""
        path = storage.join(self._output, CANDIDATE)
        ref = self._write_model(path, self._curve[-1])
        network = ref.load(precision='float32', threads=self._config.threads)
        settings = self._config.validation
        result = validate(network, ref.card, self._held_out, settings.ffn, settings.max_steps)
        best = self._best()
        objective = result['objective']
        if objective is not None and (best is None or objective <= best['validation']['objective']):
            record = {**self._curve[-1], 'validation': result}
            self._write_model(storage.join(self._output, MODEL), record)
        return result

    def _best(self) -> dict[str, Any] | None:
        """The record of the round with the lowest objective, the last of equals; None: no such."""
        scored = [r for r in self._curve if r.get('validation', {}).get('objective') is not None]
        return min(reversed(scored), key=lambda r: r['validation']['objective'], default=None)

    def _write_model(self, path: str, record: dict[str, Any]) -> models.ModelRef:
        """Writes the network of now, whose round the record tells of."""
        steps = record['steps']
        recipe = {
            **self._card.recipe,
            'config': config_lib.as_dict(self._config),
            'data': [tissue.name for tissue in self._tissues],
            'held_out': [tissue.name for tissue in self._held_out],
            'steps': steps,
            'fields_of_view': steps * self._config.batch_size,
            'seconds': round(sum(r['seconds'] for r in self._curve)),
            'backend': self._keras.backend.backend(),
            'device': _device(self._keras),
        }
        scores = record.get('validation', {})
        card = dataclasses.replace(self._card, recipe=recipe, scores=scores)
        return models.save_model(self._stepper.sync(), card, path)

    def _save(self) -> None:
        told = {'fingerprint': self._fingerprint, 'round': self.round, 'curve': self._curve}
        buffer = io.BytesIO()
        packed = np.frombuffer(json.dumps(told).encode(), np.uint8)
        arrays: dict[str, Any] = {'told': packed, **self._stepper.state()}
        np.savez(buffer, **arrays)
        storage.write_bytes(storage.join(self._output, CHECKPOINT), buffer.getvalue())
        text = json.dumps(self._curve, indent=1)
        storage.write_bytes(storage.join(self._output, CURVE), text.encode())


def _starting_model(config: TrainConfig, card: ModelCard, keras: Any) -> Any:
    if config.network.init:
        model = models.load_keras(config.network.init, keras)
    else:
        model = _new_model(card)
    return models.with_precision(model, config.precision)


def _new_model(card: ModelCard) -> Any:
    # Imported late: Keras greets, unless `import_keras` came first.
    from models.ffn.network import build_ffn

    return build_ffn(card.fov_shape, card.depth, card.features, layer_norm=card.layer_norm)


def _device(keras: Any) -> str:
    if keras.backend.backend() == 'jax':
        import jax

        return str(jax.devices()[0].device_kind)
    import tensorflow as tf

    for device in tf.config.list_physical_devices('GPU'):
        return str(tf.config.experimental.get_device_details(device).get('device_name', 'GPU'))
    return f'CPU, {os.cpu_count()} cores'


def _describe(record: dict[str, Any], rounds: int) -> str:
    text = (
        f'round {record["round"]:>4} of {rounds}   step {record["steps"]:>7,}   '
        f'loss {record["loss"]:.4f}   F1 {record["f1"]:.3f}   {record["seconds"]:.0f} s'
    )
    result = record.get('validation')
    if result is None:
        return text
    if result['objective'] is None:
        return text + '   held-out tissue: given up, it floods on and on'
    scores = '   '.join(
        'nothing found'
        if t['voi_split'] is None
        else f'{t["voi_split"]:.3f} + {t["voi_merge"]:.3f} bits at {t["coverage"]:.0%}'
        for t in result['tissues']
    )
    return f'{text}   held-out tissue: {scores}   objective {result["objective"]:.3f}'


def describe_plan(config: TrainConfig, card: ModelCard) -> str:
    """What would be trained, as text."""
    steps = config.rounds * config.round_steps
    data, held_out = (
        '; '.join(map(str, sources)) or 'none: the last network is the result'
        for sources in (config.data, config.validation.sources)
    )
    return '\n'.join(
        [
            f'network      {card.name}: field of view {card.fov_shape}, deltas {card.deltas}, '
            f'{_new_model(card).count_params():,} weights',
            f'training     {steps:,} steps of {config.batch_size} fields of view in '
            f'{config.rounds} rounds, {config.precision}',
            f'data         {data}',
            f'held out     {held_out}',
            'Nothing was written.',
        ]
    )


def main(args: argparse.Namespace) -> int:
    """Runs the script; returns its exit code."""
    try:
        config = config_lib.from_dict(TrainConfig, config_lib.load(args.config, args.set))
        if args.dry_run:
            models.import_keras(config.threads)
            print(describe_plan(config, starting_card(config)))
            return 0
        storage.check_writable('--output', args.output)
        ref = train(config, args.output)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f'error: the training diverged: {error}', file=sys.stderr)
        return 1
    print(f'wrote {ref.uri}\nsha256 {ref.sha256}')
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    absl_flags.FLAGS(argv[:1])
    parser = argparse.ArgumentParser(
        prog='python -m models.ffn.train', description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--config', required=True, help='YAML file; see models/ffn/configs/')
    parser.add_argument(
        '--set', action='append', default=[], metavar='KEY=VALUE', help='overrides one key'
    )
    parser.add_argument('--output', required=True, help='folder or gs:// URL')
    parser.add_argument('--dry_run', action='store_true', help='print the plan, write nothing')
    return parser.parse_args(argv[1:])


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=parse)
