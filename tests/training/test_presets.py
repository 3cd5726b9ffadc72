"""Presets: complete configs whose docstrings are true."""

from __future__ import annotations

import inspect

import pytest
import torch

from training.__main__ import main
from training.config import TrainConfig
from training.data import DataShape
from training.networks.cost import Cost, cost_sentences
from training.presets import PRESETS, preset, train_command

FASHION_MNIST = DataShape(img_channels=1, num_classes=10)
EMOJI = DataShape(img_channels=3, num_classes=3)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_headed_by_its_command_and_its_cost(name: str) -> None:
    config = preset(name)
    text = inspect.getdoc(PRESETS[name]) or ""

    sentences = cost_sentences(config, EMOJI if name == "emoji" else FASHION_MNIST)

    assert config.preset == name
    assert f"\ngantrain train --preset {name} --run-dir RUN_DIR" in text
    assert f"\n{sentences}" in text


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_command_makes_its_config_again(name: str) -> None:
    config = preset(name).override({"z_dim": "32", "seed": "7"})

    words = train_command(config, "fashion-mnist", threads=1).split()

    assert words[:4] == ["gantrain", "train", "--preset", name]
    assert words[-2:] == ["--set", "z_dim=32"]
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_costs_are_those_of_the_layers() -> None:
    layer = torch.nn.Conv2d(3, 8, kernel_size=5, padding=2, groups=1)

    cost = Cost.of(layer, torch.zeros(1, 3, 16, 16))

    assert cost.parameters == 3 * 8 * 25 + 8
    assert cost.macs == 16 * 16 * 3 * 8 * 25
    assert str(cost) == "0.000608 M parameters, 0.154 M MACs an image"
    grouped = Cost.of(torch.nn.Conv2d(8, 8, 3, padding=1, groups=4), torch.zeros(1, 8, 4, 4))
    assert grouped.macs == 16 * 8 * 2 * 9
    doubled = Cost.of(torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), torch.zeros(1, 8, 4, 4))
    assert doubled.macs == 16 * 8 * 4 * 16


def test_the_command_shows_what_each_preset_sets_and_the_defaults_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["presets"])

    printed = capsys.readouterr().out
    assert code == 0
    for name, make in PRESETS.items():
        assert f"\n{name}: {inspect.getdoc(make)}\n" in printed
        assert f"    preset = {name}\n" in printed
    assert printed.count("    objective = relativistic\n") == 1
    assert printed.count("    adam_beta2 = 0.99\n") == 1
