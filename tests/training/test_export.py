"""An export keeps the promises of serving, or refuses with a sentence and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from toy_training import toy_config, toy_dataset

from models.errors import DamagedArtifact, InvalidValue, VersionExists
from models.golden import Golden
from models.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, Manifest
from models.sampling import MAX_SEED
from models.store import Artifact, Store, sha256_of
from training.__main__ import main
from training.card import card_text
from training.errors import GraphRefused, RunError
from training.export import export_run
from training.graph import check_graph, write_model
from training.graph_session import GraphSession
from training.loop import train
from training.promises import Rows, check_difference, check_interface, check_rows
from training.proof import check_graph_file
from training.run_folder import RunFolder
from training.servable import torch_render
from training.snapshot import load_newest
from training.tracing import to_onnx, trace
from training.verify import render_artifact, verify

MANIFEST = Manifest(name="toy", version=1, z_dim=8, img_height=4, img_width=4, img_channels=1, truncation="z")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    train(toy_config(), toy_dataset(), run, tick_kimg=1)
    return run


@pytest.fixture(scope="module")
def artifact(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(tmp_path_factory.mktemp("store"))
    return export_run(run, store, name="toy", licence="Apache-2.0")


# What a good export is


def test_an_artifact_is_one_graph_with_its_proof_and_its_card(artifact: Artifact) -> None:
    names = sorted(path.name for path in artifact.path.iterdir())

    assert names == ["CARD.md", "golden.npz", "manifest.json", "model.onnx", "preview-0.7.png", "preview.png"]
    artifact.verify()


def test_the_same_run_exports_to_the_same_digest_and_tells_no_path_of_this_machine(
    run: RunFolder, artifact: Artifact, tmp_path: Path
) -> None:
    again = export_run(run, Store(tmp_path), name="toy", licence="Apache-2.0")

    assert again.digest == artifact.digest
    for file in artifact.manifest.files:
        content = artifact.file(file).read_bytes()
        assert str(Path(torch.__file__).parent.parent).encode() not in content
        assert str(Path(__file__).parent).encode() not in content
    assert b"stack_trace" not in artifact.file(GRAPH_FILE).read_bytes()


def test_the_card_of_a_run_that_was_overridden_says_what_its_command_leaves_out(artifact: Artifact) -> None:
    manifest = artifact.manifest
    sentence = "overridden at 64 kimg: G_lr was 0.002 and is now 0.001"
    overridden = replace(manifest, training={**manifest.training, "departures": [sentence]})

    assert "but for what was done meanwhile" not in card_text(manifest)
    assert f"but for what was done meanwhile:\n\n- {sentence}\n" in card_text(overridden)


def test_an_export_of_a_run_that_was_stopped_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, answers = RunFolder(tmp_path / "run"), iter([False, True, True])
    train(toy_config(), toy_dataset(), run, tick_kimg=1, should_stop=lambda: next(answers))

    main(["export", str(run.path), "--name=toy", f"--store={tmp_path}"])

    assert "caution: the run is not finished: 0.016 of 0.128 kimg" in capsys.readouterr().err
    assert "**stopped before its end**" in (tmp_path / "toy/1/CARD.md").read_text(encoding="utf-8")


def test_another_run_stands_beside_it_with_its_own_figures(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = RunFolder(tmp_path / "other")
    train(toy_config(seed=1, total_kimg=0.016), toy_dataset(), other, tick_kimg=1)
    words = ["export", str(run.path), "--name=toy", f"--store={tmp_path}", f"--beside={other.path}"]

    refused = main(words)
    snapshot = load_newest(other)
    figure = {"name": "coverage", "value": 0.25, "protocol": {"split": "test"}}
    other.append_figures(snapshot.cur_nimg, snapshot.weights, [figure])
    code = main(words)

    (beside,) = Store(tmp_path).resolve("toy").manifest.training["beside"]
    assert (refused, code) == (2, 0)
    assert f"{other.path} has no figures to compare with" in capsys.readouterr().err
    assert (beside["config"]["seed"], beside["kimg"], beside["metrics"]) == (1, 0.016, [figure])


def test_truncation_has_a_preview_of_its_own(artifact: Artifact) -> None:
    whole, truncated = (artifact.file(name).read_bytes() for name in ("preview.png", "preview-0.7.png"))

    assert whole != truncated
    assert "](preview-0.7.png)" in artifact.file("CARD.md").read_text(encoding="utf-8")


def test_the_manifest_says_how_it_was_trained_and_exported(artifact: Artifact) -> None:
    manifest = Manifest.from_json((artifact.path / MANIFEST_FILE).read_bytes())

    assert manifest.class_names == ("left", "right")
    assert (manifest.truncation, manifest.img_shape) == ("z", (16, 16, 1))
    assert manifest.licence == "Apache-2.0 (data: CC0-1.0)"
    assert manifest.training["config"] == toy_config().to_dict()
    assert manifest.training["data"]["digest"] == toy_dataset().digest
    assert manifest.training["kimg"] == 0.128
    assert manifest.export["largest_difference_to_torch_levels"] <= 1
    assert manifest.export["opset"] >= 18


def test_the_graph_gives_what_torch_gives(artifact: Artifact, run: RunFolder) -> None:
    rows = Rows.sample(artifact.manifest, count=9)
    session = GraphSession(artifact.path / GRAPH_FILE)

    images = rows.render(session.render)

    reference = rows.render(torch_render(load_newest(run).generator()))
    assert check_difference(images, reference) <= 1


def test_psi_1_changes_no_bit_and_psi_0_is_one_image_a_class(artifact: Artifact) -> None:
    render = GraphSession(artifact.path / GRAPH_FILE).render
    latents = np.random.RandomState(0).randn(4, 8).astype(np.float32)
    class_idx = np.array([0, 1, 0, 1])

    average = render(latents, class_idx, np.zeros(4, dtype=np.float32))
    halved = render(latents, class_idx, np.full(4, 0.5, dtype=np.float32))
    whole = render(latents * np.float32(0.5), class_idx, np.ones(4, dtype=np.float32))

    assert np.array_equal(average[:2], average[2:])
    assert np.array_equal(halved, whole)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 64])
def test_a_row_has_the_same_pixels_whatever_its_batch(size: int, artifact: Artifact) -> None:
    render = GraphSession(artifact.path / GRAPH_FILE).render
    rows = Rows.sample(artifact.manifest, count=64)
    order = np.random.RandomState(size).permutation(64)[:size]

    images = render(rows.latents[order], rows.class_idx[order], rows.truncation_psi[order])

    alone = np.concatenate([rows[slice(i, i + 1)].render(render) for i in order])
    assert np.array_equal(images, alone)


def test_golden_rows_reach_both_ends_of_the_seeds_every_class_and_two_psis(artifact: Artifact) -> None:
    golden = Golden.load(artifact.path / GOLDEN_FILE, artifact.manifest)

    levels = golden.largest_difference(GraphSession(artifact.path / GRAPH_FILE).render, artifact.manifest)

    assert levels == 0
    assert {0, MAX_SEED} <= set(golden.seeds.tolist())
    assert set(golden.class_idx.tolist()) == {0, 1}
    assert set(golden.truncation_psi.tolist()) == {1.0, np.float32(0.7)}
    assert len(golden.seeds) == 32


def test_an_unconditional_run_exports_without_the_input_for_classes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    train(toy_config(total_kimg=0.032), toy_dataset(labelled=False), run, tick_kimg=1)

    artifact = export_run(run, Store(tmp_path / "store"), name="plain")

    assert artifact.manifest.num_classes == 0
    assert set(GraphSession(artifact.path / GRAPH_FILE).inputs) == {"latents", "truncation_psi"}
    assert list(verify(Store(tmp_path / "store"), "plain", tmp_path / "run"))


def test_a_grid_of_an_artifact_shows_each_seed_in_its_default_class(artifact: Artifact) -> None:
    images = render_artifact(artifact, [3, 4])

    rows = Rows.sample(artifact.manifest, count=5)
    alone = GraphSession(artifact.path / GRAPH_FILE).render(
        rows.latents[3:], rows.class_idx[3:], np.ones(2, dtype=np.float32)
    )
    assert np.array_equal(images, alone)


# What an export refuses


class _Sketch(nn.Module):
    """A generator of [N, 4, 4, 1] pixels that tests spoil in one way each."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(1)

    def features(self, z: Tensor) -> Tensor:
        features: Tensor = self.linear(z)
        return features

    def forward(self, latents: Tensor, truncation_psi: Tensor) -> Tensor:
        levels = 128 + 20 * self.features(latents * truncation_psi[:, None])
        return levels.round().clamp(0, 255).to(torch.uint8).reshape(-1, 4, 4, 1)


