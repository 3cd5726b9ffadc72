"""The device of a run: chosen by name, and the same iteration on each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_training import toy_config, toy_dataset

from models.errors import InvalidValue
from training.device import CPU, check_precision, choose_device, device_name
from training.loop import Trainer, train
from training.reals import DatasetReals
from training.run_folder import RunFolder
from training.servable import render_seeds
from training.snapshot import TrainState
from training.streams import RowDraws


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tpu", "--device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("cuda:x", "--device must be auto, cpu, cuda or cuda:N, got 'cuda:x'"),
        ("cpu:1", "--device must be auto, cpu, cuda or cuda:N, got 'cpu:1'"),
        ("cuda:2", "--device must be there, got 'cuda:2' where torch sees 2 CUDA devices"),
    ],
)
def test_a_device_that_cannot_be_is_a_sentence(
    name: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(InvalidValue) as refusal:
        choose_device(name)

    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("name", "count", "chosen"),
    [
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("cpu", 1, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_auto_is_cuda_where_there_is_one(
    name: str, count: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    assert str(choose_device(name)) == chosen


def test_bf16_is_refused_on_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")

    with pytest.raises(InvalidValue, match="precision must be fp32 on GPU, Tesla V100, which has no bf16"):
        check_precision("bf16", torch.device("cuda"))

    check_precision("fp32", torch.device("cuda"))
    check_precision("bf16", CPU)


def test_a_machine_without_a_compiler_says_so_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> object:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", lambda _: fails)

    with pytest.raises(InvalidValue) as refusal:
        train(toy_config(compile=True), toy_dataset(), RunFolder(tmp_path / "run"), tick_kimg=1)

    assert str(refusal.value) == (
        f"compile must be false on {device_name(CPU)}, where torch.compile fails, got true: "
        "InvalidCxxCompiler: No working C++ compiler found"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's
def test_a_pair_that_is_traced_for_compiling_learns_the_same_bits_from_a_few_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Freezing and thawing a network, and no penalty in every other step, are no part of a graph."""
    graphs: list[torch.fx.GraphModule] = []

    def traced(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compile_network = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compile_network(network, backend=traced))
    dataset, played = toy_dataset(), []
    for compiles in (False, True):
        config = toy_config(
            network="dcgan",
            precision="bf16",
            penalty_form="finite_difference",
            r1_interval=2,
            compile=compiles,
        )
        state = TrainState.fresh(config, dataset.shape)
        trainer = Trainer(config, DatasetReals(dataset, config.seed), state)
        losses = [trainer.run_iteration()["D_loss"] for _ in range(4)]
        played.append({"losses": losses, "G_ema": state.G_ema.state_dict()})

    torch.testing.assert_close(played[1], played[0], rtol=0, atol=0)
    assert 2 <= len(graphs) <= 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_iterations_on_a_device_are_those_of_a_cpu_in_fp32(device: torch.device, precision: str) -> None:
    """The same latents, reals and weights; bf16 keeps 8 bits of each product."""
    dataset = toy_dataset()
    played = []
    for where, how in ((CPU, "fp32"), (device, precision)):
        config = toy_config(network="mlp", precision=how, r2_gamma=0.1, r1_interval=2)
        state = TrainState.fresh(config, dataset.shape, where)
        trainer = Trainer(config, DatasetReals(dataset, config.seed, where), state)
        figures = [trainer.run_iteration() for _ in range(3)]
        played.append({name: torch.stack([f[name].cpu() for f in figures]) for name in ("D_loss", "G_loss")})
        assert state.device.type == where.type
        assert render_seeds(state.G_ema, range(4)).shape == (4, 16, 16, 1)

    assert "PU, " in device_name(device)
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    torch.testing.assert_close(played[1], played[0], rtol=tolerance, atol=tolerance)


def test_draws_of_some_rows_are_those_of_the_whole_batch(device: torch.device) -> None:
    def draw(rows: slice) -> list[torch.Tensor]:
        draws = RowDraws(torch.Generator().manual_seed(5), 8, rows, device)
        noise = draws.noise_like(torch.empty(rows.stop - rows.start, 3, 4, device=device))
        return [draws.normal(2), draws.uniform(), draws.integers(9, 2), noise]

    whole, parts = draw(slice(0, 8)), [draw(slice(0, 2)), draw(slice(2, 8))]

    for values, first, second in zip(whole, *parts, strict=True):
        assert values.device.type == device.type
        assert torch.equal(torch.cat([first, second]), values)
        assert len(values.unique()) > 4  # they vary
