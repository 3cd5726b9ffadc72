"""A card says what the manifest says, in the form that the Hugging Face Hub reads, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from models.manifest import Manifest
from models.store import SHIPPED_STORE, Store
from training.card import card_text

PROTOCOL = {
    "extractor": "small",
    "extractor_digest": "ab" * 32,
    "data": "fashion-mnist",
    "data_digest": "cd" * 32,
    "split": "test",
    "n_real": 10_000,
    "n_fake": 10_000,
    "resize": "none",
    "seed": 0,
}
JUDGE = PROTOCOL | {"extractor": "judge", "extractor_digest": "ef" * 32}


def figure(name: str, value: float, protocol: dict[str, Any] = PROTOCOL, **more: float) -> dict[str, Any]:
    return {"name": name, "value": value, **more, "protocol": protocol}


FIGURES = (
    figure("frechet_distance", 2.5, of_reals=0.38),
    figure("coverage", 0.8125, of_reals=0.97),
    figure("class_accuracy", 0.9, JUDGE, of_reals=0.915),
    figure("class_accuracy_6", 0.7, JUDGE, of_reals=0.75),
    figure("class_min_share", 0.07, of_reals=0.09),
)


@pytest.fixture(scope="module")
def trained() -> Manifest:
    return Store(SHIPPED_STORE).resolve("fashion-mnist:1").manifest


def part(card: str, title: str) -> str:
    return card.split(f"## {title}\n\n")[1].split("\n\n## ")[0]


def test_the_hub_reads_its_header_and_finds_each_figure_with_its_protocol(trained: Manifest) -> None:
    card = ModelCard(card_text(replace(trained, metrics=FIGURES)))

    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["fashion-mnist"])
    assert card.data.tags == ["gan", "dcgan", "onnx", "image-generation", "class-conditional"]
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {
        one["name"]: one["value"] for one in FIGURES
    }
    assert found["class_accuracy"].metric_args == JUDGE
    assert found["coverage"].dataset_split == "test"
    assert card.data.model_name == "fashion-mnist:1"


def test_a_licence_cannot_add_a_field_to_the_header(trained: Manifest) -> None:
    card = ModelCard(card_text(replace(trained, licence="x\nlibrary_name:evil y")))

    assert card.data.license == "x\nlibrary_name:evil"
    assert card.data.library_name == "ganserve"


def test_each_protocol_has_its_own_table_with_what_real_images_have(trained: Manifest) -> None:
    figures = part(card_text(replace(trained, metrics=FIGURES)), "Figures")

    of_small, of_judge = figures.split("\n\n10,000 images;")
    assert "features: small (sha256 abababababab); resize none, seed 0:" in of_small
    assert "| Fréchet distance | 2.5 | 0.38 |\n| coverage | 81.2% | 97.0% |" in of_small
    assert "features: judge (sha256 efefefefefef)" in of_judge
    assert "| images in which the class asked for is found | 90.0% | 91.5% |" in of_judge
    assert "| the same of class 6, where it is lowest | 70.0% | 75.0% |" in of_judge


def test_another_run_beside_it_has_a_column_of_the_same_protocol_and_no_other(trained: Manifest) -> None:
    other = [figure("frechet_distance", 31.4), figure("class_accuracy", 0.8, JUDGE | {"n_fake": 500})]
    run = {
        "preset": "textbook",
        "config": {"total_kimg": 900.0},
        "kimg": 700.03,
        "train_s": 1500.0,
        "metrics": other,
        "departures": ["overridden at 9 kimg"],
    }
    manifest = replace(trained, metrics=FIGURES, training={**trained.training, "beside": [run]})

    told, of_small, of_judge = f"\n\n{part(card_text(manifest), 'Figures')}".split("\n\n10,000 images;")

    assert "This generator is of 700.032 thousand images shown, 16 minutes; the runs beside" in told
    assert (
        "| real images | textbook, 700.03 thousand images shown, 25 minutes; **stopped before its end**, "
        "900 thousand; overridden at 9 kimg |" in of_small
    )
    assert "| Fréchet distance | 2.5 | 0.38 | 31.4 |\n| coverage | 81.2% | 97.0% |  |" in of_small
    assert "textbook" not in of_judge


def test_shares_of_classes_that_are_not_the_datas_are_not_told(trained: Manifest) -> None:
    of_imagenet = PROTOCOL | {"extractor": "efficientnet-lite0"}
    names = ("class_min_share", "class_max_share", "class_jsd")
    figures = tuple(figure(name, 0.0625, of_imagenet) for name in names)

    alone = card_text(replace(trained, metrics=(*figures, figure("coverage", 0.5, of_imagenet))))
    with_own = card_text(replace(trained, metrics=(*figures, *FIGURES)))

    assert "| coverage | 50.0% |" in alone
    assert "class_" not in alone.split("## Training")[0].replace("class_idx", "")
    assert all(words not in alone for words in ("the rarest", "most frequent", "divergence"))
    assert "| share of the rarest class | 7.0% | 9.0% |" in with_own


def test_where_its_data_are_to_be_had_is_told(trained: Manifest) -> None:
    data = {**trained.training["data"], "source": "DATA is what `npm pack x` leaves"}

    told = card_text(replace(trained, training={**trained.training, "data": data}))

    assert "60,000 images, sha256 cc029505f8fe; DATA is what `npm pack x` leaves\n" in told


def test_what_is_wrong_with_it_follows_from_its_plain_figures(trained: Manifest) -> None:
    figures = (
        *FIGURES,
        figure("coverage", 0.5, PROTOCOL | {"truncation_psi": 0.7}),
        figure("sharpness", 0.98, PROTOCOL | {"extractor": "pixels"}),
        figure("training_distance", 3.0, of_reals=4.0),
        figure("precision", 0.5),
        figure("class_max_share", 0.2),
        figure("class_variety_8", 0.5, of_reals=1.0),
    )

    assert part(card_text(replace(trained, metrics=figures)), "Known failings").splitlines() == [
        "- In 10.0% of its images the class asked for is not found (of real images: 8.5%).",
        "- The class that is found least is 7.0% of its images; of real images: 9.0%.",
        "- Only 50.0% of its images are in the neighbourhood of a real one (precision).",
        "- It does not make everything: only 81.2% of the real images have one of its images in their "
        "neighbourhood (coverage; of real images: 97.0%).",
        "- It copies in part: its images are nearer to a training image than those are to each other "
        "(median 3 and 4).",
        "- Its least varied class is Bag: its spread is 0.50 of that of real images.",
        "- Its weakest class is Shirt, found in 70.0% of its images; of real images: 75.0%.",
    ]


def test_what_is_as_good_as_real_images_is_no_failing(trained: Manifest) -> None:
    good = (
        figure("coverage", 0.97, of_reals=0.96),
        figure("class_max_share", 0.1, of_reals=0.11),
        figure("sharpness", 1.02),
        figure("training_distance", 4.0, of_reals=3.0),
        figure("class_accuracy_6", 0.9, of_reals=0.8),
    )

    assert part(card_text(replace(trained, metrics=good)), "Known failings").splitlines() == [
        "- Its weakest class is Shirt, found in 90.0% of its images; of real images: 80.0%."
    ]


def test_without_figures_nothing_is_claimed(trained: Manifest) -> None:
    card = card_text(replace(trained, metrics=()))

    assert "## Figures" not in card
    assert "## Known failings" not in card
    assert "model-index" not in card


def test_a_run_that_was_stopped_says_so_and_where(trained: Manifest) -> None:
    card = card_text(replace(trained, training={**trained.training, "kimg": 350.016}))

    assert "350.016 thousand images shown, 16 minutes; **stopped before its end**, 700 thousand" in card
    assert "The same run again, to be stopped at 350.016 thousand images:\n\n```\ngantrain train" in card
    assert "- Its training was stopped before its end." in card
    assert "stopped" not in card_text(trained)


def test_what_its_discriminator_is_good_for_is_told_with_its_figures(trained: Manifest) -> None:
    sampler = {
        "kind": "logistic",
        "scale": 0.91,
        "offset": -0.2,
        "mh": True,
        "why_not": "",
        "proposals": 12,
        "max_proposals": 64,
        "fitted_on": {"data": "fashion-mnist", "n_real": 5_000, "n_fake": 5_000},
        "measured": [
            figure("frechet_distance", 4.0),
            figure("frechet_distance", 3.0, PROTOCOL | {"sampler": "mh, 12 proposals"}),
        ],
    }

    offered = part(card_text(replace(trained, sampler=sampler)), "Its discriminator")
    refused = part(
        card_text(replace(trained, sampler=sampler | {"mh": False, "why_not": "it gains too little"})),
        "Its discriminator",
    )
    absent = part(
        card_text(replace(trained, sampler={"why_not": "it was not exported"})), "Its discriminator"
    )

    assert "σ(0.91 · logit -0.2), fitted on 5,000 images of fashion-mnist that D never saw" in offered
    assert "D chooses out of 12 images (Metropolis-Hastings)." in offered
    assert (
        "resize none, sampler mh, 12 proposals, seed 0:\n\n|  | this generator |\n| --- | --- |\n" in offered
    )
    assert '`"sampler": "mh"` is not offered: it gains too little.' in refused
    assert absent == "None is beside it: it was not exported."
