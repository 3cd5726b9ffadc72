"""`ganserve sample` as a process: killed at any moment, in several processes, and beside a real server."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from server_process import GANSERVE, Server, wait_for

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


class Run:
    """One `ganserve sample` process."""

    def __init__(self, store: Path, *flags: str | Path) -> None:
        command = [GANSERVE, "sample", "--store", store, "--model", "toy", *flags]
        self.process = subprocess.Popen(
            [str(one) for one in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self) -> tuple[int, str]:
        """The exit status and what it said."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out + err

    def children(self) -> list[psutil.Process]:
        """The processes that make shards, which are spawned."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in family if "spawn_main" in " ".join(one.cmdline())]


@pytest.fixture
def started() -> Iterator[list[Run]]:
    """What is put in here is killed at the end of the test."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.process.kill()
        run.process.communicate()


FLAGS = ("--seeds", "0-5999", "--format", "webdataset", "--images", "raw", "--shard-size", "250")
SHARDS = 24


@pytest.fixture(scope="module")
def whole(toy_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that an undisturbed run makes."""
    out = tmp_path_factory.mktemp("whole")
    status, said = Run(toy_store, *FLAGS, "--out", out, "--workers", "1").end()
    assert status == 0, said
    return out


def contents(out: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.iterdir()
        if path.name != ".ganserve"
    }


@pytest.mark.parametrize(("workers", "kills"), [("1", (5,)), ("2", (2, 9))])
def test_a_run_that_is_killed_loses_no_finished_shard_and_ends_with_the_same_bytes(
    toy_store: Path, whole: Path, tmp_path: Path, started: list[Run], workers: str, kills: tuple[int, ...]
) -> None:
    out, reference = tmp_path / "out", contents(whole)
    receipts = out / ".ganserve/receipts"
    finished: dict[str, int] = {}  # when each shard's file was written, as of the last kill
    for least in kills:
        started.append(Run(toy_store, *FLAGS, "--out", out, "--workers", workers))
        wait_for(lambda least=least: receipts.is_dir() and len(list(receipts.iterdir())) >= least)  # type: ignore[misc]
        workers_of_it = started[-1].children()
        started[-1].process.kill()
        started[-1].process.wait()
        psutil.wait_procs(workers_of_it, timeout=10)
        assert not any(one.is_running() for one in workers_of_it)  # they end with their parent

        visible = contents(out)
        assert visible.items() <= reference.items()  # whatever has its name is whole
        times = {name: (out / name).stat().st_mtime_ns for name in visible}
        done = {f"{path.stem}.tar" for path in receipts.iterdir()}
        assert finished.items() <= times.items()
        finished = {name: times[name] for name in done}

    status, said = Run(toy_store, *FLAGS, "--out", out, "--workers", workers).end()

    assert status == 0, said
    assert contents(out) == reference
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert not (out / ".ganserve").exists()


def test_a_worker_that_is_killed_ends_the_run_with_a_sentence_and_keeps_what_is_finished(
    toy_store: Path, whole: Path, tmp_path: Path, started: list[Run]
) -> None:
    out = tmp_path / "out"
    started.append(Run(toy_store, *FLAGS, "--out", out, "--workers", "2"))
    wait_for(lambda: len(list(out.glob("*.tar"))) > 0)

    started[-1].children()[0].kill()
    status, said = started[-1].end()
    kept = len(list(out.glob("*.tar")))
    again = Run(toy_store, *FLAGS, "--out", out, "--workers", "1").end()

    assert status == 8
    assert "a process that made shards was killed by signal 9; what is finished is kept" in said
    assert 0 < kept < SHARDS
    assert again[0] == 0
    assert contents(out) == contents(whole)


def test_the_same_command_begun_twice_at_once_makes_the_set_once_more_and_harms_nothing(
    toy_store: Path, whole: Path, tmp_path: Path, started: list[Run]
) -> None:
    started += [Run(toy_store, *FLAGS, "--out", tmp_path, "--workers", "1") for _ in range(2)]

    assert [run.end()[0] for run in started] == [0, 0]
    assert Run(toy_store, *FLAGS, "--out", tmp_path).end()[0] == 0

    assert contents(tmp_path) == contents(whole)
    assert not (tmp_path / ".ganserve").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_end_ends_with_its_processes_and_leaves_nothing_half_made(
    toy_store: Path, tmp_path: Path, started: list[Run], number: int, status: int
) -> None:
    out = tmp_path / "out"
    started.append(Run(toy_store, *FLAGS, "--out", out, "--workers", "2"))
    wait_for(lambda: len(list(out.glob("*.tar"))) > 0)
    workers = started[-1].children()

    os.kill(started[-1].process.pid, number)
    ended, said = started[-1].end()

    assert ended == status
    assert "Traceback" not in said
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers)


def test_a_tar_of_an_offline_run_holds_the_endpoints_bytes(
    shared_server: Server, toy_store: Path, tmp_path: Path
) -> None:
    flags = ("--seeds", "0-39,4294967295", "--format", "webdataset", "--class-idx", "random")
    assert Run(toy_store, *flags, "--truncation-psi", "0.7", "--out", tmp_path).end()[0] == 0

    with tarfile.open(tmp_path / "shard-00000.tar") as archive:
        files = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]

    assert len(files) == 2 * 41
    for name in [one for one in files if one.endswith(".json")]:
        row = json.loads(files[name])
        answer = shared_server.http.post("/v1/samples", json=row)
        assert answer.content == files[name.replace(".json", ".png")]


def test_progress_is_lines_where_there_is_no_terminal_and_json_on_request(
    toy_store: Path, tmp_path: Path
) -> None:
    command = [GANSERVE, "sample", "--store", toy_store, "--model", "toy", *FLAGS, "--workers", "1", "--out"]

    plain = subprocess.run([*command, tmp_path / "a"], capture_output=True, text=True)
    told = subprocess.run([*command, tmp_path / "b", "--json"], capture_output=True, text=True)

    *progress, end = [json.loads(line) for line in told.stdout.splitlines()]
    assert "\r" not in plain.stderr
    assert plain.stderr.splitlines()[-1].startswith("6,000/6,000 images, ")
    assert plain.stderr.splitlines()[-1].endswith("24/24 shards, ETA 00:00")
    assert told.stderr == ""
    assert progress[-1]["event"] == "progress"
    assert (progress[-1]["images"], progress[-1]["shards"]) == (6000, 24)
    assert end == {"event": "end", "made": 6000, "kept": 0, "complete": True, "out": str(tmp_path / "b")}


def without_privilege() -> None:
    """Have root, too, respect the modes of folders: drop CAP_DAC_OVERRIDE."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_folder_that_is_read_only_is_a_sentence(toy_store: Path, tmp_path: Path) -> None:
    command = [
        GANSERVE,
        "sample",
        "--store",
        toy_store,
        "--model",
        "toy",
        "--seeds",
        "0-9",
        "--out",
        tmp_path,
    ]
    tmp_path.chmod(0o555)

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=without_privilege)

    assert done.returncode == 6
    assert done.stderr == (
        f"ganserve: out must be a folder that can be written: Permission denied, got {tmp_path}/.ganserve\n"
    )


