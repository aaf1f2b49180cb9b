"""Configuration of the training of a flood-filling network."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

from h01_beam.geometry import BoundingBox, Triple, as_triple
from h01_beam.segmentation.ffn_config import FfnConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network; see `models.ffn.network.build_ffn` and the fields of the model's card.

    Attributes:
      init: a `.keras` file to go on from, for example a converted checkpoint. Its card then says
        all of the other fields, which must be left out.
      voxel_size_nm: of the data; with `init` too, where a network moves on to other voxels.
    """

    init: str | None = None
    fov_shape: Triple = (9, 33, 33)
    deltas: Triple = (3, 10, 10)
    depth: int = 8
    features: int = 16
    layer_norm: bool = False
    image_mean: float = 128.0
    image_stddev: float = 33.0
    voxel_size_nm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        given = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        told = [name for name in given if name not in ('init', 'voxel_size_nm')]
        if self.init and told:
            raise ValueError(
                f'network.init is {self.init!r} and {", ".join(told)} too: the card of the '
                'model that training goes on from says the rest; leave it out'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomSource:
    """Synthetic tissue, made on the fly: one volume for each seed and difficulty.

    Attributes:
      seeds: of the tissues.
      shape: zyx voxels of each volume.
      difficulty: one for each seed, in turn; see `h01_beam.testing.phantom`.
    """

    seeds: tuple[int, ...]
    shape: Triple
    difficulty: tuple[float, ...] = (0.3,)

    def __post_init__(self) -> None:
        """Checks the fields."""
        if not self.seeds or not self.difficulty:
            raise ValueError('phantom.seeds and phantom.difficulty: must not be empty')
        if min(as_triple('phantom.shape', self.shape)) < 1:
            raise ValueError(f'phantom.shape is {self.shape}: every extent must be >= 1 voxel')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled tissue: volumes, or a phantom.

    Attributes:
      image: URI of a uint8 volume.
      labels: URI of the labels of the same voxels; 0 is no object.
      start, shape: zyx, the part to use; None for all of it.
      phantom: instead of volumes.
    """

    image: str | None = None
    labels: str | None = None
    start: Triple | None = None
    shape: Triple | None = None
    phantom: PhantomSource | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        if (self.phantom is None) == (self.image is None):
            raise ValueError('a source must have either image and labels, or phantom')
        if (self.image is None) != (self.labels is None):
            raise ValueError(
                f'source.image is {self.image!r} and labels is {self.labels!r}: give both'
            )
        if (self.start is None) != (self.shape is None):
            raise ValueError(f'source.start is {self.start}, shape {self.shape}: give both or none')

    def __str__(self) -> str:
        if self.phantom:
            shape = ' x '.join(map(str, self.phantom.shape))
            return f'phantoms {", ".join(map(str, self.phantom.seeds))} of {shape} voxels'
        return f'{self.image} {self.box or "(all)"}'

    @property
    def box(self) -> BoundingBox | None:
        return BoundingBox(self.start, self.shape) if self.start and self.shape else None

    def overlaps(self, other: Source) -> bool:
        """Whether two sources share voxels."""
        if self.phantom and other.phantom:
            return bool(set(self.phantom.seeds) & set(other.phantom.seeds))
        if self.image is None or self.image != other.image:
            return False
        a, b = self.box, other.box
        return a is None or b is None or a.intersection(b) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which examples are shown, and how the field of view moves over them.

    Attributes:
      fill_thresholds: bounds of the classes of fill: the fraction of the example's voxels that
        are of the object at its centre. Every class is drawn equally often.
      candidates: random centres that are classified in each round of each volume.
      init_activation, pad_value: probabilities written at the centre and elsewhere.
      move_threshold: least probability at which the field of view moves on.
      max_moves: most moves on one example, drawn from the 26 neighbours at the network's deltas.
        Published: all of them; fewer show more examples in the same time.
      target: probability that the network should give to the object's voxels; one less it
        elsewhere.
    """

    fill_thresholds: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 1.0)
    candidates: int = 4000
    init_activation: float = 0.95
    pad_value: float = 0.05
    move_threshold: float = 0.9
    max_moves: int = 10
    target: float = 0.95

    def __post_init__(self) -> None:
        """Checks the fields."""
        bounds = self.fill_thresholds
        if len(bounds) < 2 or any(a >= b for a, b in zip(bounds, bounds[1:], strict=False)):
            raise ValueError(f'sampling.fill_thresholds is {bounds}: must ascend')
        for name in ('candidates', 'max_moves'):
            if getattr(self, name) < 1:
                raise ValueError(f'sampling.{name} is {getattr(self, name)}: must be at least 1')
        for name in ('init_activation', 'pad_value', 'move_threshold'):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f'sampling.{name} is {getattr(self, name)}: must lie in (0, 1); it is a '
                    'probability, not a logit'
                )
        if not 0.5 < self.target <= 1:
            raise ValueError(
                f'sampling.target is {self.target}: must lie in (0.5, 1], above that of all else'
            )
        if self.target < self.move_threshold:
            raise ValueError(
                f'sampling.move_threshold is {self.move_threshold}: must not exceed '
                f'sampling.target ({self.target}), or a network that does as it is told never moves'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to examples; probabilities, and greatest strengths.

    Attributes:
      flip: turn the axes round, each with probability 1/2, and swap y and x.
      contrast, brightness: greatest relative and absolute (grey levels) change.
      noise: greatest standard deviation of added noise, in grey levels.
      missing_section, shifted_section: probability that a section is blank, or that all sections
        from one on are displaced.
      shift: greatest displacement in y and x, in voxels.
    """

    flip: bool = True
    contrast: float = 0.25
    brightness: float = 15.0
    noise: float = 8.0
    missing_section: float = 0.05
    shifted_section: float = 0.05
    shift: int = 3

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('missing_section', 'shifted_section'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'augment.{name} is {getattr(self, name)}: must lie in [0, 1]')
        if not 0 <= self.contrast < 1:
            raise ValueError(f'augment.contrast is {self.contrast}: must lie in [0, 1)')
        for name in ('brightness', 'noise', 'shift'):
            if getattr(self, name) < 0:
                raise ValueError(f'augment.{name} is {getattr(self, name)}: must not be negative')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow gradients.

    Attributes:
      kind: 'adam', or 'sgd' with momentum 0.9 as published.
      learning_rate: after the warm-up.
      final_learning_rate: at the end, reached along half a cosine.
      warmup_steps: in which the rate rises from 0.
      clip_norm: greatest norm of the gradient.
      restart_steps: at which the rate starts again, each time at half of the height before and
        with a warm-up of its own (Loshchilov and Hutter, ICLR 2017).
    """

    kind: Literal['adam', 'sgd'] = 'adam'
    learning_rate: float = 1e-3
    final_learning_rate: float = 5e-5
    warmup_steps: int = 100
    clip_norm: float = 1.0
    restart_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('learning_rate', 'clip_norm'):
            if not getattr(self, name) > 0:
                raise ValueError(f'optimizer.{name} is {getattr(self, name)}: must be positive')
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f'optimizer.final_learning_rate is {self.final_learning_rate}: must lie between 0 '
                f'and optimizer.learning_rate ({self.learning_rate}), from which it falls; set both'
            )
        if self.warmup_steps < 0:
            raise ValueError(f'optimizer.warmup_steps is {self.warmup_steps}: must be 0 or more')
        starts = (0, *self.restart_steps)
        if any(a >= b for a, b in itertools.pairwise(starts)):
            raise ValueError(
                f'optimizer.restart_steps is {self.restart_steps}: must ascend from 1 or more'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How checkpoints are compared: by segmenting tissue that training never sees.

    Attributes:
      every_rounds: rounds between two validations.
      sources: held-out tissue.
      ffn: settings of inference; grey levels are the network's.
      max_steps: fields of view after which a bad network is given up, for each volume.
    """

    every_rounds: int = 5
    sources: tuple[Source, ...] = ()
    ffn: FfnConfig = dataclasses.field(default_factory=FfnConfig)
    max_steps: int = 20_000

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('every_rounds', 'max_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'validation.{name} is {getattr(self, name)}: must be at least 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training.

    Attributes:
      name: of the network, in its card.
      data: labelled tissue to train on.
      seed: of weights, examples and augmentation.
      rounds: how many rounds; a round ends with a checkpoint.
      round_steps: gradient steps of a round.
      batch_size: fields of view of a step.
      precision: in which the network computes; weights are float32 always.
      threads: of TensorFlow; 0 for all cores.
    """

    name: str
    network: NetworkConfig
    data: tuple[Source, ...]
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    seed: int = 0
    rounds: int = 20
    round_steps: int = 500
    batch_size: int = 8
    precision: Literal['float32', 'bfloat16'] = 'float32'
    threads: int = 0

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('rounds', 'round_steps', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}: must be at least 1')
        if not self.data:
            raise ValueError('data is empty: name at least one source of labelled tissue')
        for source in self.validation.sources:
            if any(source.overlaps(other) for other in self.data):
                raise ValueError(
                    f'validation source {source} overlaps with data: scores on tissue that the '
                    'network has seen say nothing; choose other seeds or another box'
                )
