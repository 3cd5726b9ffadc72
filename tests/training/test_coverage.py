"""Coverage: a search that is the same for every recipe, and runs that are kept as they end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from models.errors import InvalidValue
from training.__main__ import main
from training.config import TrainConfig
from training.coverage import runs as runs_module
from training.coverage.recipes import (
    RECIPES,
    TUNED,
    Settings,
    config_of,
    table_configs,
    trials,
    tuned,
)
from training.coverage.runs import CoverageRun, play, play_all, read_runs
from training.coverage.search import FIRST_SEED, best_runs, better_half, trial_configs
from training.coverage.table import by_recipe, run_line, settings_of, worst_line
from training.data.mixtures import MIXTURES, Coverage, ring
from training.errors import RunError

SEARCHED = [name for name in RECIPES if not RECIPES[name].tuned_as]


def tiny(name: str = "rpgan-r1-r2", seed: int = 0, lr: float = 1e-3) -> TrainConfig:
    """A run of two iterations."""
    weight = 0.1 if RECIPES[name].weight_fields else None
    return config_of(name, Settings(lr=lr, beta1=0.0, weight=weight), total_kimg=0.256, seed=seed)


def run_of(
    config: TrainConfig, *, modes10: int, high_quality: float = 0.5, cpu_s: float = 1.0
) -> CoverageRun:
    found = Coverage(modes=8, modes10=modes10, high_quality=high_quality, jsd=0.1)
    return CoverageRun(
        mixture="ring", config=config, coverage=found, cpu_s=cpu_s, not_finite_nimg=None, environment={}
    )


def test_every_recipe_gets_the_same_eight_pairs_of_learning_rate_and_beta1() -> None:
    pairs = {name: Counter((one.lr, one.beta1) for one in trials(name)) for name in SEARCHED}

    assert all(len(pairs[name]) == 8 and set(pairs[name].values()) == {1} for name in SEARCHED)
    assert len({frozenset(pairs[name]) for name in SEARCHED}) == 1


@pytest.mark.parametrize("name", [name for name in SEARCHED if RECIPES[name].weights])
def test_each_learning_rate_and_each_beta1_meets_every_weight(name: str) -> None:
    by_lr, by_beta1 = (
        {(getattr(one, field), one.weight) for one in trials(name)} for field in ("lr", "beta1")
    )

    assert (len(by_lr), len(by_beta1)) == (4 * 2, 2 * 2)


def test_a_cheaper_form_is_not_searched_and_takes_the_settings_of_the_exact_one() -> None:
    for name in ("rpgan-r1-r2-difference", "rpgan-r1-r2-lazy"):
        assert trials(name) == []
        assert all(tuned(name, mixture) == tuned("rpgan-r1-r2", mixture) for mixture in MIXTURES)


def test_what_was_tuned_is_one_of_the_trials() -> None:
    for (name, mixture), settings in TUNED.items():
        assert mixture in MIXTURES
        assert settings in trials(name)


def test_a_recipe_without_tuned_settings_names_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TUNED, ("rpgan-r1-r2", "grid"))

    with pytest.raises(InvalidValue, match=r"rpgan-r1-r2 has no tuned settings on the grid: .* --tune"):
        tuned("rpgan-r1-r2-lazy", "grid")


def test_recipes_differ_in_their_game_alone() -> None:
    of_recipe = {"preset", "objective", "D_spectral_norm", "r1_gamma", "r2_gamma", "r1_interval", "gp_weight"}
    of_recipe |= {"penalty_form", "penalty_sigma"}
    base = tiny("minimax")

    for name in RECIPES:
        assert set(tiny(name).differences(base)) <= of_recipe


def test_the_seeds_of_the_search_are_none_of_the_table() -> None:
    searched = {
        config.seed for config in trial_configs({"minimax": trials("minimax")}, total_kimg=1, num_seeds=2)
    }
    shown = {config.seed for config in table_configs(["rpgan-r1-r2"], "ring", total_kimg=1, num_seeds=5)}

    assert searched == {FIRST_SEED, FIRST_SEED + 1}
    assert shown == set(range(5))


def test_the_best_trial_has_most_modes10_and_then_most_high_quality() -> None:
    results = {5e-4: (7, 0.9), 1e-3: (8, 0.4), 2e-3: (8, 0.6)}
    runs = [
        run_of(tiny(lr=lr, seed=seed), modes10=modes10, high_quality=high_quality)
        for lr, (modes10, high_quality) in results.items()
        for seed in (1, 2)
    ]

    (best,) = best_runs(runs)

    assert [(run.config.G_lr, run.config.seed) for run in best] == [(2e-3, 1), (2e-3, 2)]


def test_the_better_half_of_a_round_is_played_longer_in_the_next() -> None:
    results = {5e-4: (7, 0.9), 1e-3: (8, 0.4), 2e-3: (8, 0.6), 4e-3: (1, 0.1)}
    runs = [
        run_of(tiny(name, lr=lr), modes10=modes10, high_quality=high_quality)
        for name in ("minimax", "lsgan")
        for lr, (modes10, high_quality) in results.items()
    ]

    candidates = better_half(runs)
    configs = trial_configs(candidates, total_kimg=2, num_seeds=1)

    assert {name: [one.lr for one in trials] for name, trials in candidates.items()} == {
        "minimax": [2e-3, 1e-3],
        "lsgan": [2e-3, 1e-3],
    }
    assert [(config.preset, config.G_lr, config.total_kimg, config.seed) for config in configs] == [
        (name, lr, 2, FIRST_SEED) for name in ("minimax", "lsgan") for lr in (2e-3, 1e-3)
    ]
    assert all(len(trials) == 1 for trials in better_half(runs[:1]).values())


def test_the_worst_of_a_recipe_is_the_worst_of_each_figure() -> None:
    runs = [
        run_of(tiny(seed=0), modes10=8, high_quality=0.5, cpu_s=9),
        run_of(tiny(seed=1), modes10=3, high_quality=0.7, cpu_s=2),
        run_of(tiny("minimax"), modes10=1),
    ]

    minimax, rpgan = by_recipe(runs)

    assert minimax == [runs[2]]
    assert worst_line(rpgan).split() == [
        "rpgan-r1-r2",
        "0.001",
        "0",
        "0.1",
        "worst",
        "8",
        "3",
        "50.0",
        "0.1000",
        "9.0",
    ]
    assert run_line(runs[2]).split()[:5] == ["minimax", "0.001", "0", "-", "0"]


def test_a_run_is_a_function_of_its_config_and_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"

    (first,) = play_all(ring(), [tiny()], file)

    assert first.coverage == play(ring(), tiny()).coverage
    assert read_runs(file) == [first]
    assert (first.mixture, first.config, first.environment["threads"]) == ("ring", tiny(), 1)


def test_a_run_whose_loss_is_not_finite_ends_there_and_is_judged_all_the_same() -> None:
    config = config_of("lsgan", Settings(lr=1.0, beta1=0.0), total_kimg=6.4, seed=0)

    run = play(ring(), config)

    assert run.not_finite_nimg is not None
    assert run.coverage.modes10 < 8
    assert f"not finite at {run.not_finite_nimg / 1000:g} kimg" in run_line(run)


def test_the_same_command_plays_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, played = tmp_path / "runs.jsonl", []

    def told(mixture, config):
        played.append(config.seed)
        return run_of(config, modes10=config.seed)

    monkeypatch.setattr(runs_module, "play", told)
    list(play_all(ring(), [tiny(seed=1), tiny(seed=2)], file))
    again = list(play_all(ring(), [tiny(seed=seed) for seed in (3, 2, 1)], file))
    list(play_all(MIXTURES["grid"], [tiny(seed=1)], file))

    assert played == [1, 2, 3, 1]
    assert [run.config.seed for run in again] == [2, 1, 3]
    assert len(read_runs(file)) == 4


def test_runs_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    configs = [tiny(seed=seed) for seed in (1, 2)]

    alone = list(play_all(ring(), configs, tmp_path / "alone.jsonl"))
    beside = list(play_all(ring(), configs, tmp_path / "beside.jsonl", processes=2))

    assert {run.config: run.coverage for run in beside} == {run.config: run.coverage for run in alone}


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"mixture": "ring"}', '{"config": {"preset": "x", "total_kimg": 0}}']
)
def test_a_file_of_something_else_is_refused_by_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    list(play_all(ring(), [tiny()], file))
    file.write_text(file.read_text() + line + "\n")

    with pytest.raises(RunError, match=r"runs\.jsonl must hold one run .* a line, line 2 is none"):
        read_runs(file)


def test_an_unknown_recipe_is_refused_by_name() -> None:
    with pytest.raises(InvalidValue, match=r"recipes must be of minimax, .*, got 'rpgan'"):
        table_configs(["rpgan"], "ring", total_kimg=1, num_seeds=1)


def test_settings_of_ones_own_stand_in_for_the_tuned_ones() -> None:
    def played(name: str, settings: str) -> list[Settings]:
        configs = table_configs([name], "ring", total_kimg=1, num_seeds=1, settings=settings)
        return [settings_of(run_of(config, modes10=8)) for config in configs]

    assert played("rpgan-r1-r2-lazy", "2e-3,0,0.1") == [Settings(lr=2e-3, beta1=0, weight=0.1)]
    assert played("minimax", "1e-3,0.5") == [Settings(lr=1e-3, beta1=0.5)]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "minimax",
            "1e-3,0,0.1",
            "--settings must be lr,beta1 for minimax, numbers with commas, got '1e-3,0,0.1'",
        ),
        (
            "wgan-gp",
            "1e-3,0",
            "--settings must be lr,beta1,weight for wgan-gp, numbers with commas, got '1e-3,0'",
        ),
        ("minimax", "fast,0", "--settings must be lr,beta1 for minimax, numbers with commas, got 'fast,0'"),
        ("minimax", "2,0", "G_lr must be between 1e-09 and 1, got 2.0"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(name: str, text: str, sentence: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        table_configs([name], "ring", total_kimg=1, num_seeds=1, settings=text)

    assert str(refusal.value) == sentence


def test_a_search_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["coverage", "--mixture=ring", "--recipes=rpgan-r1-r2-lazy", "--tune", f"--out={tmp_path}/runs"]

    assert main(words) == 2

    assert "got 'rpgan-r1-r2-lazy', which takes the settings of another" in capsys.readouterr().err


def test_a_recipe_named_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["coverage", "--mixture=ring", "--recipes=rpgan-r1-r2,rpgan-r1-r2", "--total-kimg=0.128"]

    assert main([*words, f"--out={tmp_path}/runs"]) == 2

    assert "--recipes must name each recipe once, got 'rpgan-r1-r2,rpgan" in capsys.readouterr().err


def test_the_command_prints_each_run_and_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.jsonl"
    words = [
        "coverage",
        "--mixture=ring",
        "--recipes=rpgan-r1-r2,rpgan-r1-r2-lazy",
        "--total-kimg=0.128",
        f"--out={file}",
    ]

    codes = [main([*words, "--seeds=2"]), main([*words, "--seeds=1", "--tune"])]

    printed = capsys.readouterr().out.splitlines()
    second = printed.index(f"ring: 8 runs of 0.128 kimg, kept in {file}")
    table, search = printed[:second], printed[second:]
    assert codes == [0, 0]
    assert table[0] == f"ring: 4 runs of 0.128 kimg, kept in {file}"
    assert [line.split()[0] for line in table[2:6]] == ["rpgan-r1-r2"] * 2 + ["rpgan-r1-r2-lazy"] * 2
    assert [line.split()[4] for line in table[7:]] == ["worst"] * 2
    assert [line.split()[0] for line in search[2 + 8 + 1 :]] == [
        "rpgan-r1-r2"
    ]  # a cheaper form is not searched
    assert {run.config.seed for run in read_runs(file)} == {0, 1, FIRST_SEED}


def test_relativistic_pairing_with_r1_and_r2_holds_the_ring_where_minimax_collapses() -> None:
    """At lr 2e-3 and beta1 0, kept to the end: minimax held 0 or 1 of 8 modes10 on four seeds of four,
    relativistic pairing 8 of 8 on three of three, with 68 to 74 % of high quality.

    G and D circle to the end there, and G_ema is the mean of what G does: what its memory is for.
    """

    def found(name: str, weight: float | None) -> Coverage:
        config = config_of(name, Settings(lr=2e-3, beta1=0.0, weight=weight), total_kimg=64, seed=0)
        return play(ring(), dataclasses.replace(config, batch_size=64, lr_decay_start=1.0)).coverage

    rpgan, minimax = found("rpgan-r1-r2", weight=0.1), found("minimax", weight=None)

    assert (rpgan.modes, rpgan.modes10) == (8, 8)
    assert rpgan.high_quality > 0.5
    assert rpgan.jsd < 0.02
    assert minimax.modes10 <= 4
    assert minimax.high_quality < 0.25
