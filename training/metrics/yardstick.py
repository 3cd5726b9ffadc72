"""One data set, one way of measuring: what any number of generators are held against.

Refuses to own: where fakes come from (`training.metrics.targets`), how figures are shown
(`training.card_figures`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

from models.errors import InvalidValue
from training.data import Dataset, Split, open_dataset, splits
from training.metrics.extractor_files import open_extractor, shipped_names
from training.metrics.fakes import Fakes
from training.metrics.measure import (
    FIGURES,
    INCEPTION_NAMES,
    SET_FIGURES,
    Reference,
    check_count,
    check_figures,
    check_images,
    class_accuracies,
    class_variety,
    draw,
    measure,
    training_distance,
    with_reals,
)
from training.metrics.protocol import Figure, Protocol

DEFAULT_EXTRACTOR: Final = "efficientnet-lite0"
"""Where none is shipped that learned from the data."""
RATIOS: Final = ("frechet_distance", "fid", "training_distance")
"""Figures that are told as a multiple of what real images get."""


class Yardstick:
    """Takes the figures of fakes against `n` reals of a data set, drawn by `seed`.

    Without a split it is the test split, where there is one. Without an extractor it is the shipped one of
    the data's name, or EfficientNet-Lite0; without a judge the shipped judge of that name. The reals are
    opened at `img_resolution` and asked once. Raises DataError and InvalidValue.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        data: Path | None = None,
        split: Split | None = None,
        n: int = 10_000,
        seed: int = 0,
        extractor: str | None = None,
        judge: str | None = None,
    ) -> None:
        self._data = data
        self._img_resolution = img_resolution
        self._split: Split = split or splits(data)[-1]
        self._seed = seed
        dataset = open_dataset(data, img_resolution, self._split)
        self.data_name = dataset.name
        shipped, own_judge = shipped_names(), f"{dataset.name}-judge"
        default = dataset.name if dataset.name in shipped else DEFAULT_EXTRACTOR
        images, self._labels = draw(dataset, n, seed)
        check_count(len(images))
        self._reals = Reference(
            images=images,
            extractor=open_extractor(extractor or default),
            data=dataset.name,
            data_digest=dataset.digest,
            split=self._split,
            num_classes=dataset.num_classes,
            seed=seed,
        )
        judge = judge or (own_judge if own_judge in shipped else None)
        self._judged = replace(self._reals, extractor=open_extractor(judge)) if judge else None
        self._floors: dict[tuple[int, tuple[str, ...]], tuple[Figure, ...]] = {}

    def protocol(self, n_fake: int) -> Protocol:
        """How figures of `n_fake` plain fakes on the extractor's features are taken."""
        return self._reals.protocol(n_fake)

    @property
    def has_own_classes(self) -> bool:
        """Whether the extractor finds the data's classes, so that their shares can be taken."""
        return self._reals.has_own_classes

    def figures(self, fakes: Fakes, asked: Collection[str] | None = None) -> tuple[Figure, ...]:
        """The figures `asked` for of fakes, or all that can be taken, each with `of_reals`.

        Against the test split that is of training images; against the training split only some have it.
        Raises InvalidValue for a figure that is asked for by name and cannot be taken.
        """
        names = FIGURES if asked is None else tuple(asked)
        check_figures(names)
        psi, sampler = fakes.truncation_psi, fakes.sampler
        of_sets = tuple(name for name in SET_FIGURES if name in names)
        answers = None
        if set(names) - {"sharpness", "class_accuracy"}:
            check_images(self._reals.images, fakes.images)
            answers = self._reals.extractor.answers(fakes.images)
        taken: list[Figure] = []
        if of_sets:
            found = measure(
                self._reals,
                fakes.images,
                figures=of_sets,
                answers=answers,
                truncation_psi=psi,
                sampler=sampler,
            )
            taken += with_reals(found, self._floor(len(fakes.images), of_sets))
        asked_for, labels = fakes.class_idx, self._labels
        if "class_accuracy" in names and self._judged and labels is not None and asked_for is not None:
            pair = fakes.images, asked_for
            taken += class_accuracies(self._judged, labels, *pair, truncation_psi=psi, sampler=sampler)
        if "class_variety" in names and labels is not None and asked_for is not None:
            pair = fakes.images, asked_for
            variety = class_variety(
                self._reals, labels, *pair, answers=answers, truncation_psi=psi, sampler=sampler
            )
            taken += [variety] if variety else []
        if "training_distance" in names:
            taken.append(
                training_distance(
                    self._training, fakes.images, answers=answers, truncation_psi=psi, sampler=sampler
                )
            )
        if asked is not None:
            self._check_taken(names, taken)
        return tuple(taken)

    def _floor(self, n_fake: int, names: tuple[str, ...]) -> tuple[Figure, ...]:
        """The figures of training images in the place of fakes; none where those are the reals."""
        if self._split == "train":
            return ()
        if (n_fake, names) not in self._floors:
            images, _ = draw(self._training_set, n_fake, self._seed)
            self._floors[n_fake, names] = measure(self._reals, images, figures=names)
        return self._floors[n_fake, names]

    @cached_property
    def _training_set(self) -> Dataset:
        return open_dataset(self._data, self._img_resolution, "train")

    @cached_property
    def _training(self) -> Reference:
        """All of the training split."""
        dataset = self._training_set
        images, _ = draw(dataset, len(dataset), self._seed)
        return replace(self._reals, images=images, data_digest=dataset.digest, split="train")

    def _check_taken(self, names: Collection[str], taken: Collection[Figure]) -> None:
        plain = {inception: name for name, inception in INCEPTION_NAMES.items()}
        found = {re.sub(r"_\d+$", "", plain.get(one.name, one.name)) for one in taken}  # of one class
        if missing := [name for name in names if name not in found]:
            raise InvalidValue(
                f"{missing[0]} cannot be taken here: it needs a classifier, shares of classes one of the "
                "data's own classes, class_accuracy and class_variety the class that each image was to show"
            )
