"""What a discriminator's logits mean, and what may be done with them: the facts behind realness and MH.

An export writes them into a manifest (`sampler`), service and offline runs read them there. Refuses to
own: the chain itself (`models.sampling`), how a calibration is found (`training.calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from models.errors import InvalidValue, show
from models.sampling import rounded_logits

Sampler = Literal["plain", "mh"]
SAMPLERS: Final[tuple[Sampler, ...]] = ("plain", "mh")

CALIBRATION_KIND: Final = "logistic"
DEFAULT_PROPOSALS: Final = 12
MAX_PROPOSALS: Final = 64
REALNESS_DECIMALS: Final = 4

_NO_DISCRIMINATOR: Final = "the model has no discriminator"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """P(real) = σ(scale · logit + offset), by Platt 1999, and whether MH may be built on it."""

    scale: float
    """Above 0: a larger logit is more real."""
    offset: float
    mh: bool
    """Whether `sampler: "mh"` is offered: its measured distance is below the plain one's."""
    why_not: str = ""
    """Where MH is not offered, why, in a sentence."""
    proposals: int = DEFAULT_PROPOSALS
    """Proposals of an image where none are asked for."""
    max_proposals: int = MAX_PROPOSALS
    """The largest number that may be asked for."""

    def __post_init__(self) -> None:
        if not (_is_number(self.scale) and self.scale > 0):
            raise InvalidValue(f"sampler.scale must be a number above 0, got {show(self.scale)}")
        if not _is_number(self.offset):
            raise InvalidValue(f"sampler.offset must be a number, got {show(self.offset)}")
        if type(self.mh) is not bool or not isinstance(self.why_not, str):
            got = f"{show(self.mh)} and {show(self.why_not)}"
            raise InvalidValue(f"sampler.mh must be true or false, and why_not text, got {got}")
        for name in ("proposals", "max_proposals"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 1_024:
                raise InvalidValue(f"sampler.{name} must be an integer between 1 and 1024, got {show(value)}")
        if self.max_proposals < self.proposals:
            rule = f"at least sampler.proposals, {self.proposals}"
            raise InvalidValue(f"sampler.max_proposals must be {rule}, got {self.max_proposals}")
        if not self.mh and not self.why_not.strip():
            raise InvalidValue(
                f"sampler.why_not must say why where sampler.mh is false, got {show(self.why_not)}"
            )

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Calibration | None:
        """Read a manifest's `sampler`; None where it says that there is no calibration. Raises InvalidValue.

        What else it holds (the measured figures and their protocol) is not looked at.
        """
        if "scale" not in facts:
            return None
        names = [field.name for field in fields(cls)]
        if missing := [name for name in ("kind", *names) if name not in facts]:
            raise InvalidValue(f"sampler must have {', '.join(missing)} beside scale")
        if facts["kind"] != CALIBRATION_KIND:
            raise InvalidValue(f"sampler.kind must be {CALIBRATION_KIND}, got {show(facts['kind'])}")
        return cls(**{name: facts[name] for name in names})

    def to_facts(self) -> dict[str, Any]:
        """What `from_facts` reads."""
        return {"kind": CALIBRATION_KIND, **asdict(self)}

    def realness(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """How probably each image is a real one, by D's `logits` of any shape: in [0, 1], four decimals.

        Of logits as they are compared, so that it is the same number wherever it is computed.
        """
        calibrated = self.scale * rounded_logits(logits) + self.offset
        probabilities: npt.NDArray[np.float64] = np.exp(
            -np.logaddexp(0.0, -calibrated)
        )  # σ, without overflow
        realness: npt.NDArray[np.float64] = probabilities.round(REALNESS_DECIMALS)
        return realness


def resolve_proposals(
    sampler: Sampler | None, proposals: int | None, calibration: Calibration | None, why_none: str = ""
) -> int:
    """Return how many proposals an image is chosen from: 1 for the plain sampler.

    `calibration` is the model's; where it has none, `why_none` says why. Raises InvalidValue naming field,
    rule and value.
    """
    if sampler is None or sampler == "plain":
        if proposals is not None:
            raise InvalidValue(f"proposals must be left out where sampler is plain, got {show(proposals)}")
        return 1
    if sampler not in SAMPLERS:
        raise InvalidValue(f"sampler must be one of {', '.join(SAMPLERS)}, got {show(sampler)}")
    if calibration is None or not calibration.mh:
        why = why_none or _NO_DISCRIMINATOR if calibration is None else calibration.why_not
        raise InvalidValue(f"sampler must be plain: {why}, got {show(sampler)}")
    if proposals is None:
        return calibration.proposals
    most = calibration.max_proposals
    if type(proposals) is not int or not 1 <= proposals <= most:
        raise InvalidValue(f"proposals must be an integer between 1 and {most}, got {show(proposals)}")
    return proposals


def check_realness(calibration: Calibration | None, field: str, value: object, why_none: str = "") -> None:
    """Raise InvalidValue naming `field` where a model cannot say how real an image is."""
    if calibration is None:
        raise InvalidValue(f"{field} must be left out: {why_none or _NO_DISCRIMINATOR}, got {show(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
