"""Builds the cpu image of deploy/Dockerfile.service and runs the rendered Deployment with podman.

.ci/image calls it. No test of pytest, since it needs root and Debian's podman, buildah, debootstrap,
slirp4netns and catatonit. What Kubernetes would enforce, podman enforces here: user, read-only root,
capabilities, limits, mounts. Prints what it found, and ends at the first thing that is not so.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from kubernetes_manifests import MANIFESTS, kustomize
from server_process import free_port

from models.golden import Golden
from models.manifest import GOLDEN_FILE
from models.store import SHIPPED_STORE, Store

ROOT = MANIFESTS.parents[1]
IMAGE, BASE = "localhost/ganserve:0.1.0-cpu", "localhost/ganserve-base"
CLIENTS, LOAD_S = 8, 3.0
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="ganserve-image-"))
    (work / "containers.conf").write_text(CONTAINERS_CONF)
    (work / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{work}/images"\nrunroot = "{work}/run"\n'
    )
    os.environ["CONTAINERS_CONF"] = str(work / "containers.conf")
    os.environ["CONTAINERS_STORAGE_CONF"] = str(work / "storage.conf")
    os.chdir(work)  # podman leaves a file `oom` where it was called
    try:
        make_base(work)
        build(work)
        run_deployment(work)
    finally:
        run("podman", "--log-level=fatal", "pod", "rm", "-fa", check=False)
        run("podman", "--log-level=fatal", "volume", "rm", "-fa", check=False)
        os.chdir(ROOT)
        shutil.rmtree(work, ignore_errors=True)


def run(*words: object, check: bool = True) -> str:
    """Run a command and return what it printed; a failure ends this check with what it said."""
    done = subprocess.run([str(one) for one in words], capture_output=True, text=True)
    if check and done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{said}")
    return done.stdout.strip()


def hold(what: str, found: object, wanted: object) -> None:
    """Print what was found, and end this check unless it is what was wanted."""
    print(f"  {what}: {found}", flush=True)
    if found != wanted:
        sys.exit(f"{what} must be {wanted}, it is {found}")


def make_base(work: Path) -> None:
    """A Debian with python3 and its venv module, as BASE: no registry of images is asked."""
    started = time.monotonic()
    packages = "python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", f"--include={packages}", "trixie", work / "base")
    shutil.rmtree(work / "base/var/cache/apt/archives")
    packed = subprocess.Popen(["tar", "-C", work / "base", "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(
        ["podman", "import", "-q", "-", BASE], stdin=packed.stdout, check=True, capture_output=True
    )
    shutil.rmtree(work / "base")
    print(f"base: {time.monotonic() - started:.0f} s", flush=True)


def build(work: Path) -> None:
    """Build the image, with this machine's certificates in place of the base's."""
    started = time.monotonic()
    (work / "pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    flags = ["--isolation=chroot", "--format=docker", "--layers=false", "--network=host", "--target=cpu"]
    mounts = ["--volume=/etc/ssl/certs:/etc/ssl/certs:ro", f"--volume={work}/pip.conf:/etc/pip.conf:ro"]
    where = ["-f", MANIFESTS.parent / "Dockerfile.service", "-t", IMAGE, ROOT]
    run("buildah", "build", *flags, *mounts, f"--build-arg=BASE={BASE}", *where)
    size_bytes = int(run("podman", "image", "inspect", IMAGE, "--format", "{{.Size}}"))
    base_bytes = int(run("podman", "image", "inspect", BASE, "--format", "{{.Size}}"))
    print(
        f"image: {size_bytes / 1e6:.0f} MB, of them {base_bytes / 1e6:.0f} the base's; "
        f"built in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    inside = run("podman", "run", "--rm", "--network=none", "--entrypoint=sh", IMAGE, "-c", "ls /usr/bin")
    hold("compilers in it", sorted({"gcc", "cc", "g++", "clang"} & set(inside.split())), [])
    packages = run(
        *("podman", "run", "--rm", "--network=none", "--entrypoint=python", IMAGE, "-c"),
        "from importlib.metadata import distributions as d; print(*(x.name for x in d()))",
    )
    hold("torch or pip in it", sorted({"torch", "pip"} & set(packages.split())), [])


def run_deployment(work: Path) -> None:
    """Play the overlay's Deployment, look at what is enforced, ask it, and stop it under load."""
    port = free_port()
    deployment = rendered_deployment(work / "play.yaml", port)
    spec = deployment["spec"]["template"]["spec"]
    make_volumes(spec)
    started = time.monotonic()
    run("podman", "--log-level=fatal", "kube", "play", "--network=slirp4netns", work / "play.yaml")
    name = "ganserve-pod-0-ganserve"
    pid = int(run("podman", "inspect", name, "--format", "{{.State.Pid}}"))
    played_s = time.monotonic() - started
    ask = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
    wait_until(lambda: status(ask, "/readyz") == 200, f"/readyz\n{run('podman', 'logs', name)}")
    print(
        f"start: ready {time.monotonic() - started - played_s:.1f} s after podman had started it", flush=True
    )

    look_at_what_is_enforced(name, pid, spec)
    two_workers = 'ganserve_worker_up{model="fashion-mnist"} 2.0'  # as the CPU limit says
    wait_until(lambda: two_workers in ask.get("/metrics").text, two_workers)
    artifact = Store(SHIPPED_STORE).resolve("fashion-mnist")
    golden = Golden.load(artifact.file(GOLDEN_FILE), artifact.manifest)
    plain = golden.truncation_psi == 1
    wanted = {"seeds": golden.seeds[plain].tolist(), "class_idx": golden.class_idx[plain].tolist()}
    answer = ask.post("/v1/samples", json={**wanted, "format": "npy"})
    images = np.load(io.BytesIO(answer.content)) if answer.status_code == 200 else answer.text
    hold("golden rows that it makes exactly", np.array_equal(images, golden.images[plain]), True)
    stop_under_load(name, pid, port, spec["terminationGracePeriodSeconds"])


