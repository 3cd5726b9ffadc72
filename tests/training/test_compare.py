"""`gantrain compare`: everyone gets the same, finished runs are kept, the sentences follow the numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from gantrain_process import save_toy_zip
from toy_extractor import save_toy_extractor

from training.__main__ import main
from training.compare import runs as runs_module
from training.compare.contenders import CONTENDERS, LEARNING_RATES, VAE, config_of, trials
from training.compare.runs import FIGURES, ComparedRun, read_runs, tuned
from training.compare.table import sentences, table
from training.errors import RunError
from training.metrics import Figure, Protocol

PROTOCOL = Protocol(
    extractor="toy",
    extractor_digest="ab" * 32,
    data="halves",
    data_digest="cd" * 32,
    split="test",
    n_real=9,
    n_fake=9,
    resize="none",
    seed=0,
)


def run_of(
    name: str, *, lr: float = 1e-3, seed: int = 0, protocol: Protocol = PROTOCOL, **values: float
) -> ComparedRun:
    """A run with these figures, and 0.5 for the others; of real images each is 0.8."""
    figures = tuple(
        Figure(name=one, value=values.get(one, 0.5), protocol=protocol, of_reals=0.8) for one in FIGURES
    )
    return ComparedRun(
        config=config_of(name, lr, total_kimg=1, seed=seed, changes={}),
        figures=figures,
        cpu_s=2.0,
        num_images=1_000,
        not_finite_nimg=None,
        environment={},
    )


def test_contenders_differ_in_their_game_alone_and_are_searched_alike() -> None:
    of_game = {"preset", "objective", "D_spectral_norm", "r1_gamma", "r2_gamma", "r1_interval", "gp_weight"}
    searched = trials(CONTENDERS, total_kimg=1, changes={"G_channels": "16"})

    for name in CONTENDERS:
        own = [config for config in searched if config.preset == name]
        assert [config.G_lr for config in own] == [config.D_lr for config in own] == list(LEARNING_RATES)
        assert {(config.G_channels, config.seed) for config in own} == {(16, 1_000)}
        assert set(own[0].differences(searched[0])) <= of_game


def test_the_table_has_the_learning_rate_of_least_distance_on_seeds_of_its_own() -> None:
    searched = [
        run_of("minimax", lr=lr, seed=1_000, frechet_distance=distance)
        for lr, distance in zip(LEARNING_RATES, (9, 3, 5), strict=True)
    ]

    chosen = tuned(searched, num_seeds=2)

    assert [(config.G_lr, config.D_lr, config.seed) for config in chosen] == [
        (2e-3, 2e-3, 0),
        (2e-3, 2e-3, 1),
    ]


def test_a_row_is_the_mean_over_seeds_and_real_images_come_last() -> None:
    runs = [run_of("hinge-sn", seed=seed, frechet_distance=20.0 + seed, recall=0.1 * seed) for seed in (1, 2)]

    header, _, row, reals = table(runs).splitlines()

    cells = dict(
        zip((one.strip() for one in header.split("|")), (one.strip() for one in row.split("|")), strict=True)
    )
    assert cells["Fréchet distance"] == "21.50 (21.0-22.0)"
    assert (cells["recall"], cells["images a CPU second"]) == ("15.0%", "500")
    assert reals.startswith("| real images |  | 0.80 |")


def test_a_figure_that_could_not_be_taken_is_told_as_none() -> None:
    run = run_of("hinge-sn")
    taken = tuple(one for one in run.figures if one.name != "class_min_share")

    _, _, row, reals = table([dataclasses.replace(run, figures=taken)]).splitlines()

    column = 3 + FIGURES.index("class_min_share")
    assert [line.split("|")[column].strip() for line in (row, reals)] == ["none", "none"]


def test_figures_of_two_protocols_share_no_column() -> None:
    other = dataclasses.replace(PROTOCOL, n_fake=8)

    with pytest.raises(AssertionError, match="frechet_distance of several protocols in one column"):
        table([run_of("minimax"), run_of("vae", protocol=other)])


def test_the_sentences_say_what_the_numbers_are_for_or_against_the_claim() -> None:
    sharp = [
        run_of("minimax", sharpness=0.9, precision=0.6, recall=0.2),
        run_of("hinge-sn", sharpness=1.0, recall=0.4),
    ]
    blurred, crisp = run_of(VAE, sharpness=0.4), run_of(VAE, sharpness=0.95)

    of_sharpness, of_diversity = sentences([*sharp, blurred])
    against, _ = sentences([*sharp, crisp])
    _, diverse = sentences([run_of("minimax", precision=0.2, recall=0.6), blurred])

    assert of_sharpness == (
        "GAN samples are sharper than the VAE's: 0.90 (minimax) to 1.00 (hinge-sn) of the fine detail of "
        "real images, the VAE 0.40."
    )
    assert of_diversity == (
        "Diversity is where GANs fail: on average they have 69% of the precision of real images and 38% of "
        "their recall, from 25% (minimax) to 50% (hinge-sn); the VAE 62% and 62%."
    )
    assert against.startswith("Not every GAN's samples are sharper than the VAE's: 0.90 (minimax)")
    assert diverse.startswith("Diversity is not where these GANs fail first: on average they have 25% of the")
    assert sentences(sharp) == sentences([blurred]) == []


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A comparison of seconds."""
    tiny = ("img_resolution=16", "z_dim=8", "G_channels=8", "D_channels=8", "batch_size=16")
    return [
        "compare",
        f"--data={save_toy_zip(tmp_path / 'halves.zip')}",
        f"--extractor={save_toy_extractor(tmp_path / 'toy.onnx', size=16, channels=1, num_classes=2)}",
        f"--out={tmp_path / 'compare.jsonl'}",
        "--total-kimg=0.032",
        "--n=20",
        "--seeds=2",
        "--contenders=hinge-sn,vae",
        *(f"--set={one}" for one in tiny),
    ]


