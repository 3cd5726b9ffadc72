"""What makes a run the run it is: one frozen config, checked when it is made.

Two runs of one config on one data set learn the same thing, so every field here is part of a
run's identity. Where the data lies, the run folder, tick length and thread count are not: they
are options of `gantrain train`. Refuses to own: files, torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from models.errors import InvalidValue, show
from models.sampling import check_seed

Game = Literal["minimax", "nonsaturating", "least_squares", "wasserstein", "hinge", "relativistic"]
GAMES: Final[tuple[Game, ...]] = get_args(Game)
Objective = Literal[Game, "elbo"]
PenaltyForm = Literal["exact", "finite_difference"]
Precision = Literal["fp32", "bf16"]
Network = Literal["mlp", "dcgan", "residual", "style"]
NETWORKS: Final[tuple[Network, ...]] = get_args(Network)
Augmentation = Literal["color", "translation", "cutout"]
AUGMENTATIONS: Final[tuple[Augmentation, ...]] = get_args(Augmentation)
IMG_RESOLUTIONS: Final = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Raises InvalidValue naming the field, the rule and the value."""

    preset: str
    """The preset this config began as; `gantrain train --preset` names it again."""
    total_kimg: float
    """Length of the run in thousands of real images shown."""
    seed: int = 0
    """Opens every random stream: weights, order of the data, latents."""
    batch_size: int = 64
    """Real images a step of D, and fakes a step of G."""
    microbatches: int = 1
    """Equal parts that a batch is computed in: less memory, the same mean of gradients."""
    d_steps: int = 1
    """Steps of D, each on fresh reals and latents, before a step of G."""
    precision: Precision = "fp32"
    """What the networks compute in; weights, losses and penalties are fp32 with either."""
    compile: bool = False
    """torch.compile makes kernels of the networks, of D only where no penalty differentiates it twice. Meant
    for GPUs, where it is not measured yet; a DCGAN on one CPU thread made 0.76 of the images/s."""

    network: Network = "dcgan"
    """Family of the pair: see `training.networks`."""
    img_resolution: int = 32
    """Height and width that G makes; smaller images are padded to it, larger ones refused."""
    z_dim: int = 64
    """Width of the latents, drawn from N(0, 1)."""
    class_dim: int = 32
    """Width of G's class embedding; unused where the data has no classes."""
    G_channels: int = 64
    """Width of G's feature map at half the image's resolution, doubled at each halving, up to 512; for
    the network mlp the width of each hidden layer."""
    D_channels: int = 64
    """The same for D."""
    residual_blocks: int = 1
    """Residual blocks a resolution, in G and in D; for the network residual only."""
    D_spectral_norm: bool = False
    """Every layer of D is divided by its largest singular value: see `training.networks.spectral_norm`."""

    objective: Objective = "nonsaturating"
    """The game: see `training.losses`; or elbo, no game but a variational autoencoder: `training.elbo`."""
    elbo_sigma: float = 1.0
    """Standard deviation of what the decoder makes, a pixel in [-1, 1]; for the objective elbo only. Less
    follows each image more closely, and the prior less."""
    r1_gamma: float = 0.0
    """Weight of R1, the gradient penalty on reals, in D's loss; 0 leaves it out."""
    r2_gamma: float = 0.0
    """The same for R2, the penalty on fakes."""
    r1_interval: int = 8
    """R1 and R2 are computed every so many steps of D, and weigh so many times as much then."""
    penalty_form: PenaltyForm = "exact"
    """How R1 and R2 are computed: by double backward, or by the cheaper finite difference of D."""
    penalty_sigma: float = 0.05
    """Length, a coordinate, of the finite difference's random step; images are in [-1, 1]."""
    gamma_floor: float = 1.0
    """Share of r1_gamma and r2_gamma that is left at the end; they fall as the learning rates do."""
    gp_weight: float = 0.0
    """Weight of the gradient penalty between reals and fakes, each step of D; 0 leaves it out."""

    augment: str = ""
    """What D sees of reals and fakes alike is changed by: color, translation, cutout, with commas between."""
    augment_strength: float = 1.0
    """How far each augmentation goes: 1 is the paper's, see `training.augment`."""
    augment_rampup: float = 0.0
    """Share of the run in which augmentation grows to that, from nothing and along a straight line."""

    G_lr: float = 4e-4
    """Learning rate of G before `lr_decay_start`."""
    D_lr: float = 4e-4
    """Learning rate of D, the same; a higher one than G's is the two time-scale rule (arXiv:1706.08500)."""
    adam_beta1: float = 0.5
    """Adam's decay of the first moment, both networks."""
    adam_beta2: float = 0.99
    """Adam's decay of the second moment, both networks."""
    lr_decay_start: float = 0.3
    """Share of the run after which both learning rates fall along a cosine."""
    lr_floor: float = 0.02
    """Share of the learning rate that is left at the end."""

    ema_half_life_kimg: float = 10.0
    """Half-life of G_ema's memory."""
    ema_rampup: float = 0.05
    """The half-life is never longer than this share of the images shown so far: it scales to short runs."""

    def __post_init__(self) -> None:
        for name, kind in _field_types().items():
            _check_type(getattr(self, name), name, kind)
        check_seed(self.seed)
        _between(self, "total_kimg", 0.001, 1e9)
        _between(self, "batch_size", 2, 65_536)
        _between(self, "microbatches", 1, 65_536)
        _between(self, "d_steps", 1, 1_000)
        _one_of(self.img_resolution, "img_resolution", IMG_RESOLUTIONS)
        for name in ("z_dim", "class_dim", "G_channels", "D_channels"):
            _between(self, name, 1, 4_096)
        _between(self, "residual_blocks", 1, 64)
        for name in ("r1_gamma", "r2_gamma", "gp_weight"):
            _between(self, name, 0.0, 1e6)
        _between(self, "r1_interval", 1, 65_536)
        _between(self, "penalty_sigma", 1e-4, 1.0)
        _between(self, "elbo_sigma", 1e-3, 10.0)
        for name in ("G_lr", "D_lr"):
            _between(self, name, 1e-9, 1.0)
        for name in ("adam_beta1", "adam_beta2"):
            _between(self, name, 0.0, 0.99999)
        for name in self.augmentations:
            _one_of(name, "augment", AUGMENTATIONS)
        if len(set(self.augmentations)) < len(self.augmentations):
            raise InvalidValue(f"augment must name each augmentation once, got {show(self.augment)}")
        for name in (
            "lr_decay_start",
            "lr_floor",
            "gamma_floor",
            "ema_rampup",
            "augment_strength",
            "augment_rampup",
        ):
            _between(self, name, 0.0, 1.0)
        _between(self, "ema_half_life_kimg", 0.0, 1e9)
        self._check_recipe()

    def check_effect(self, names: Iterable[str]) -> None:
        """Raise InvalidValue where one of the fields `names`, which somebody set, does nothing in this run.

        Only for what is set by hand: a preset, and a run that began before this rule, may hold such a field.
        """
        for name in names:
            if name in _NEEDS and not _NEEDS[name].met(self):
                raise InvalidValue(
                    f"{name} has no effect without {_NEEDS[name].sentence}: leave it out, "
                    f"got {show(getattr(self, name))}"
                )

    def _check_recipe(self) -> None:
        """Refuse what cannot work together."""
        if self.batch_size % self.microbatches:
            raise InvalidValue(
                f"batch_size must be a multiple of microbatches ({self.microbatches}), got {self.batch_size}"
            )
        if self.objective == "wasserstein" and self.gp_weight == 0 and not self.D_spectral_norm:
            raise InvalidValue(
                "objective wasserstein needs a D whose slope is bounded: set gp_weight above 0 (10 in its "
                f"paper) or D_spectral_norm, got {show(self.gp_weight)} and false"
            )
        if self.gp_weight > 0 and (self.r1_gamma > 0 or self.r2_gamma > 0):
            raise InvalidValue(
                "gp_weight must be 0 beside r1_gamma or r2_gamma: it pulls the slope of D to 1, they pull it "
                f"to 0, got gp_weight {self.gp_weight:g}, r1_gamma {self.r1_gamma:g}, "
                f"r2_gamma {self.r2_gamma:g}"
            )
        for name, neutral in _NO_GAME.items():
            if self.objective == "elbo" and getattr(self, name) != neutral:
                raise InvalidValue(
                    f"objective elbo has no discriminator: {name} must be {show(neutral)}, "
                    f"got {show(getattr(self, name))}"
                )
        if self.D_spectral_norm and self.network == "residual":
            raise InvalidValue(
                "D_spectral_norm must be false for the network residual: its branches begin at zero, "
                "and a zero cannot be divided by its largest singular value, got true"
            )

    @property
    def total_nimg(self) -> int:
        """Real images shown in the whole run."""
        return round(self.total_kimg * 1000)

    @property
    def iteration_nimg(self) -> int:
        """Real images shown in one iteration: `d_steps` steps of D, one of G."""
        return self.d_steps * self.batch_size

    @property
    def has_slope_penalty(self) -> bool:
        """Whether R1 or R2 is computed."""
        return max(self.r1_gamma, self.r2_gamma) > 0

    @property
    def differentiates_twice(self) -> bool:
        """Whether a penalty takes the gradient of D's gradient, which compiled code does not have."""
        return self.gp_weight > 0 or (self.penalty_form == "exact" and self.has_slope_penalty)

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """`augment` as names."""
        return tuple(self.augment.split(",")) if self.augment else ()  # type: ignore[arg-type]  # checked when made

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, as `config.json` and the manifest hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_dict` wrote. Raises InvalidValue for unknown, missing or wrong fields."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise InvalidValue(f"the config has no field {show(unknown[0])}; it has: {', '.join(known)}")
        if missing := sorted({"preset", "total_kimg"} - set(values)):
            raise InvalidValue(f"the config lacks the field {missing[0]}")
        return cls(**values)

    def override(self, assignments: Mapping[str, str]) -> TrainConfig:
        """Return a config with fields set from text, as `--set field=value` gives them."""
        types = _field_types()
        values = self.to_dict()
        for name, text in assignments.items():
            if name not in types or name == "preset":
                allowed = ", ".join(sorted(set(types) - {"preset"}))
                raise InvalidValue(f"--set knows no field {show(name)}; it knows: {allowed}")
            values[name] = _from_text(text, name, types[name])
        return TrainConfig(**values)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Values of the fields that have one."""
        fields = dataclasses.fields(cls)
        return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}

    def settings(self) -> dict[str, Any]:
        """The fields that are not at their default."""
        missing, defaults = object(), self.defaults()
        return {name: value for name, value in self.to_dict().items() if value != defaults.get(name, missing)}

    def differences(self, other: TrainConfig) -> list[str]:
        """Names of the fields in which two configs differ."""
        return [name for name, value in self.to_dict().items() if value != getattr(other, name)]


_NO_GAME: Final[dict[str, object]] = {
    "r1_gamma": 0,
    "r2_gamma": 0,
    "gp_weight": 0,
    "D_spectral_norm": False,
    "augment": "",
    "d_steps": 1,
}
"""What a config must say of the game's fields where there is no game."""


@dataclass(frozen=True)
class _Need:
    """What must hold for a field to do anything."""

    sentence: str
    met: Callable[[TrainConfig], bool]


_SLOPE_PENALTY: Final = _Need("r1_gamma or r2_gamma above 0", lambda config: config.has_slope_penalty)
_AUGMENT: Final = _Need("augment", lambda config: bool(config.augment))
_NEEDS: Final[dict[str, _Need]] = {
    "residual_blocks": _Need("network residual", lambda config: config.network == "residual"),
    "elbo_sigma": _Need("objective elbo", lambda config: config.objective == "elbo"),
    "r1_interval": _SLOPE_PENALTY,
    "penalty_form": _SLOPE_PENALTY,
    "penalty_sigma": _Need(
        "r1_gamma or r2_gamma above 0 and penalty_form finite_difference",
        lambda config: config.has_slope_penalty and config.penalty_form == "finite_difference",
    ),
    "gamma_floor": _Need(
        "r1_gamma or r2_gamma above 0 and lr_decay_start below 1",
        lambda config: config.has_slope_penalty and config.lr_decay_start < 1,
    ),
    "augment_strength": _AUGMENT,
    "augment_rampup": _AUGMENT,
    "lr_floor": _Need("lr_decay_start below 1", lambda config: config.lr_decay_start < 1),
}
"""Fields that are for some configs only."""


def _field_types() -> dict[str, Any]:
    hints = get_type_hints(TrainConfig)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainConfig)}


def _check_type(value: object, name: str, kind: Any) -> None:
    if get_origin(kind) is Literal:
        _one_of(value, name, get_args(kind))
        return
    wanted: dict[type, tuple[type | tuple[type, ...], str]] = {
        bool: (bool, "true or false"),
        int: (int, "an integer"),
        float: ((int, float), "a number"),
        str: (str, "text"),
    }
    types, words = wanted[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        raise InvalidValue(f"{name} must be {words}, got {show(value)}")


def _from_text(text: str, name: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidValue(f"{name} must be true or false, got {show(text)}")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        words = "an integer" if kind is int else "a number"
        raise InvalidValue(f"{name} must be {words}, got {show(text)}") from None


def _between(config: TrainConfig, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if not low <= value <= high:  # also refuses NaN
        raise InvalidValue(f"{name} must be between {low:g} and {high:g}, got {show(value)}")


def _one_of(value: object, name: str, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise InvalidValue(f"{name} must be one of {', '.join(map(str, allowed))}, got {show(value)}")
