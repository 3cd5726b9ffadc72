"""What serving promises of a graph, checked by running it.

The interface the manifest tells of; a row's pixels the same alone, in any batch, in any order and
each time; at most one grey level away from what it was made from. Each refusal is a sentence with the
way out. Works on any `Render`, so a test can break one promise at a time. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from models.golden import Render, Score
from models.manifest import Manifest
from models.sampling import latents_from_seeds
from training.errors import GraphRefused
from training.graph_session import MAX_PIXELS_A_RUN, DiscriminatorSession, GraphSession

Dtype = TypeVar("Dtype", bound=np.generic)

BATCH_SIZES: Final = (1, 2, 3, 7, 64)
MAX_DIFFERENCE_LEVELS: Final = 1
MAX_HALVED_DIFFERENCE_LEVELS: Final = 3
MAX_LOGIT_DIFFERENCE: Final = 0.01
"""Between D's logits on one CPU and on another."""


def batch_sizes(manifest: Manifest) -> tuple[int, ...]:
    """The BATCH_SIZES to check with: all up to 128×128 pixels, fewer for larger images, never less than 3."""
    most_rows = max(3, MAX_PIXELS_A_RUN // (manifest.img_height * manifest.img_width))
    return tuple(size for size in BATCH_SIZES if size <= most_rows)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a graph is asked for."""

    latents: npt.NDArray[np.float32]
    """[N, z_dim]"""
    class_idx: npt.NDArray[np.int64]
    """[N]; not used by an unconditional graph."""
    truncation_psi: npt.NDArray[np.float32]
    """[N]; not used by a graph without truncation."""

    @classmethod
    def sample(cls, manifest: Manifest, count: int | None = None) -> Self:
        """Seeds 0..count-1, classes and (where there is truncation) psi 1, 0.7 and 0 in turn.

        Without a count as many rows as the largest of `batch_sizes`.
        """
        count = max(batch_sizes(manifest)) if count is None else count
        seeds = np.arange(count)
        psi = np.resize([1.0, 0.7, 0.0] if manifest.has_truncation else [1.0], count)
        return cls(
            latents=latents_from_seeds(seeds, manifest.z_dim, manifest.prior),
            class_idx=seeds % max(manifest.num_classes, 1),
            truncation_psi=psi.astype(np.float32),
        )

    def __getitem__(self, index: slice) -> Rows:
        return Rows(
            latents=self.latents[index],
            class_idx=self.class_idx[index],
            truncation_psi=self.truncation_psi[index],
        )

    def render(self, render: Render) -> npt.NDArray[np.uint8]:
        """Return images [N, H, W, C] uint8."""
        return render(self.latents, self.class_idx, self.truncation_psi)


def check_interface(session: GraphSession, manifest: Manifest) -> None:
    """Raise GraphRefused unless inputs and output are what `manifest` says, with a free batch size."""
    _check_values("input", session.inputs, manifest.graph_inputs)
    _check_values("output", session.outputs, manifest.graph_outputs)


def check_discriminator_interface(session: DiscriminatorSession, manifest: Manifest) -> None:
    """The same of the graph of D."""
    _check_values("input", session.inputs, manifest.discriminator_inputs)
    _check_values("output", session.outputs, manifest.discriminator_outputs)


def check_rows(render: Render, rows: Rows) -> npt.NDArray[np.uint8]:
    """Raise GraphRefused unless each row has its pixels in every batch, order and run.

    Returns the pixels [N, H, W, C] uint8 of `rows`. Batch sizes above the number of rows are left out.
    """
    return _check_independence(lambda part: rows[part].render(render), "pixels")


def check_scores(
    score: Score, images: npt.NDArray[np.uint8], class_idx: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Raise GraphRefused unless each image has its logit, to the last bit, in every batch, order and run.

    Returns the logits [N] float32 of images [N, H, W, C] uint8 and class_idx [N].
    """
    return _check_independence(lambda part: score(images[part], class_idx[part]), "logit")


def _check_independence(run: Callable[[slice], npt.NDArray[Dtype]], what: str) -> npt.NDArray[Dtype]:
    """Hold `run`, which gives `what` of a slice of the rows, to all of them at once, which are returned."""
    whole = run(slice(None))
    if not np.array_equal(run(slice(None)), whole):
        raise GraphRefused(
            f"two runs on the same rows must give the same {what}, they differ: something in the graph draws "
            "random numbers. Register noise as a buffer, or take it from the latents"
        )
    for size in BATCH_SIZES:
        for first in range(0, len(whole) - size + 1, size):
            part = slice(first, first + size)
            if not np.array_equal(run(part), whole[part]):
                raise GraphRefused(
                    f"a row's {what} must not depend on its batch mates, rows {first} to {first + size - 1} "
                    f"change in a batch of {size}. Remove statistics over the batch from the module's forward"
                )
    backwards = slice(None, None, -1)
    if not np.array_equal(run(backwards), whole[backwards]):
        raise GraphRefused(
            f"a row's {what} must not depend on the order of the batch, they change when it is reversed. "
            "Remove what looks across rows from the module's forward"
        )
    return whole


def check_logit_difference(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """Return the largest difference of logits [N] to torch's. Raises GraphRefused where D is another."""
    difference = float(np.abs(logits.astype(np.float64) - reference.astype(np.float64)).max())
    if not difference <= MAX_LOGIT_DIFFERENCE:  # also refuses NaN
        raise GraphRefused(
            f"D's logits must be within {MAX_LOGIT_DIFFERENCE:g} of torch, they are {difference:g} away: "
            "an operator was translated wrongly"
        )
    return difference


def check_difference(
    images: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.uint8],
    reference_name: str = "torch",
    *,
    halved: bool = False,
) -> int:
    """Return the largest difference in grey levels. Raises GraphRefused for more than one level.

    A graph whose weights are `halved` may be MAX_HALVED_DIFFERENCE_LEVELS away.
    """
    levels = int(np.abs(images.astype(np.int16) - reference.astype(np.int16)).max())
    if halved and levels > MAX_HALVED_DIFFERENCE_LEVELS:
        raise GraphRefused(
            f"with weights in fp16 the graph must be within {MAX_HALVED_DIFFERENCE_LEVELS} grey levels of "
            f"{reference_name}, it is {levels} away: leave the precision at fp32"
        )
    if not halved and levels > MAX_DIFFERENCE_LEVELS:
        raise GraphRefused(
            f"the graph must be within {MAX_DIFFERENCE_LEVELS} grey level of {reference_name}, it is "
            f"{levels} away: an "
            "operator was translated wrongly. Export in fp32, and replace operators until they agree"
        )
    return levels


def _check_values(
    kind: str, found: dict[str, tuple[str, list[int | str]]], wanted: dict[str, tuple[str, list[int]]]
) -> None:
    if set(found) != set(wanted):
        raise GraphRefused(
            f"the graph's {kind}s must be {', '.join(sorted(wanted))}, they are {', '.join(sorted(found))}"
        )
    for name, (wanted_type, wanted_sizes) in wanted.items():
        found_type, found_shape = found[name]
        batch, sizes = (found_shape[0], found_shape[1:]) if found_shape else (None, [])
        if found_type != wanted_type or sizes != wanted_sizes:
            raise GraphRefused(
                f"the graph's {kind} {name} must be {wanted_type} [N, {wanted_sizes}], "
                f"it is {found_type} {found_shape}"
            )
        if not isinstance(batch, str):
            raise GraphRefused(f"the batch size of {name} must be symbolic, it is {batch}")