def test_a_full_disk_is_a_sentence_and_finished_shards_are_kept(toy_store: Path, tmp_path: Path) -> None:
    flags = (
        "--seeds",
        "0-999",
        "--shard-size",
        "330",
        "--format",
        "npz",
        "--workers",
        "1",
        "--out",
        tmp_path,
    )
    assert Run(toy_store, *flags, "--shards", "3/4").end()[0] == 0  # ten images
    command = [GANSERVE, "sample", "--store", toy_store, "--model", "toy", *flags]

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=little_room)

    assert done.returncode == 7
    assert "there is no room left in" in done.stderr
    assert [path.name for path in tmp_path.glob("*.npz")] == ["shard-00003.npz"]
    before = (tmp_path / "shard-00003.npz").stat().st_mtime_ns
    assert Run(toy_store, *flags).end()[0] == 0
    assert (tmp_path / "shard-00003.npz").stat().st_mtime_ns == before


def test_the_pods_of_the_indexed_job_make_one_set(toy_store: Path, tmp_path: Path) -> None:
    """The command of deploy/kubernetes/jobs/sample, with a smaller set, in a folder, of the toy."""
    job = yaml.safe_load((DEPLOY / "kubernetes/jobs/sample/job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    changed = {
        "--model=fashion-mnist:2": "--model=toy",
        "--seeds=0-999999": "--seeds=0-99",
        "--shard-size=10000": "--shard-size=10",
        "--out=s3://sets/fashion-mnist": f"--out={tmp_path}",
    }
    assert changed.keys() <= set(container["args"])
    command = [GANSERVE, *(changed.get(one, one) for one in container["args"])]
    pods = job["spec"]["completions"]

    started = [
        subprocess.Popen(
            [*command, "--store", toy_store, "--workers", "1"],
            env={**os.environ, "JOB_COMPLETION_INDEX": str(index)},
            stdout=subprocess.DEVNULL,
        )
        for index in range(pods)
    ]
    statuses = [pod.wait(timeout=60) for pod in started]

    assert (job["spec"]["completionMode"], f"--shards=/{pods}" in container["args"]) == ("Indexed", True)
    assert statuses == [0] * pods
    assert json.loads((tmp_path / "manifest.json").read_text())["images"] == 100
    assert len(list(tmp_path.glob("*.tar"))) == 10
    assert not (tmp_path / ".ganserve").exists()