class _Noisy(_Sketch):
    def features(self, z: Tensor) -> Tensor:
        return self.linear(z) + torch.randn(z.shape[0], 16)


class _BatchMean(_Sketch):
    def features(self, z: Tensor) -> Tensor:
        features = self.linear(z)
        return features - features.mean(dim=0)


class _Reversing(_Sketch):
    """Adds to each row the first row of the batch."""

    def features(self, z: Tensor) -> Tensor:
        features = self.linear(z)
        return features + features[:1]


class _AlwaysTraining(_Sketch):
    """Normalises by the batch even in eval mode."""

    def features(self, z: Tensor) -> Tensor:
        norm = self.norm
        features = self.linear(z)[:, None]  # [N, 1, 16]
        return nn.functional.batch_norm(features, None, None, norm.weight, norm.bias, training=True)[:, 0]


def _export_sketch(sketch: nn.Module, path: Path) -> Path:
    program = trace(sketch, (torch.randn(3, 8), torch.ones(3)))
    write_model(to_onnx(program, ["images"], ["latents", "truncation_psi"]), path)
    return path


def _eager(sketch: nn.Module) -> Callable[..., np.ndarray]:
    def render(latents: np.ndarray, class_idx: np.ndarray, truncation_psi: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return sketch(torch.tensor(latents), torch.tensor(truncation_psi)).numpy()

    return render


def test_a_sketch_that_breaks_no_promise_passes(tmp_path: Path) -> None:
    path = _export_sketch(_Sketch(), tmp_path / "model.onnx")

    _, levels = check_graph_file(path, MANIFEST, _eager(_Sketch()))

    assert levels <= 1


@pytest.mark.parametrize(
    ("sketch", "sentence"),
    [
        (_Noisy(), r"must draw no random numbers, its forward \(_Noisy\) does \(aten.randn.default\)"),
        (_BatchMean(), "must not depend on its batch mates"),
        (_Reversing(), "must not depend on its batch mates"),
        (_AlwaysTraining(), r"nothing in training mode, its forward \(_AlwaysTraining\) is"),
    ],
)
def test_a_module_that_breaks_a_promise_is_refused_with_the_way_out(
    sketch: _Sketch, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(GraphRefused, match=sentence):
        check_graph_file(_export_sketch(sketch, tmp_path / "model.onnx"), MANIFEST, _eager(sketch))


def test_a_graph_that_is_two_levels_off_torch_is_refused(tmp_path: Path) -> None:
    path = _export_sketch(_Sketch(), tmp_path / "model.onnx")
    truth = _eager(_Sketch())

    with pytest.raises(GraphRefused, match="must be within 1 grey level of torch, it is 2 away"):
        check_graph_file(path, MANIFEST, lambda *rows: truth(*rows) + 2)


def test_one_grey_level_is_let_pass_in_both_directions() -> None:
    images = np.array([[0, 255, 7]], dtype=np.uint8)

    assert check_difference(images, np.array([[1, 254, 7]], dtype=np.uint8)) == 1
    assert check_difference(images, images) == 0


def _graph(
    batch: str | int, *nodes: onnx.NodeProto, output_batch: str | int | None = None
) -> onnx.ModelProto:
    latents = helper.make_tensor_value_info("latents", TensorProto.FLOAT, [batch, 8])
    images = helper.make_tensor_value_info(
        "images", TensorProto.FLOAT, [batch if output_batch is None else output_batch, 8]
    )
    nodes = nodes or (helper.make_node("Identity", ["latents"], ["images"]),)
    return helper.make_model(helper.make_graph(list(nodes), "toy", [latents], [images]))


@pytest.mark.parametrize(("batch", "output_batch"), [(3, "N"), ("N", 3)])
def test_a_static_batch_on_either_side_is_refused(batch: str | int, output_batch: str | int) -> None:
    model = _graph(batch, output_batch=output_batch)

    with pytest.raises(GraphRefused, match=r"the batch size of (latents|images) must be symbolic, it is 3"):
        check_graph(model)


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_a_random_node_is_refused_by_name(operator: str) -> None:
    model = _graph("N", helper.make_node(operator, ["latents"], ["images"], name="noise"))

    with pytest.raises(GraphRefused, match=f"no random node, noise is {operator}"):
        check_graph(model)


def test_a_random_node_inside_a_branch_is_found() -> None:
    inner = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["latents"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 8])],
    )
    branch = helper.make_node("If", ["flag"], ["images"], then_branch=inner, else_branch=inner)

    with pytest.raises(GraphRefused, match="RandomNormalLike"):
        check_graph(_graph("N", branch))


