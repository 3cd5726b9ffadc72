"""Two arrays of images and an extractor become figures.

What is asked of the reals once (`Reference`) serves for any number of fakes. A figure has the name of its
kind: the words FID, KID and Inception Score are kept for Inception's features. Refuses to own: where images
come from (`training.metrics.targets`), the mathematics (the modules beside it).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from models.errors import InvalidValue, show
from training.data import Dataset
from training.metrics.classes import ClassIdx, Logits, accuracy, histogram, inception_score
from training.metrics.distances import (
    Features,
    Gaussian,
    deviation,
    frechet_distance,
    frechet_distance_limit,
    kernel_distance,
    standardised,
)
from training.metrics.extractor import Answers, Extractor, Images
from training.metrics.neighbours import MIN_IMAGES, nearest_distances, neighbourhoods
from training.metrics.protocol import PIXELS, PLAIN, Figure, Protocol
from training.metrics.sharpness import sharpness

INCEPTION_NAMES: Final = {
    "frechet_distance": "fid",
    "frechet_distance_limit": "fid_infinity",
    "kernel_distance": "kid",
    "classifier_score": "inception_score",
}
"""What figures are called on Inception's features, and on no others."""


def draw(dataset: Dataset, count: int, seed: int) -> tuple[Images, ClassIdx | None]:
    """`count` different images [N, H, W, C] of a data set and their classes [N], or all where it has fewer.

    They are drawn, since a data set may be in an order: the first 10,000 of one that goes class by class are
    another distribution.
    """
    rows = np.random.RandomState(seed).permutation(len(dataset))[:count]
    images = np.ascontiguousarray(dataset.images[rows].transpose(0, 2, 3, 1))
    return images, None if dataset.class_idx is None else dataset.class_idx[rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The reals that fakes are held against, and what an extractor says of them."""

    images: Images
    """[N, H, W, C]"""
    extractor: Extractor
    data: str
    """Name of the data set that they are of."""
    data_digest: str
    """sha256 (64 hex) of the split, at their size: `Dataset.digest`."""
    split: str
    """Which part of the data they are of."""
    num_classes: int = 0
    """Classes of the data; 0: it has none, or they are not known."""
    seed: int = 0
    """Of every draw that a figure makes; a protocol says that the reals were drawn by it too."""

    @cached_property
    def answers(self) -> Answers:
        return self.extractor.answers(self.images)

    @property
    def has_own_classes(self) -> bool:
        """Whether the extractor is a classifier of as many classes as the data have."""
        logits = self.answers.logits
        return logits is not None and logits.shape[1] == self.num_classes

    @cached_property
    def gaussian(self) -> Gaussian:
        return Gaussian.of(self.answers.features)

    def protocol(self, n_fake: int, *, truncation_psi: float = 1.0, sampler: str = "plain") -> Protocol:
        return Protocol(
            extractor=self.extractor.name,
            extractor_digest=self.extractor.digest,
            data=self.data,
            data_digest=self.data_digest,
            split=self.split,
            n_real=len(self.images),
            n_fake=n_fake,
            resize=self.extractor.resize,
            seed=self.seed,
            truncation_psi=truncation_psi,
            sampler=sampler,
        )


Values = dict[str, float]


def _frechet(reals: Reference, fakes: Answers) -> Values:
    return {"frechet_distance": frechet_distance(reals.gaussian, Gaussian.of(fakes.features))}


def _frechet_limit(reals: Reference, fakes: Answers) -> Values:
    return {"frechet_distance_limit": frechet_distance_limit(reals.gaussian, fakes.features, reals.seed)}


def _kernel(reals: Reference, fakes: Answers) -> Values:
    pair: tuple[Features, Features] = reals.answers.features, fakes.features
    if not reals.extractor.is_inception:  # whose KID is defined on features as they are
        pair = standardised(*pair)
    return {"kernel_distance": kernel_distance(*pair, reals.seed)}


def _neighbours(reals: Reference, fakes: Answers) -> Values:
    return asdict(neighbourhoods(reals.answers.features, fakes.features))


def _score(reals: Reference, fakes: Answers) -> Values:
    return {"classifier_score": inception_score(_logits(fakes, reals.extractor), reals.seed)}


def _histogram(reals: Reference, fakes: Answers) -> Values:
    found = histogram(_logits(fakes, reals.extractor), _logits(reals.answers, reals.extractor))
    return {f"class_{name}": value for name, value in asdict(found).items()}


@dataclass(frozen=True, kw_only=True)
class _Group:
    names: tuple[str, ...]
    take: Callable[[Reference, Answers], Values]
    needs_classes: bool = False
    needs_own_classes: bool = False
    """Whether the classes must be the data's."""

    def can_be_taken(self, reals: Reference) -> bool:
        if self.needs_own_classes:
            return reals.has_own_classes
        return not self.needs_classes or reals.answers.logits is not None


_GROUPS: Final = (
    _Group(names=("frechet_distance",), take=_frechet),
    _Group(names=("frechet_distance_limit",), take=_frechet_limit),
    _Group(names=("kernel_distance",), take=_kernel),
    _Group(names=("precision", "recall", "density", "coverage"), take=_neighbours),
    _Group(names=("classifier_score",), take=_score, needs_classes=True),
    _Group(
        names=("class_min_share", "class_max_share", "class_jsd"),
        take=_histogram,
        needs_classes=True,
        needs_own_classes=True,
    ),
)
SET_FIGURES: Final = (*(name for group in _GROUPS for name in group.names), "sharpness")
"""What `measure` takes of two sets of images."""
FIGURES: Final = (*SET_FIGURES, "class_accuracy", "class_variety", "training_distance")
"""All that there are."""


def measure(
    reals: Reference,
    fakes: Images,
    *,
    figures: Collection[str] = SET_FIGURES,
    answers: Answers | None = None,
    truncation_psi: float = 1.0,
    sampler: str = "plain",
) -> tuple[Figure, ...]:
    """Hold fakes uint8 [M, H, W, C] against `reals`: those of `figures` that can be taken.

    Figures of classes cannot where the extractor is no classifier, the shares of classes where it has not as
    many as the data. `answers` is what the extractor says of the fakes, where it has been asked; truncation
    and sampler are what the protocol tells. The same images give the same figures, to the last bit. Raises
    InvalidValue for a figure that is none, for fewer than 7 images, and for images of another shape than the
    reals.
    """
    check_figures(figures)
    check_images(reals.images, fakes)
    protocol = reals.protocol(len(fakes), truncation_psi=truncation_psi, sampler=sampler)
    values: Values = {}
    if any(set(group.names) & set(figures) for group in _GROUPS):
        answers = answers or reals.extractor.answers(fakes)
        for group in _GROUPS:
            if set(group.names) & set(figures) and group.can_be_taken(reals):
                values |= group.take(reals, answers)
    names = INCEPTION_NAMES if reals.extractor.is_inception else {}
    taken = [
        Figure(name=names.get(name, name), value=value, protocol=protocol)
        for name, value in values.items()
        if name in figures
    ]
    if "sharpness" in figures:
        of_pixels = replace(protocol, extractor=PIXELS, extractor_digest="", resize="none")
        value = sharpness(fakes, reals.images)
        taken.append(Figure(name="sharpness", value=value, protocol=of_pixels, of_reals=1.0))
    return tuple(taken)


def with_reals(figures: Iterable[Figure], of_reals: Iterable[Figure]) -> tuple[Figure, ...]:
    """`figures` with what `of_reals`, taken by the same protocol of real images, has under each name."""
    known = {(one.name, one.protocol): one.value for one in of_reals}
    return tuple(
        replace(one, of_reals=known.get((one.name, replace(one.protocol, **PLAIN)), one.of_reals))
        for one in figures
    )


def class_accuracies(
    reals: Reference,
    class_idx_of_reals: ClassIdx,
    fakes: Images,
    class_idx: ClassIdx,
    *,
    truncation_psi: float = 1.0,
    sampler: str = "plain",
) -> tuple[Figure, Figure]:
    """The share of fakes [M, H, W, C] in which the extractor of `reals` finds the class [M] asked for.

    First `class_accuracy`, of all of them; then `class_accuracy_K`, of those of the class K for which it is
    lowest. `of_reals` is the same share of the reals [N, H, W, C] with their labels [N]. A judge should be
    another classifier than the one by whose features the generator was chosen. Raises InvalidValue for an
    extractor that is no classifier.
    """
    check_images(reals.images, fakes)
    protocol = reals.protocol(len(fakes), truncation_psi=truncation_psi, sampler=sampler)
    logits = _logits(reals.extractor.answers(fakes), reals.extractor)
    logits_of_reals = _logits(reals.answers, reals.extractor)
    of_each = {
        int(k): accuracy(logits[class_idx == k], class_idx[class_idx == k]) for k in np.unique(class_idx)
    }
    weakest = min(of_each, key=of_each.__getitem__)
    of_weakest = class_idx_of_reals == weakest
    return (
        Figure(
            name="class_accuracy",
            value=accuracy(logits, class_idx),
            protocol=protocol,
            of_reals=accuracy(logits_of_reals, class_idx_of_reals),
        ),
        Figure(
            name=f"class_accuracy_{weakest}",
            value=of_each[weakest],
            protocol=protocol,
            of_reals=accuracy(logits_of_reals[of_weakest], weakest) if of_weakest.any() else None,
        ),
    )


def class_variety(
    reals: Reference,
    class_idx_of_reals: ClassIdx,
    fakes: Images,
    class_idx: ClassIdx,
    *,
    answers: Answers | None = None,
    truncation_psi: float = 1.0,
    sampler: str = "plain",
) -> Figure | None:
    """How much images of one class differ, those of reals being 1: `class_variety_K`, of the least varied.

    It is the ratio of the standard deviations within the class K, over all features: near 0 where a class has
    collapsed to one image, which the figures of all classes together hardly show. Fakes [M, H, W, C] are of
    the classes [M], reals of [N]; `answers` as of `measure`. None where no class has two images of each.
    """
    check_images(reals.images, fakes)
    features = (answers or reals.extractor.answers(fakes)).features
    of_each = {}
    for k in np.unique(class_idx):
        of_fakes, of_reals = features[class_idx == k], reals.answers.features[class_idx_of_reals == k]
        if min(len(of_fakes), len(of_reals)) > 1:
            of_each[int(k)] = deviation(of_fakes) / max(deviation(of_reals), 1e-9)
    if not of_each:
        return None
    least = min(of_each, key=of_each.__getitem__)
    protocol = reals.protocol(len(fakes), truncation_psi=truncation_psi, sampler=sampler)
    return Figure(name=f"class_variety_{least}", value=of_each[least], protocol=protocol, of_reals=1.0)


def training_distance(
    training: Reference,
    fakes: Images,
    *,
    answers: Answers | None = None,
    truncation_psi: float = 1.0,
    sampler: str = "plain",
) -> Figure:
    """How far fakes [M, H, W, C] are from the nearest training image, in features: the median.

    `training` is all of the training split. `of_reals` is the median of as many training images, each to the
    nearest other one: a generator that copies is far below it. `answers` as of `measure`.
    """
    check_images(training.images, fakes)
    features = training.answers.features
    own = np.random.RandomState(training.seed).permutation(len(features))[: len(fakes)]
    answers = answers or training.extractor.answers(fakes)
    value = nearest_distances(answers.features, features)
    of_reals = nearest_distances(features[own], features, own)
    return Figure(
        name="training_distance",
        value=float(np.median(value)),
        protocol=training.protocol(len(fakes), truncation_psi=truncation_psi, sampler=sampler),
        of_reals=float(np.median(of_reals)),
    )


def accuracy_on(extractor: Extractor, dataset: Dataset) -> float:
    """The share of a labelled data set's images that a classifier finds the class of."""
    assert dataset.class_idx is not None
    images = dataset.images.transpose(0, 2, 3, 1)  # [N, H, W, C]
    return accuracy(_logits(extractor.answers(images), extractor), dataset.class_idx)


def check_figures(figures: Collection[str]) -> None:
    """Raise InvalidValue for a name that is no figure's."""
    if unknown := [name for name in figures if name not in FIGURES]:
        raise InvalidValue(f"figures must be of {', '.join(FIGURES)}, got {show(unknown[0])}")


def _logits(answers: Answers, extractor: Extractor) -> Logits:
    if answers.logits is None:
        raise InvalidValue(
            f"the extractor must be a classifier for class_accuracy, {extractor.name} has no output logits"
        )
    return answers.logits


def check_images(reals: Images, fakes: Images) -> None:
    """Raise InvalidValue where fakes cannot be held against reals."""
    if fakes.dtype != np.uint8 or fakes.shape[1:] != reals.shape[1:]:
        raise InvalidValue(
            f"images must be uint8 and of one size, the reals are {_sizes(reals)}, "
            f"got {fakes.dtype} {_sizes(fakes)}"
        )
    check_count(min(len(reals), len(fakes)))


def check_count(count: int) -> None:
    """Raise InvalidValue for fewer images than figures can be taken of."""
    if count < MIN_IMAGES:
        raise InvalidValue(f"figures must be taken of at least {MIN_IMAGES} images, got {count}")


def _sizes(images: Images) -> str:
    return "×".join(map(str, images.shape[1:]))
