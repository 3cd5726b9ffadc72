"""D at work after training: exported where it can be, calibrated on what it never saw, MH where it helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor, nn
from toy_training import toy_config, toy_dataset

from models.calibration import Calibration
from models.golden import Golden, Render, Score
from models.manifest import DISCRIMINATOR_FILE, GOLDEN_FILE, GRAPH_FILE
from models.store import Artifact, Store
from training.calibration import calibrate, fit_logistic
from training.discriminator import Evidence, write_discriminator
from training.errors import GraphRefused
from training.export import export_run
from training.graph_session import DiscriminatorSession, GraphSession
from training.loop import train
from training.metrics.extractor import Answers
from training.networks import Discriminator
from training.promises import Rows, check_scores
from training.run_folder import RunFolder
from training.servable import torch_score
from training.snapshot import load_newest
from training.verify import verify

Images = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]
Latents = npt.NDArray[np.float32]
HELD_OUT = toy_dataset(400)


class Pixels:
    """Features that need no network: a few pixels of each image."""

    name, digest, resize, is_inception = "pixels", "0" * 64, "none", False

    def answers(self, images: Images) -> Answers:
        return Answers(
            features=images[:, ::5, ::5, 0].reshape(len(images), -1).astype(np.float32), logits=None
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    train(toy_config(D_spectral_norm=True, total_kimg=0.512), toy_dataset(), run, tick_kimg=1)
    return run


@pytest.fixture(scope="module")
def artifact(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    evidence = Evidence(held_out=HELD_OUT, extractor=Pixels())
    store = Store(tmp_path_factory.mktemp("store"))
    return export_run(run, store, name="toy", gather=lambda snapshot: evidence)


def test_an_export_with_held_out_images_has_its_discriminator_and_proves_it(artifact: Artifact) -> None:
    manifest = artifact.manifest
    golden = Golden.load(artifact.file(GOLDEN_FILE), manifest)
    judge = DiscriminatorSession(artifact.verified_file(DISCRIMINATOR_FILE))

    sentences = list(verify(Store(artifact.path.parent.parent), "toy"))

    assert golden.largest_realness_difference(judge.score_many) == 0
    assert sentences[-1] == f"discriminator: {len(golden.seeds)} golden logits, the same"
    assert manifest.sampler is not None
    assert {"plain", "mh, 12 proposals"} == {
        one["protocol"].get("sampler", "plain") for one in manifest.sampler["measured"]
    }
    without = replace(manifest, sampler={**manifest.sampler, "offset": 0.5})
    assert without.digest != manifest.digest


def test_the_graph_scores_as_torch_does_with_spectral_norm_folded(run: RunFolder, artifact: Artifact) -> None:
    rows = Rows.sample(artifact.manifest, 9)
    images = rows.render(GraphSession(artifact.file(GRAPH_FILE)).render)

    logits = DiscriminatorSession(artifact.file(DISCRIMINATOR_FILE)).score(images, rows.class_idx)

    D = load_newest(run).discriminator()
    assert np.abs(logits - torch_score(D)(images, rows.class_idx)).max() < 1e-4
    assert b"original" not in artifact.file(DISCRIMINATOR_FILE).read_bytes()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "wasserstein", "gp_weight": 10.0, "r1_gamma": 0.0}, "critic scores differences"),
        ({"objective": "elbo", "r1_gamma": 0.0}, "has no discriminator"),
    ],
)
def test_a_critic_and_a_vae_are_exported_without_and_say_why(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    train(toy_config(total_kimg=0.016, **changes), toy_dataset(), run, tick_kimg=1)

    artifact = export_run(run, Store(tmp_path), name="toy", gather=lambda _: Evidence(held_out=HELD_OUT))

    assert artifact.manifest.calibration is None
    assert sentence in artifact.manifest.why_no_calibration
    assert DISCRIMINATOR_FILE not in artifact.manifest.files


def test_without_held_out_images_the_generator_comes_alone(run: RunFolder, tmp_path: Path) -> None:
    artifact = export_run(run, Store(tmp_path), name="toy")

    assert "no images that it never saw" in artifact.manifest.why_no_calibration
    assert DISCRIMINATOR_FILE not in artifact.manifest.files


class _MinibatchStatistics(Discriminator):
    """Looks at the spread of its batch, as Karras 2018 does."""

    def __init__(self) -> None:
        super().__init__(toy_config(), HELD_OUT.shape)
        self.to_logit = nn.Linear(256, 1)

    def forward(self, samples: Tensor, class_idx: Tensor | None = None) -> Tensor:
        logits: Tensor = self.to_logit(samples.flatten(1)).squeeze(1)
        return logits + samples.std(dim=0, correction=0).mean()


def test_a_discriminator_with_minibatch_statistics_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    session = GraphSession(artifact.file(GRAPH_FILE))

    with pytest.raises(GraphRefused, match="logit must not depend on its batch mates"):
        write_discriminator(tmp_path / "D.onnx", session, artifact.manifest, _MinibatchStatistics())


def test_scores_that_drift_are_refused() -> None:
    calls = iter(range(100))

    def drifts(images: Images, class_idx: Classes) -> npt.NDArray[np.float32]:
        return np.full(len(images), next(calls), dtype=np.float32)

    with pytest.raises(GraphRefused, match="two runs on the same rows must give the same logit"):
        check_scores(drifts, np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int64))


# The calibration


def test_the_fit_finds_the_logistic_that_the_logits_were_drawn_from() -> None:
    random = np.random.RandomState(0)
    logits = random.randn(40_000) * 3 + 20  # far from 0, as a relativistic D's may be
    real = random.rand(40_000) < 1 / (1 + np.exp(-(0.5 * logits - 10)))

    scale, offset = fit_logistic(logits[real], logits[~real])

    assert scale == pytest.approx(0.5, rel=0.05)
    assert offset == pytest.approx(-10, rel=0.05)


def test_the_fit_stays_finite_where_reals_and_fakes_do_not_overlap() -> None:
    scale, offset = fit_logistic(np.linspace(1000, 1001, 50), np.linspace(-3, 3, 50))

    assert 0 < scale < 1
    assert np.isfinite(offset)


def _mixture(right: float) -> tuple[Render, Score]:
    """A G that is too dark in nine of ten images, and a D that is `right` about it (-1: wrong)."""

    def render(latents: Latents, class_idx: Classes, psi: Latents) -> Images:
        level = np.where(latents[:, 0] > 1.2816, 192 + 20 * latents[:, 1], 40 + 10 * latents[:, 1])
        images = np.zeros((len(latents), 16, 16, 1), np.uint8)
        for image, side, value in zip(images, class_idx, level, strict=True):
            image[:, 8 * side : 8 * side + 8] = np.clip(value, 0, 255)
        return images

    def score(images: Images, class_idx: Classes) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = (
            right * np.float32(0.05) * (images.max(axis=(1, 2, 3)) - np.float32(116))
        )
        return logits

    return render, score


def test_mh_is_offered_where_the_distance_falls_and_realness_alone_where_it_does_not(
    artifact: Artifact,
) -> None:
    render, score = _mixture(1.0)

    def one_image_a_class(latents: Latents, class_idx: Classes, psi: Latents) -> Images:
        return render(0 * latents, class_idx, psi)

    helps = calibrate(render, score, artifact.manifest, HELD_OUT, extractor=Pixels())
    useless = calibrate(one_image_a_class, score, artifact.manifest, HELD_OUT, extractor=Pixels())
    unmeasured = calibrate(render, score, artifact.manifest, HELD_OUT, extractor=None)

    plain, chosen = (one["value"] for one in helps["measured"] if one["name"] == "frechet_distance")
    assert chosen < 0.5 * plain
    assert helps["plain_spread"]["mean"] == pytest.approx(plain, rel=0.2)
    assert helps["mh"]
    assert not useless["mh"]
    assert "by 2% and two deviations" in useless["why_not"]
    assert useless["scale"] > 0
    assert not unmeasured["mh"]
    assert "was not measured" in unmeasured["why_not"]


def test_a_discriminator_that_prefers_fakes_is_no_use(artifact: Artifact) -> None:
    render, score = _mixture(-1.0)

    facts = calibrate(render, score, artifact.manifest, HELD_OUT, extractor=Pixels())

    assert Calibration.from_facts(facts) is None
    assert "no less real" in facts["why_not"]