def test_batch_normalization_in_training_mode_is_refused() -> None:
    norm = helper.make_node(
        "BatchNormalization", ["latents", "s", "b", "m", "v"], ["images"], name="norm", training_mode=1
    )

    with pytest.raises(GraphRefused, match=r"norm \(BatchNormalization\).*Call \.eval\(\)"):
        check_graph(_graph("N", norm))


@pytest.mark.parametrize(("training", "refused"), [(True, True), (False, False)])
def test_dropout_is_refused_only_where_it_is_switched_on(training: bool, refused: bool) -> None:
    switch = helper.make_node(
        "Constant", [], ["switch"], value=helper.make_tensor("switch", TensorProto.BOOL, [], [training])
    )
    dropout = helper.make_node("Dropout", ["latents", "", "switch"], ["images"])
    model = _graph("N", switch, dropout)

    if refused:
        with pytest.raises(GraphRefused, match="Dropout"):
            check_graph(model)
    else:
        check_graph(model)


def test_two_runs_that_differ_are_refused() -> None:
    stream = np.random.RandomState(0)

    def noisy(latents: np.ndarray, class_idx: np.ndarray, truncation_psi: np.ndarray) -> np.ndarray:
        return stream.randint(0, 256, size=(len(latents), 4, 4, 1)).astype(np.uint8)

    with pytest.raises(GraphRefused, match="two runs on the same rows"):
        check_rows(noisy, Rows.sample(MANIFEST))


