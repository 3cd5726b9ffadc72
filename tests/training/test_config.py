"""A config is checked when it is made, and its errors say field, rule and value."""

from __future__ import annotations

import pytest

from models.errors import InvalidValue
from training.config import GAMES, NETWORKS, TrainConfig
from training.presets import PRESETS, preset, train_command


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ({"batch_size": "1"}, "batch_size must be between 2 and 65536, got 1"),
        ({"batch_size": "many"}, "batch_size must be an integer, got 'many'"),
        ({"img_resolution": "48"}, "img_resolution must be one of 16, 32, 64, 128, 256, got 48"),
        (
            {"objective": "bce"},
            "objective must be one of minimax, nonsaturating, least_squares, wasserstein, hinge, "
            "relativistic, elbo, got 'bce'",
        ),
        ({"network": "unet"}, f"network must be one of {', '.join(NETWORKS)}, got 'unet'"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, got 'fp16'"),
        ({"d_steps": "0"}, "d_steps must be between 1 and 1000, got 0"),
        ({"penalty_sigma": "0"}, "penalty_sigma must be between 0.0001 and 1, got 0.0"),
        ({"G_lr": "nan"}, "G_lr must be between 1e-09 and 1, got nan"),
        ({"adam_beta1": "1"}, "adam_beta1 must be between 0 and 0.99999, got 1.0"),
        ({"total_kimg": "-5"}, "total_kimg must be between 0.001 and 1e+09, got -5.0"),
        ({"seed": "4294967296"}, "seed must be between 0 and 4294967295, got 4294967296"),
        (
            {"augment": "color,cutout,color"},
            "augment must name each augmentation once, got 'color,cutout,color'",
        ),
        ({"lr": "0.1"}, "--set knows no field 'lr'; it knows: "),
    ],
)
def test_a_wrong_value_is_a_sentence(assignment: dict[str, str], sentence: str) -> None:
    config = preset("fashion-mnist")

    with pytest.raises(InvalidValue) as refusal:
        config.override(assignment)

    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"objective": "wasserstein", "r1_gamma": "0"},
            "objective wasserstein needs a D whose slope is bounded: set gp_weight above 0 (10 in its paper) "
            "or D_spectral_norm, got 0.0 and false",
        ),
        (
            {"gp_weight": "10", "r1_gamma": "0.1"},
            "gp_weight must be 0 beside r1_gamma or r2_gamma: it pulls the slope of D to 1, they pull it "
            "to 0, got gp_weight 10, r1_gamma 0.1, r2_gamma 0",
        ),
        ({"microbatches": "3"}, "batch_size must be a multiple of microbatches (3), got 64"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        preset("fashion-mnist").override(changes)

    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("changes", "name", "sentence"),
    [
        ({"residual_blocks": "3"}, "residual_blocks", "network residual: leave it out, got 3"),
        ({"elbo_sigma": "1"}, "elbo_sigma", "objective elbo: leave it out, got 1.0"),
        ({"r1_gamma": "0", "r1_interval": "4"}, "r1_interval", "r1_gamma or r2_gamma above 0"),
        (
            {"r1_gamma": "0", "penalty_form": "finite_difference"},
            "penalty_form",
            "r1_gamma or r2_gamma above 0: leave it out, got 'finite_difference'",
        ),
        (
            {"penalty_sigma": "0.1"},
            "penalty_sigma",
            "r1_gamma or r2_gamma above 0 and penalty_form finite_difference: leave it out, got 0.1",
        ),
        (
            {"gamma_floor": "0.5", "lr_decay_start": "1"},
            "gamma_floor",
            "r1_gamma or r2_gamma above 0 and lr_decay_start below 1: leave it out, got 0.5",
        ),
        ({"augment_rampup": "0.2"}, "augment_rampup", "augment: leave it out, got 0.2"),
        ({"augment_strength": "0.5"}, "augment_strength", "augment: leave it out, got 0.5"),
        ({"lr_floor": "0.1", "lr_decay_start": "1"}, "lr_floor", "lr_decay_start below 1"),
    ],
)
def test_a_field_that_is_set_and_does_nothing_is_refused(
    changes: dict[str, str], name: str, sentence: str
) -> None:
    config = preset("fashion-mnist").override(changes)

    with pytest.raises(InvalidValue) as refusal:
        config.check_effect(changes)

    assert str(refusal.value).startswith(f"{name} has no effect without {sentence}")
    config.check_effect(set(changes) - {name})  # the others do something
    assert TrainConfig.from_dict(config.to_dict()) == config  # a run that began so goes on


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "residual", "residual_blocks": "3"},
        {"penalty_form": "finite_difference", "penalty_sigma": "0.1", "r1_interval": "4"},
        {"augment": "color", "augment_rampup": "0.2", "augment_strength": "0.5"},
        {"gamma_floor": "0.5", "lr_floor": "0.1"},
        {"objective": "elbo", "r1_gamma": "0", "elbo_sigma": "2"},
    ],
)
def test_a_field_that_does_something_is_not(changes: dict[str, str]) -> None:
    config = preset("fashion-mnist").override(changes)

    config.check_effect(changes)

    assert set(changes) <= set(config.settings()) | {"r1_gamma"}


@pytest.mark.parametrize("objective", GAMES)
def test_every_objective_goes_with_a_gradient_penalty(objective: str) -> None:
    config = preset("fashion-mnist").override({"objective": objective, "r1_gamma": "0", "gp_weight": "10"})

    assert config.objective == objective


def test_a_config_survives_the_trip_through_json_types() -> None:
    config = preset("fashion-mnist").override({"seed": "7", "G_lr": "1e-4"})

    copy = TrainConfig.from_dict(config.to_dict())

    assert copy == config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"preset": "x", "total_kimg": 1, "colour": 2}, "the config has no field 'colour'"),
        ({"preset": "x"}, "the config lacks the field total_kimg"),
        ({"preset": "x", "total_kimg": 1, "seed": "0"}, "seed must be an integer, got '0'"),
        ({"preset": "x", "total_kimg": True}, "total_kimg must be a number, got true"),
    ],
)
def test_a_stored_config_that_is_none_is_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        TrainConfig.from_dict(values)


def test_an_unknown_preset_is_refused_by_name() -> None:
    with pytest.raises(InvalidValue, match=r"preset must be one of fashion-mnist, .*, got 'cifar'"):
        preset("cifar")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_itself_and_says_what_it_is(name: str) -> None:
    config = PRESETS[name]()

    assert config.preset == name
    assert PRESETS[name].__doc__
    config.check_effect(config.settings())  # nothing that it sets is idle


def test_the_command_of_a_config_names_every_field_that_its_preset_does_not_set() -> None:
    config = preset("fashion-mnist").override({"total_kimg": "1", "seed": "3", "z_dim": "8"})

    command = train_command(config, "fashion-mnist", threads=1)

    assert command == (
        "gantrain train --preset fashion-mnist --run-dir RUN_DIR "
        "--total-kimg 1 --seed 3 --threads 1 --set z_dim=8"
    )
    assert "--data DATA" in train_command(config, "my-images", threads=1)
    several = train_command(config, "fashion-mnist", threads=1, processes=4)
    assert several.startswith("torchrun --nproc-per-node 4 -m training train --preset fashion-mnist ")
