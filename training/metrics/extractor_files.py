"""Extractors by their names, and those that are ONNX files.

A file has the input `images` uint8 [N, H, W, C] with a free N, the output `features` float32 [N, F] and,
where it is a classifier, `logits` float32 [N, K]. Two are shipped, made by

    gantrain extractor --out fashion-mnist.onnx
    gantrain extractor --out fashion-mnist-judge.onnx --network strided --seed 1 --epochs 4

Needs ONNX Runtime; torch only for the networks that are torch's (`efficientnet-lite0`, `inception`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from models.errors import DamagedArtifact, InvalidValue, show
from models.store import sha256_of
from training.graph_session import open_session
from training.metrics.extractor import Answers, Extractor, Images, in_passes

SHIPPED: Final = Path(__file__).parent / "extractors"
_INTERFACE: Final = (
    "an extractor must take images uint8 [N, H, W, C] and give features float32 [N, F], with N free"
)


class OnnxExtractor:
    """An extractor file on ONNX Runtime's CPU provider, one thread. Raises InvalidValue for another file."""

    resize = "none"
    is_inception = False

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or path.stem
        self.digest = sha256_of(path)
        try:
            self._session = open_session(path, str(path))
        except DamagedArtifact as error:  # it is none
            raise InvalidValue(str(error)) from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._outputs = [one.name for one in outputs if one.name in ("features", "logits")]
        if [(one.name, one.type) for one in inputs] != [("images", "tensor(uint8)")]:
            given = ", ".join(f"{one.name} {one.type}" for one in inputs)
            raise InvalidValue(f"{_INTERFACE}; {path} takes {given}")
        batch, *self._sizes = inputs[0].shape
        if "features" not in self._outputs or isinstance(batch, int):
            given = ", ".join(f"{one.name} [{', '.join(map(str, one.shape))}]" for one in outputs)
            raise InvalidValue(f"{_INTERFACE}; {path} gives {given} for {batch} images")

    def answers(self, images: Images) -> Answers:
        sizes = zip(self._sizes, images.shape[1:], strict=True)
        if any(isinstance(wanted, int) and wanted != given for wanted, given in sizes):
            wanted, given = ("×".join(map(str, one)) for one in (self._sizes, images.shape[1:]))
            raise InvalidValue(f"the extractor {self.name} takes images of {wanted}, got {given}")
        return in_passes(self._run, images, self._outputs)

    def _run(self, images: Images) -> list[Any]:
        answers: list[Any] = self._session.run(self._outputs, {"images": images})
        return answers


def _efficientnet() -> Extractor:
    from training.metrics.networks import efficientnet_lite0

    return efficientnet_lite0()


def _inception() -> Extractor:
    from training.metrics.networks import inception

    return inception()


_OF_TORCH: Final[dict[str, Callable[[], Extractor]]] = {
    "efficientnet-lite0": _efficientnet,
    "inception": _inception,
}


def open_extractor(name: str) -> Extractor:
    """Return the extractor of a name, or of an ONNX file. Raises InvalidValue for neither."""
    if name in _OF_TORCH:
        return _OF_TORCH[name]()
    if name in shipped_names():
        return OnnxExtractor(SHIPPED / f"{name}.onnx", name)
    if not Path(name).is_file():
        known = ", ".join([*shipped_names(), *_OF_TORCH])
        raise InvalidValue(f"extractor must be one of {known}, or an ONNX file, got {show(name)}")
    return OnnxExtractor(Path(name))


def shipped_names() -> list[str]:
    """The names of the extractors that the package ships."""
    return sorted(path.stem for path in SHIPPED.glob("*.onnx"))