def rendered_deployment(path: Path, port: int) -> dict[str, Any]:
    """Write the overlay's Deployment and its settings, with our image and a free port; return the former."""
    text = kustomize(MANIFESTS / "overlays" / "cpu")
    for shipped, ours in (
        ("registry.example/ganserve", "localhost/ganserve"),
        ("port: 8000", f"port: {port}"),
        ("containerPort: 8000", f"containerPort: {port}"),
    ):
        assert shipped in text
        text = text.replace(shipped, ours)
    documents = [one for one in yaml.safe_load_all(text) if one["kind"] in ("Deployment", "ConfigMap")]
    path.write_text(yaml.safe_dump_all(documents))
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    return dict(deployment)


def make_volumes(spec: dict[str, Any]) -> None:
    """What kubelet makes of an emptyDir: empty, for everyone to write, of the size that is asked for.

    podman 4 would make folders on disk that root alone may write. The first use of a volume copies the
    image's folder and its mode, so it is not the server's.
    """
    mounts = {one["name"]: one["mountPath"] for one in spec["containers"][0]["volumeMounts"]}
    for volume in spec["volumes"]:
        if "emptyDir" in volume:
            blocks = int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 256
            options = ["type=tmpfs", "device=tmpfs", f"o=nr_blocks={blocks},mode=1777"]
            run("podman", "volume", "create", *(f"--opt={one}" for one in options), volume["name"])
            where = f"{volume['name']}:{mounts[volume['name']]}"
            run("podman", "run", "--rm", "--network=none", "--entrypoint=true", "-v", where, IMAGE)


def look_at_what_is_enforced(name: str, pid: int, spec: dict[str, Any]) -> None:
    facts = dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    limit = spec["containers"][0]["resources"]["limits"]["memory"]
    memory = cgroup_file(pid, "memory", "memory.limit_in_bytes", "memory.max")
    shm = os.statvfs(f"/proc/{pid}/root/dev/shm")
    mounted = {
        line.split()[4]: line.split()[5].split(",")[0]
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    }
    process_1 = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    hold("process 1", process_1, "/usr/bin/tini")
    hold("uid", facts["Uid"].split()[0], str(spec["securityContext"]["runAsUser"]))
    hold("capabilities", {facts[one] for one in ("CapPrm", "CapEff", "CapBnd")}, {"0" * 16})
    hold("no new privileges, seccomp filter", (facts["NoNewPrivs"], facts["Seccomp"]), ("1", "2"))
    hold("root", mounted["/"], "ro")
    hold("/dev/shm, bytes", shm.f_blocks * shm.f_frsize, 2**20)
    hold("memory limit", f"{int(memory) // 2**20}Mi", limit)
    greedy = "held = bytearray(600 * 2**20); held[::4096] = b'1' * len(held[::4096])"
    done = subprocess.run(["podman", "exec", name, "python", "-c", greedy], capture_output=True)
    hold("a process that takes 600 MiB ends with", done.returncode, 137)


def cgroup_file(pid: int, controller: str, v1: str, v2: str) -> str:
    """A limit of the cgroup that a process is in, of either version."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == controller:
            return Path(f"/sys/fs/cgroup/{controller}{path}/{v1}").read_text().strip()
    return Path(f"/sys/fs/cgroup{path}/{v2}").read_text().strip()


def stop_under_load(name: str, pid: int, port: int, grace_s: int) -> None:
    """SIGTERM while clients in the pod's own network ask without pause: what was accepted is answered."""
    load = subprocess.Popen(
        ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, Path(__file__).resolve(), "load", str(port)],
        cwd=ROOT,  # PYTHONPATH may be relative to it
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(LOAD_S)
    started = time.monotonic()
    run("podman", "--log-level=fatal", "stop", f"--time={grace_s}", name)
    stopped_s = time.monotonic() - started
    outcomes = json.loads(load.communicate(timeout=60)[0])
    print(f"  stopped {stopped_s:.1f} s after SIGTERM; requests: {outcomes}", flush=True)
    hold("requests without an answer", outcomes.get("lost", 0), 0)
    hold("requests answered with images", outcomes.get("200", 0) > 100, True)
    hold("statuses", set(outcomes) <= {"200", "503", "lost"}, True)
    hold("exit status", run("podman", "inspect", name, "--format", "{{.State.ExitCode}}"), "0")


def load(port: int) -> None:
    """Ask without pause until nobody listens; print how many requests ended how."""
    outcomes: Counter[str] = Counter()

    def client() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            while True:
                try:
                    outcomes[str(http.post("/v1/samples", json={"seed": 1, "n": 8}).status_code)] += 1
                except httpx.ConnectError:
                    return  # nobody listens: no request was sent
                except httpx.TransportError as error:
                    outcomes["lost"] += 1
                    print(f"lost: {error!r}", file=sys.stderr, flush=True)
                    return

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    print(json.dumps(outcomes))


def status(http: httpx.Client, path: str) -> int | None:
    try:
        return http.get(path).status_code
    except httpx.TransportError:
        return None


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited 60 s in vain for {what}")
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        load(int(sys.argv[2]))
    else:
        main()
