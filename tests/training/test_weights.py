"""Weights in half the bytes: the same graph from outside, held to the pixels of the whole ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_foreign import Foreign, weights
from toy_training import toy_config, toy_dataset

from models.errors import InvalidValue
from models.manifest import GRAPH_FILE
from models.sampling import latents_from_seeds
from models.store import SHIPPED_STORE, Store
from training.__main__ import main
from training.errors import GraphRefused
from training.graph_session import GraphSession
from training.importing import import_graph
from training.loop import train
from training.promises import check_difference
from training.run_folder import RunFolder
from training.verify import verify
from training.weights import precision_of, store_weights

SHIPPED = SHIPPED_STORE / "fashion-mnist" / "1" / GRAPH_FILE


def pixels(path: Path) -> np.ndarray:
    latents = latents_from_seeds(range(20), 64)
    return GraphSession(path).render(latents, np.arange(20) % 10, np.ones(20, dtype=np.float32))


def test_the_shipped_generator_in_half_the_bytes_is_within_a_grey_level(tmp_path: Path) -> None:
    model = onnx.load(SHIPPED)

    store_weights(model, "fp16")

    path = tmp_path / "half.onnx"
    onnx.save(model, path)
    assert path.stat().st_size < 0.52 * SHIPPED.stat().st_size
    assert precision_of(model) == "fp16"
    assert GraphSession(path).inputs == GraphSession(SHIPPED).inputs
    assert np.abs(pixels(path).astype(int) - pixels(SHIPPED)).max() <= 1


def test_onnxruntime_folds_the_casts_when_it_loads_the_file(tmp_path: Path) -> None:
    model = onnx.load(SHIPPED)
    store_weights(model, "fp16")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4  # it warns that the file is for this machine

    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("Cast") == 1  # the one that makes uint8


def test_fp32_leaves_the_graph_as_it_is_and_another_precision_is_refused() -> None:
    model = Foreign().model()
    before = model.SerializeToString(deterministic=True)

    store_weights(model, "fp32")

    assert model.SerializeToString(deterministic=True) == before
    with pytest.raises(InvalidValue, match="precision must be one of fp32, fp16, got 'int8'"):
        store_weights(model, "int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [70_000.0, np.nan])
def test_a_number_that_float16_does_not_reach_is_refused_by_name(value: float) -> None:
    model = Foreign().model()
    array = weights()["W"].copy()
    array[0, 0] = value
    (tensor,) = [one for one in model.graph.initializer if one.name == "W"]
    tensor.CopyFrom(numpy_helper.from_array(array, "W"))

    with pytest.raises(GraphRefused, match=r"weights in fp16 must be at most 65504, W has (70000|nan)"):
        store_weights(model, "fp16")


def test_three_levels_pass_for_halved_weights_and_four_are_refused_with_the_figure() -> None:
    images = np.full((1, 2, 2, 1), 100, dtype=np.uint8)

    assert check_difference(images, images + np.uint8(3), halved=True) == 3
    with pytest.raises(
        GraphRefused, match="within 3 grey levels of torch, it is 4 away: leave the precision"
    ):
        check_difference(images, images + np.uint8(4), halved=True)


def test_an_import_whose_pixels_would_move_too_far_is_refused(tmp_path: Path) -> None:
    """What counts there is the difference of two large weights, which float16 rounds away."""
    model = Foreign().model(
        helper.make_node("MatMul", ["flat_z", "big"], ["much"]),
        helper.make_node("MatMul", ["flat_z", "same"], ["as_much"]),
        helper.make_node("Sub", ["much", "as_much"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "image_shape"], ["moved"]),
        helper.make_node("Add", ["x", "moved"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["y"]),
        image="y",
    )
    big = 1e4 * weights()["W"]
    model.graph.initializer.extend(
        [numpy_helper.from_array(big, "big"), numpy_helper.from_array(big - weights()["W"], "same")]
    )
    onnx.save(model, tmp_path / "g.onnx")

    import_graph(tmp_path / "g.onnx", Store(tmp_path / "store"), name="whole")
    with pytest.raises(GraphRefused, match=r"within 3 grey levels of the imported file, it is \d+ away"):
        import_graph(tmp_path / "g.onnx", Store(tmp_path / "store"), name="half", precision="fp16")

    assert Store(tmp_path / "store").names() == ["whole"]


def test_a_run_and_a_file_are_published_with_halved_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = Store(tmp_path / "store"), RunFolder(tmp_path / "run")
    train(toy_config(total_kimg=0.032), toy_dataset(), run, tick_kimg=1)
    onnx.save(Foreign().model(), tmp_path / "g.onnx")
    where = ["--store", str(store.root)]

    for verb in (
        ["export", str(run.path), "--name", "run"],
        ["import", str(tmp_path / "g.onnx"), "--name", "g"],
    ):
        for precision in ("fp32", "fp16"):
            assert main([*verb, *where, "--precision", precision]) == 0, capsys.readouterr().err

    for name in ("run", "g"):
        whole, half = store.resolve(f"{name}:1"), store.resolve(f"{name}:2")
        assert [one.manifest.export["precision"] for one in (whole, half)] == ["fp32", "fp16"]
        assert whole.digest != half.digest
        stored = {
            one.data_type for one in onnx.load(half.file(GRAPH_FILE)).graph.initializer if len(one.dims) > 1
        }
        assert stored == {TensorProto.FLOAT16}
    assert len(list(verify(store, "run:2", run.path))) == 4
