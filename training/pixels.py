"""What a generator's numbers mean: the range and the layout of its output, and the pixels they are.

The one place that knows ranges and layouts; an import wraps a graph by them, an export a module, and both
hold what came of it to the pixels that are made here. NumPy only.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import InvalidValue, show
from training.errors import GraphRefused

FloatImages = npt.NDArray[np.float32]
RANGES: Final[dict[str, tuple[float, float]]] = {
    "-1,1": (-1.0, 1.0),
    "0,1": (0.0, 1.0),
    "0,255": (0.0, 255.0),
}
"""What black and white are."""
DEFAULT_RANGE: Final = "-1,1"
TO_NHWC: Final = {"NCHW": (0, 2, 3, 1), "NHWC": (0, 1, 2, 3), "flat": (0, 2, 3, 1)}
"""Order of the axes that makes [N, H, W, C] of each layout, a flat one written out as [N, C, H, W]."""
_FLAT = re.compile(r"flat:([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_FEW_OUTSIDE: Final = 0.01
_MANY_OUTSIDE: Final = 0.25


def check_range(value_range: str) -> str:
    """Return a name of RANGES, or raise InvalidValue."""
    if not isinstance(value_range, str) or value_range not in RANGES:
        raise InvalidValue(f"range must be one of {'; '.join(RANGES)}, got {show(value_range)}")
    return value_range


def check_layout(layout: str) -> str:
    """Return "NCHW", "NHWC" or "flat:CxHxW", or raise InvalidValue."""
    if layout not in ("NCHW", "NHWC") and (not isinstance(layout, str) or _FLAT.fullmatch(layout) is None):
        raise InvalidValue(
            f"layout must be NCHW, NHWC or flat:CxHxW (such as flat:3x64x64), got {show(layout)}"
        )
    return layout


def flat_sizes(layout: str) -> tuple[int, int, int] | None:
    """(C, H, W) of a flat layout, None for another."""
    match = _FLAT.fullmatch(layout)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def axes_to_nhwc(layout: str) -> tuple[int, ...]:
    """The entry of TO_NHWC for `layout`."""
    return TO_NHWC[layout.partition(":")[0]]


def nhwc(answer: npt.NDArray[Any], layout: str | None = None) -> tuple[FloatImages, str]:
    """Return a generator's answer as float images [N, H, W, C], and its layout, found if None.

    Raises GraphRefused where there is none, or it does not fit.
    """
    layout = layout or _layout_of(answer)
    images = answer
    sizes = flat_sizes(layout)
    if sizes is not None:
        count = math.prod(answer.shape[1:])
        if math.prod(sizes) != count:
            raise GraphRefused(
                f"the layout must have as many numbers as an image of the output, {layout} has "
                f"{math.prod(sizes)} and the output {list(answer.shape[1:])} has {count}"
            )
        images = answer.reshape(-1, *sizes)
    elif answer.ndim != 4:
        raise GraphRefused(
            f"the output must have rank 4 for the layout {layout}, its shape is {list(answer.shape)}: "
            "give the layout flat:CxHxW"
        )
    images = images.transpose(axes_to_nhwc(layout)).astype(np.float32)
    if images.shape[-1] not in (1, 3):
        raise GraphRefused(
            f"an image must have 1 (grey) or 3 (RGB) channels, the output {list(answer.shape)} has "
            f"{images.shape[-1]} with the layout {layout}"
        )
    return images, layout


def to_pixels(images: FloatImages, value_range: str) -> npt.NDArray[np.uint8]:
    """Return images [N, H, W, C] uint8 of floats in `value_range`."""
    low, high = RANGES[value_range]
    levels = (images - np.float32(low)) * np.float32(255 / (high - low))
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return pixels


def check_values(images: FloatImages, value_range: str) -> list[str]:
    """Hold float images against the range they were said to have; return cautions, in sentences.

    Raises GraphRefused for values that are not finite, and where the range cannot be meant.
    """
    check_finite(images)
    low, high = RANGES[value_range]
    least, most = float(images.min()), float(images.max())
    seen = f"the values of {len(images)} seeds are between {least:.3g} and {most:.3g}"
    slack = 0.02 * (high - low)
    outside = float(np.mean((images < low - slack) | (images > high + slack)))
    if outside > _MANY_OUTSIDE:
        fitting = _fitting_range(least, most)
        another = "" if fitting in (None, value_range) else f"give the range {fitting}, or "
        raise GraphRefused(
            f"the output must be in the range {value_range}, but {seen}, {outside:.0%} of them outside: "
            f"{another}add the scaling to the generator"
        )
    if value_range == "0,255" and most <= 2:
        raise GraphRefused(
            f"the output must be in the range {value_range}, but {seen}: all would be black; "
            f"give the range {_fitting_range(least, most) or DEFAULT_RANGE}"
        )
    cautions = []
    if outside > _FEW_OUTSIDE:
        cautions.append(f"{seen}, {outside:.1%} of them outside the range {value_range}: they are clamped")
    if value_range == "-1,1" and least >= 0 and most > 0.5:
        cautions.append(f"{seen}, none below 0: if 0 is black, the range is 0,1")
    if len(images) > 1 and np.array_equal(images, np.broadcast_to(images[:1], images.shape)):
        cautions.append(f"{len(images)} seeds give one image: the output does not depend on the latents")
    return cautions


def check_finite(images: npt.NDArray[Any], by: str = "") -> None:
    """Raise GraphRefused unless all values [N, ...] of seeds 0..N-1, made as `by` tells, are finite."""
    if not np.isfinite(images).all():
        row = int(np.argwhere(~np.isfinite(images))[0][0])
        raise GraphRefused(
            f"the output must be finite, seed {row}{by} gives NaN or infinity: was it made of a trained "
            "generator, and in a precision that holds its values?"
        )


def _layout_of(answer: npt.NDArray[Any]) -> str:
    if answer.ndim == 4 and answer.shape[1] in (1, 3):
        return "NCHW"
    if answer.ndim == 4 and answer.shape[3] in (1, 3):
        return "NHWC"
    shape = ", ".join(["N", *map(str, answer.shape[1:])])
    raise GraphRefused(
        f"the output must be images with 1 or 3 channels in dimension 1 (NCHW) or 3 (NHWC), its shape is "
        f"[{shape}]: give the layout NCHW, NHWC or flat:CxHxW, or another output"
    )


def _fitting_range(least: float, most: float) -> str | None:
    """The range that such values can have, None where none fits."""
    if most > 2:
        return "0,255" if least >= -5 else None
    return "0,1" if least >= -0.05 else "-1,1"