def test_the_same_command_plays_only_what_is_missing_and_ends_with_the_same_table(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, played = tmp_path / "compare.jsonl", []
    play = runs_module.play

    def counted(config, *rest):
        played.append((config.preset, config.G_lr, config.seed))
        if len(played) == 4:
            raise KeyboardInterrupt
        return play(config, *rest)

    monkeypatch.setattr(runs_module, "play", counted)
    codes = [main(words) for _ in range(3)]
    printed = capsys.readouterr().out.split("halves: 6 runs to find learning rates, then 2 of each")

    assert codes == [130, 0, 0]
    searched = [(name, lr, 1_000) for name in ("hinge-sn", "vae") for lr in LEARNING_RATES]
    assert played[:3] + played[4:10] == [*searched[:3], *searched[3:], *played[7:10]]
    assert len(played) == 4 + 3 + 4
    assert [(name, seed) for name, _, seed in played[7:]] == [
        (n, s) for n in ("hinge-sn", "vae") for s in (0, 1)
    ]
    assert printed[2] == printed[3]
    assert printed[3].count("| hinge-sn |") == printed[3].count("| vae |") == 1
    kept = read_runs(file)
    assert len(kept) == 10
    assert all(run.config.total_kimg == 0.032 and run.num_images == 32 for run in kept)
    assert [one.name for one in kept[0].figures] == list(FIGURES)

    assert main([*words, "--n=24", "--contenders=vae"]) == 0  # another protocol: none of the kept is of it
    assert len(read_runs(file)) == 10 + 3 + 2


def test_a_run_whose_loss_is_not_finite_ends_there_and_is_told(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.compare.contenders.LEARNING_RATES", (1.0,))

    explosive = ("network=residual", "gp_weight=1e6")
    flags = ["--contenders=wasserstein-gp", "--total-kimg=0.32", "--seeds=1"]

    assert main([*words, *flags, *(f"--set={one}" for one in explosive)]) == 0

    assert "not finite at 0." in capsys.readouterr().out


def test_a_file_of_something_else_and_an_unknown_contender_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.jsonl").write_text('{"mixture": "ring"}\n')

    assert main([*words, "--contenders=stylegan"]) == 2
    assert "contenders must be of minimax, nonsaturating, " in capsys.readouterr().err
    with pytest.raises(RunError, match="must hold one run of `gantrain compare` a line, line 1 is none"):
        read_runs(tmp_path / "other.jsonl")


def test_what_cannot_be_judged_or_kept_is_refused_before_the_first_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs_module, "play", None)  # would be a TypeError

    assert main([*words, "--n=3"]) == 2
    assert "figures must be taken of at least 7 images, got 3" in capsys.readouterr().err
    assert main([*words, f"--out={tmp_path / 'none' / 'runs.jsonl'}"]) == 2
    assert "--out must be in a folder that is there" in capsys.readouterr().err
