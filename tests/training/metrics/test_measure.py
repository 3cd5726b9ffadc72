"""Figures: what they are called, what they carry, and that the order of the data does not move them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from toy_training import toy_dataset

from models.errors import InvalidValue
from training.data import Dataset
from training.metrics import (
    Figure,
    Reference,
    class_accuracies,
    class_variety,
    draw,
    measure,
    training_distance,
    with_reals,
)
from training.metrics.extractor import Answers
from training.metrics.measure import SET_FIGURES


class Halves:
    """Mean brightness of the left and of the right half; the brighter half is the class."""

    name, digest, resize = "halves", "ab" * 32, "none"

    def __init__(self, is_inception: bool = False, is_classifier: bool = True) -> None:
        self.is_inception = is_inception
        self.is_classifier = is_classifier

    def answers(self, images: np.ndarray) -> Answers:
        middle = images.shape[2] // 2
        halves = [images[:, :, half].mean((1, 2, 3)) for half in (slice(middle), slice(middle, None))]
        features = np.stack(halves, axis=1).astype(np.float32)
        return Answers(features=features, logits=features if self.is_classifier else None)


def reference(
    dataset: Dataset,
    n: int = 200,
    extractor: Halves | None = None,
    split: str = "test",
    num_classes: int = 2,
) -> Reference:
    images, _ = draw(dataset, n, seed=0)
    return Reference(
        images=images,
        extractor=extractor or Halves(),
        data=dataset.name,
        data_digest=dataset.digest,
        split=split,
        num_classes=num_classes,
    )


def test_a_figure_says_all_of_how_it_was_taken_and_survives_json() -> None:
    reals = reference(toy_dataset())
    fakes, _ = draw(toy_dataset(), 100, seed=1)

    plain, chosen = measure(reals, fakes), measure(reals, fakes, truncation_psi=0.7, sampler="mh, K=12")

    assert [one.name for one in plain] == list(SET_FIGURES)
    told = json.loads(json.dumps(plain[0].to_json()))
    assert told == {
        "name": "frechet_distance",
        "value": plain[0].value,
        "protocol": {
            "extractor": "halves",
            "extractor_digest": "ab" * 32,
            "data": "halves",
            "data_digest": toy_dataset().digest,
            "split": "test",
            "n_real": 200,
            "n_fake": 100,
            "resize": "none",
            "seed": 0,
        },
    }
    assert [Figure.from_json(one.to_json()) for one in (*plain, *chosen)] == [*plain, *chosen]
    assert chosen[0].to_json()["protocol"]["truncation_psi"] == 0.7
    assert chosen[0].protocol != plain[0].protocol
    sharp = plain[-1].protocol
    assert (sharp.extractor, sharp.extractor_digest) == ("pixels", "")


def test_the_same_images_give_the_same_figures_to_the_last_bit() -> None:
    fakes, _ = draw(toy_dataset(), 100, seed=1)

    first, again = (measure(reference(toy_dataset()), fakes) for _ in range(2))

    assert first == again


def test_fid_kid_and_inception_score_are_names_of_inceptions_features_alone() -> None:
    fakes, _ = draw(toy_dataset(), 100, seed=1)

    of_classifier = {one.name for one in measure(reference(toy_dataset()), fakes)}
    of_inception = {
        one.name for one in measure(reference(toy_dataset(), extractor=Halves(is_inception=True)), fakes)
    }

    assert of_inception - of_classifier == {"fid", "fid_infinity", "kid", "inception_score"}
    assert of_classifier - of_inception == {
        "frechet_distance",
        "frechet_distance_limit",
        "kernel_distance",
        "classifier_score",
    }


def test_data_that_lie_in_the_order_of_their_classes_are_drawn_by_the_seed() -> None:
    """The guard of ordered splits: the first images of such a set are another distribution."""
    dataset = toy_dataset(600)
    by_class = np.argsort(dataset.class_idx, kind="stable")
    ordered = dataclasses.replace(
        dataset, images=dataset.images[by_class], class_idx=dataset.class_idx[by_class]
    )
    fakes, _ = draw(dataset, 250, seed=1)
    taken_in_order = dataclasses.replace(
        reference(ordered), images=ordered.images[:250].transpose(0, 2, 3, 1)
    )

    (drawn,) = measure(reference(ordered, 250), fakes, figures=["frechet_distance"])
    (in_order,) = measure(taken_in_order, fakes, figures=["frechet_distance"])

    assert in_order.value > 20 * drawn.value
    images, class_idx = draw(ordered, 250, seed=0)
    assert not np.array_equal(class_idx, np.sort(class_idx))
    assert np.array_equal(Halves().answers(images).logits.argmax(1), class_idx)


def test_only_what_is_asked_for_is_taken_and_classes_need_a_classifier() -> None:
    fakes, _ = draw(toy_dataset(), 100, seed=1)
    asked = ["coverage", "class_jsd", "sharpness"]

    found = measure(reference(toy_dataset()), fakes, figures=asked)
    without = measure(reference(toy_dataset(), extractor=Halves(is_classifier=False)), fakes, figures=asked)

    of_others = measure(reference(toy_dataset(), num_classes=9), fakes, figures=[*asked, "classifier_score"])

    assert [one.name for one in found] == asked
    assert [one.name for one in of_others] == ["coverage", "classifier_score", "sharpness"]
    assert [one.name for one in without] == ["coverage", "sharpness"]


def test_what_real_images_get_stands_beside_each_figure_of_the_same_protocol() -> None:
    reals = reference(toy_dataset())
    fakes, training = (draw(toy_dataset(), 100, seed=seed)[0] for seed in (1, 2))
    floor = measure(reals, training, figures=["frechet_distance"])

    (beside,) = with_reals(measure(reals, fakes, figures=["frechet_distance"], truncation_psi=0.5), floor)
    (of_fewer,) = with_reals(measure(reals, fakes[:50], figures=["frechet_distance"]), floor)

    assert beside.of_reals == floor[0].value
    assert of_fewer.of_reals is None


def test_class_accuracy_is_of_the_classes_asked_for_and_of_the_weakest_beside_the_judges_own() -> None:
    reals = reference(toy_dataset())
    _, labels = draw(toy_dataset(), 200, seed=0)
    fakes, class_idx = draw(toy_dataset(), 100, seed=1)
    asked = np.where(np.arange(100) < 25, 0, class_idx)  # some that show the class 1
    ones = int(class_idx[:25].sum())

    found, weakest = class_accuracies(reals, labels, fakes, asked)

    assert (found.value, found.of_reals) == (1 - ones / 100, 1.0)
    assert (weakest.name, weakest.of_reals) == ("class_accuracy_0", 1.0)
    assert weakest.value == pytest.approx(1 - ones / (asked == 0).sum())
    no_classifier = reference(toy_dataset(), extractor=Halves(is_classifier=False))
    with pytest.raises(InvalidValue, match="must be a classifier for class_accuracy, halves has no output"):
        class_accuracies(no_classifier, labels, fakes, asked)


def test_a_class_that_collapsed_is_the_least_varied_one_while_reals_have_1() -> None:
    reals = reference(toy_dataset())
    _, labels = draw(toy_dataset(), 200, seed=0)
    fakes, class_idx = draw(toy_dataset(), 200, seed=0)
    collapsed = fakes.copy()
    collapsed[class_idx == 1] = fakes[class_idx == 1][0]

    same = class_variety(reals, labels, fakes, class_idx)
    least = class_variety(reals, labels, collapsed, class_idx)

    assert same is not None
    assert least is not None
    assert same.value == pytest.approx(1)
    assert (least.name, least.value, least.of_reals) == ("class_variety_1", 0.0, 1.0)
    assert class_variety(reals, np.full(200, 7), fakes, class_idx) is None


def test_a_generator_that_copies_is_far_nearer_to_training_than_training_images_are() -> None:
    stream = np.random.RandomState(0)
    images = stream.randint(0, 256, (300, 1, 4, 4)).astype(np.uint8)
    training = reference(Dataset(name="noise", images=images), 300, split="train")

    fresh = training_distance(training, stream.randint(0, 256, (50, 4, 4, 1)).astype(np.uint8))
    copied = training_distance(training, training.images[:50])

    assert copied.value == 0 < 0.5 * copied.of_reals
    assert fresh.value == pytest.approx(fresh.of_reals, rel=0.5)


@pytest.mark.parametrize(
    ("fakes", "figures", "sentence"),
    [
        (np.zeros((9, 16, 16, 3), dtype=np.uint8), ["coverage"], "the reals are 16×16×1, got uint8 16×16×3"),
        (np.zeros((9, 16, 16, 1), dtype=np.float32), ["coverage"], "got float32 16×16×1"),
        (np.zeros((3, 16, 16, 1), dtype=np.uint8), ["coverage"], "of at least 7 images, got 3"),
        (np.zeros((9, 16, 16, 1), dtype=np.uint8), ["fid"], "figures must be of frechet_distance, .* 'fid'"),
    ],
)
def test_what_cannot_be_measured_is_refused(fakes: np.ndarray, figures: list[str], sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        measure(reference(toy_dataset()), fakes, figures=figures)
