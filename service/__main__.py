"""The command `ganserve`: serve, sample, verify, models, bench.

Parses flags and hands over; each verb imports what it needs, so that `--help` is quick and a
worker that is spawned from here imports no second server.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from models.errors import ContractError, InvalidValue, show
from models.store import SHIPPED_STORE, Store
from service import __version__
from service.errors import StartError
from service.offline.errors import SampleError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 failed, 2 a mistake in what was asked for."""
    try:
        arguments = _parser().parse_args(argv)  # here too, since its imports take a while
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except (ContractError, StartError) as error:
        print(f"ganserve: {error}", file=sys.stderr)
        return 2
    except SampleError as error:
        print(f"ganserve: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # who read our output has left, `head` for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as SIGPIPE would
    except OSError as error:
        print(f"ganserve: {_told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    from service.settings import add_flags

    parser = argparse.ArgumentParser(
        prog="ganserve", description="Serve trained generators: a seed names an image."
    )
    parser.add_argument("--version", action="version", version=f"ganserve {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    serve = verbs.add_parser(
        "serve",
        allow_abbrev=False,
        help="answer requests over HTTP",
        description="Answer requests over HTTP.",
    )
    add_flags(serve)
    serve.set_defaults(run=_serve)

    _add_sample(verbs)

    verify = verbs.add_parser(
        "verify",
        allow_abbrev=False,
        help="make images again and compare",
        description="Read the mark in each image, make the image again from the store, and compare. "
        "Exit status: 0 all are identical or have the same pixels; 1 one differs; 2 a mistake in what was "
        "asked for; 3 none differs, but one is not ours or cannot be told, or there is no image.",
    )
    _add_store(verify)
    verify.add_argument(
        "paths", nargs="*", type=Path, metavar="FILE|DIR", help="images, zips and tars of them, folders"
    )
    verify.add_argument(
        "--deep",
        nargs="?",
        const="fashion-mnist",
        metavar="NAME[:V]",
        help="make all golden rows of a model again; default: fashion-mnist, highest version",
    )
    verify.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"])
    verify.add_argument("--threads", type=int, default=1, metavar="N", help="ONNX Runtime threads")
    verify.set_defaults(run=_verify)

    models = verbs.add_parser(
        "models", allow_abbrev=False, help="list a store", description="List the models of a store."
    )
    _add_store(models)
    models.set_defaults(run=_models)

    bench = verbs.add_parser(
        "bench",
        allow_abbrev=False,
        help="measure a server beside the in-process limit",
        description="Start a server with the settings given, put load on it, and print how fast it was "
        "beside what the same work costs without HTTP. Without --clients and --rate, three usual cases.",
    )
    load = bench.add_argument_group("load")
    load.add_argument("--clients", type=int, metavar="N", help="closed loop of N connections")
    load.add_argument("--rate", type=float, metavar="R", help="open loop of R requests a second")
    load.add_argument("--n", type=int, default=1, metavar="N", help="images a request; default 1")
    load.add_argument("--format", default="png", choices=["png", "jpg", "webp", "npy"])
    load.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of a round; default 5")
    load.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    add_flags(bench)
    bench.set_defaults(run=_bench)
    return parser


def _add_sample(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from models.calibration import SAMPLERS
    from service.offline.job import IMAGE_FORMATS, SET_FORMATS
    from service.settings import SignAlgorithm

    sample = verbs.add_parser(
        "sample",
        allow_abbrev=False,
        help="make images without a server",
        description="Make a set of images in a folder or at an fsspec address such as s3://bucket/folder. "
        "The same command again goes on where it ended. Exit status: 0 done; 1 --check found damage, or "
        "--merge a shard that is not there; 2 a mistake in what was asked for; 4 another digest than "
        "--digest names; 5 another job is there; 6 the place cannot be used; 7 no room left; 8 a process "
        "of the run was killed; 9 the device does not run the model any more. Finished shards are kept "
        "whatever happens.",
    )
    what = sample.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="RANGES", help='such as "0-99,200"; a seed names an image')
    what.add_argument(
        "--seeds-file",
        type=Path,
        metavar="FILE",
        help="a seed a line; .csv or .jsonl with columns seed, class_idx, truncation_psi",
    )
    what.add_argument("--check", metavar="OUT", help="hash a whole set, and make a random 1 %% of it again")
    what.add_argument("--merge", metavar="OUT", help="write the manifest of a set whose shards are all there")
    _add_store(sample)
    sample.add_argument(
        "--model", default="fashion-mnist", metavar="NAME[:V]", help="default: fashion-mnist, highest version"
    )
    sample.add_argument("--digest", metavar="HEX", help="refuse another model; 12 digits or more")
    sample.add_argument("--out", metavar="DIR|URL", help="folder or address to write to")
    sample.add_argument(
        "--class-idx",
        metavar="K|balanced|random",
        help="one class for all, each in its turn, or one drawn from the seed; default: seed %% num_classes",
    )
    sample.add_argument(
        "--truncation-psi", type=float, metavar="PSI", help="1 (default) is off, 0 the average image"
    )
    sample.add_argument(
        "--sampler", choices=SAMPLERS, help="mh: each image is chosen by the model's discriminator (plain)"
    )
    sample.add_argument(
        "--proposals",
        type=int,
        metavar="K",
        help="with mh: images that each is chosen from; default: the model's",
    )
    sample.add_argument(
        "--realness",
        action="store_true",
        help="tell how probably each image is a real one, by the discriminator",
    )
    sample.add_argument(
        "--min-realness", type=float, metavar="X", help="leave out images that are less real; 0 to 1"
    )
    sample.add_argument(
        "--format",
        default="png",
        choices=SET_FORMATS,
        help="png (default), jpg, webp: a folder of images; the others: shards of one file",
    )
    sample.add_argument(
        "--images",
        choices=IMAGE_FORMATS,
        help="what images are inside webdataset, zip and parquet; default: png",
    )
    sample.add_argument(
        "--shard-size", type=int, default=1000, metavar="N", help="images a shard; default 1000"
    )
    sample.add_argument(
        "--shards",
        default="0/1",
        metavar="i/N|/N",
        help="make every Nth shard from i on; /N takes i from JOB_COMPLETION_INDEX",
    )
    sample.add_argument(
        "--marks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write into each image (XMP) that it is generated, and how to make it again",
    )
    sample.add_argument("--sign", action="store_true", help="sign each image (C2PA); needs the extra c2pa")
    sample.add_argument(
        "--sign-cert-file", type=Path, metavar="FILE", help="PEM: signing certificate and its issuers"
    )
    sample.add_argument("--sign-key-file", type=Path, metavar="FILE", help="PEM: its private key")
    sample.add_argument(
        "--sign-algorithm",
        default="es256",
        choices=get_args(SignAlgorithm),
        help="of that key; default: es256",
    )
    sample.add_argument("--accelerator", default="cpu", choices=["cpu", "cuda"])
    sample.add_argument("--threads", type=int, default=1, metavar="N", help="ONNX Runtime threads")
    sample.add_argument(
        "--workers", type=int, metavar="N", help="processes a device; default: one a CPU, 1 on cuda"
    )
    sample.add_argument("--json", action="store_true", help="JSON lines of progress and result on stdout")
    sample.set_defaults(run=_sample)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, default=SHIPPED_STORE, metavar="DIR", help="default: the shipped store"
    )


def _serve(arguments: argparse.Namespace) -> int:
    from service.server import serve
    from service.settings import load_settings

    return serve(load_settings(arguments))


def _sample(arguments: argparse.Namespace) -> int:
    from service.offline.command import run

    _check_threads(arguments.threads)
    return run(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from service.bench import CASES, Case, bench, free_port
    from service.settings import flags_of, load_settings

    for name in ("clients", "rate", "n", "seconds", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise InvalidValue(f"{name} must be greater than 0, got {value}")
    if arguments.clients is not None and arguments.rate is not None:
        raise InvalidValue("clients and rate must not be given together: a loop is closed or open")
    if arguments.port is None:
        arguments.port = str(free_port())
    cases: Sequence[Case] = CASES
    if arguments.clients is not None or arguments.rate is not None:
        cases = (Case(arguments.clients or 1, arguments.n, arguments.format, arguments.rate),)
    lines = bench(
        load_settings(arguments),
        flags_of(arguments),
        cases,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
    )
    for line in lines:
        print(line, flush=True)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from collections import Counter

    from service.verify import EXIT_DIFFERS, Verdict, exit_status, replay_golden, verify_files

    if not arguments.paths and arguments.deep is None:
        raise InvalidValue("verify needs a FILE or DIR, or --deep, got neither")
    _check_threads(arguments.threads)
    store = Store(arguments.store)
    status = 0
    if arguments.deep is not None:
        levels, sentence = replay_golden(
            store.resolve(arguments.deep), arguments.accelerator, arguments.threads
        )
        print(sentence, flush=True)
        status = EXIT_DIFFERS if levels else 0
    if arguments.paths:
        verdicts: Counter[Verdict] = Counter()
        for finding in verify_files(arguments.paths, store, arguments.accelerator, arguments.threads):
            print(finding, flush=True)
            verdicts[finding.verdict] += 1
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        if counts:
            print(f"{_images(verdicts.total())}: {counts}")
        else:
            print(f"no image in {', '.join(map(str, arguments.paths))}")
        status = status or exit_status(verdicts)
    return status


def _told(error: OSError) -> str:
    return f"{show(str(error.filename))}: {error.strerror}" if error.filename else str(error)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _check_threads(threads: int) -> None:
    if not 1 <= threads <= 256:
        raise InvalidValue(f"threads must be between 1 and 256, got {threads}")


def _models(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    if not store.root.is_dir():
        raise InvalidValue(f"store must be a folder of published models, got {store.root}")
    damaged = 0
    for name in store.names():
        for version in store.versions(name):
            try:
                artifact = store.resolve(f"{name}:{version}")
                artifact.verify()
            except ContractError as error:
                print(f"{name}:{version}  damaged: {error}")
                damaged += 1
                continue
            manifest = artifact.manifest
            classes = f"{manifest.num_classes} classes" if manifest.num_classes else "unconditional"
            size = "x".join(map(str, manifest.img_shape))
            print(f"{artifact.address}  {artifact.digest[:12]}  {size}  z {manifest.z_dim}  {classes}")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