def test_an_interface_that_is_not_the_manifests_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    session = GraphSession(_export_sketch(_Sketch(), tmp_path / "model.onnx"))

    with pytest.raises(GraphRefused, match="inputs must be class_idx, latents, truncation_psi"):
        check_interface(session, artifact.manifest)


def test_a_refused_export_leaves_nothing_in_the_store(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise GraphRefused("no")

    monkeypatch.setattr("training.export.check_graph_file", refuse)
    with pytest.raises(GraphRefused):
        export_run(run, Store(tmp_path), name="toy")

    assert list(tmp_path.rglob("*")) == []


def test_a_version_is_never_overwritten_and_the_next_export_takes_the_next(
    artifact: Artifact, run: RunFolder
) -> None:
    store = Store(artifact.path.parent.parent)

    with pytest.raises(VersionExists):
        export_run(run, store, name="toy", version=1)
    again = export_run(run, store, name="toy")

    assert again.manifest.version == 2
    assert again.manifest.digest == artifact.manifest.digest  # the same weights make the same graph


def test_a_run_without_a_snapshot_and_a_bad_name_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing was trained there yet"):
        export_run(RunFolder(tmp_path), Store(tmp_path / "store"), name="toy")
    with pytest.raises(InvalidValue, match="name must be"):
        export_run(run, Store(tmp_path / "store"), name="../toy")


# What verify proves


def _copy(artifact: Artifact, root: Path) -> Path:
    folder = root / "toy" / "1"
    folder.mkdir(parents=True)
    for path in artifact.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _sign_again(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed: only the deeper proofs can tell."""
    facts = json.loads((folder / MANIFEST_FILE).read_bytes())
    facts["files"][name] = sha256_of(folder / name)
    (folder / MANIFEST_FILE).write_text(json.dumps(facts))


def test_a_good_artifact_verifies_against_its_run(artifact: Artifact, run: RunFolder) -> None:
    sentences = list(verify(Store(artifact.path.parent.parent), "toy:1", run.path))

    assert len(sentences) == 4
    assert "32 rows, bit-exact" in sentences[2]
    assert "of G_ema at 0.128 kimg" in sentences[3]


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "preview.png", "CARD.md"])
def test_one_changed_byte_in_any_file_fails_verify(name: str, artifact: Artifact, tmp_path: Path) -> None:
    path = _copy(artifact, tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedArtifact, match=f"{name} is not the file that was published"):
        list(verify(Store(tmp_path), "toy"))


def test_other_weights_with_a_manifest_to_match_fail_the_golden_rows(
    artifact: Artifact, tmp_path: Path
) -> None:
    folder = _copy(artifact, tmp_path)
    model = onnx.load(folder / GRAPH_FILE)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.5)).tobytes()
    onnx.save(model, folder / GRAPH_FILE)
    _sign_again(folder, GRAPH_FILE)

    with pytest.raises(DamagedArtifact, match="golden rows must be within 1 grey level, they differ by"):
        list(verify(Store(tmp_path), "toy"))


def test_a_file_that_is_no_graph_fails_verify_with_a_sentence(artifact: Artifact, tmp_path: Path) -> None:
    folder = _copy(artifact, tmp_path)
    (folder / GRAPH_FILE).write_bytes(b"not a graph")
    _sign_again(folder, GRAPH_FILE)

    with pytest.raises(DamagedArtifact, match="cannot be loaded by ONNX Runtime"):
        list(verify(Store(tmp_path), "toy"))


def test_another_run_fails_the_comparison(artifact: Artifact, tmp_path: Path) -> None:
    other = RunFolder(tmp_path)
    train(toy_config(seed=1), toy_dataset(), other, tick_kimg=1)

    with pytest.raises(GraphRefused, match="of torch, it is"):
        list(verify(Store(artifact.path.parent.parent), "toy:1", other.path))
