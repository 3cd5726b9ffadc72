"""What figures say on a model card: tables, one a protocol, and failings that follow from the numbers.

A figure is as in a manifest's `metrics`: `{"name", "value", "protocol": {…}}`, with `of_reals`, the same
number of real images, where it was taken. Refuses to own: how figures are taken, all else that a card says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from models.manifest import canonical_json

Facts = Mapping[str, Any]

_SHARES: Final = {
    "class_accuracy": "images in which the class asked for is found",
    "class_min_share": "share of the rarest class",
    "class_max_share": "share of the most frequent class",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
}
_NUMBERS: Final = {
    "frechet_distance": "Fréchet distance",
    "frechet_distance_limit": "Fréchet distance of infinitely many images",
    "fid": "FID",
    "fid_infinity": "FID∞",
    "kernel_distance": "kernel distance",
    "kid": "KID",
    "classifier_score": "classifier score",
    "inception_score": "Inception Score",
    "class_jsd": "divergence of the classes (nats)",
    "density": "density",
    "sharpness": "sharpness",
    "training_distance": "distance to the nearest training image",
}
_WEAKEST: Final = "class_accuracy_"
_LEAST_VARIED: Final = "class_variety_"
"""These begin the name of a figure of one class, the number of which ends it."""
_OF_CLASSES: Final = ("class_min_share", "class_max_share", "class_jsd")
_OF_IMAGENET: Final = ("efficientnet-lite0", "inception")
"""Extractors whose classes are those of ImageNet, not the data's."""
_GROUPED: Final = ("extractor", "extractor_digest", "data", "data_digest", "split", "n_real", "n_fake")


@dataclass(frozen=True)
class Column:
    """A generator's figures, or those of another one beside it."""

    title: str
    figures: Sequence[Facts]


def of_the_data(figures: Iterable[Facts]) -> list[Facts]:
    """Figures without shares of classes that are not the data's, which an evaluation once took."""
    return [
        figure
        for figure in figures
        if figure["name"] not in _OF_CLASSES or figure["protocol"]["extractor"] not in _OF_IMAGENET
    ]


def by_protocol(figures: Iterable[Facts]) -> list[list[Facts]]:
    """Figures in lists of one protocol each, in the order in which they first come."""
    groups: dict[bytes, list[Facts]] = {}
    for figure in figures:
        groups.setdefault(canonical_json(figure["protocol"]), []).append(figure)
    return list(groups.values())


def tables(columns: Sequence[Column]) -> str:
    """A table a protocol of the first column: its figures, those of reals, and what the others have of it."""
    first, *others = columns
    return "\n\n".join(_table(first.title, group, others) for group in by_protocol(first.figures))


def label(name: str) -> str:
    """What a figure is called for people."""
    if name.startswith(_WEAKEST):
        return f"the same of class {name.removeprefix(_WEAKEST)}, where it is lowest"
    if name.startswith(_LEAST_VARIED):
        return f"variety of class {name.removeprefix(_LEAST_VARIED)}, where it is lowest"
    return _SHARES.get(name) or _NUMBERS.get(name, name)


def failings(figures: Iterable[Facts], class_names: Sequence[str] = ()) -> list[str]:
    """Sentences on where the plain figures of a generator are worse than those of reals, with their numbers.

    Its weakest class and the least varied one are named whatever their figures.
    """
    plain = {
        figure["name"]: figure
        for figure in reversed([*figures])
        if not {"truncation_psi", "sampler"} & set(figure["protocol"])
    }
    sentences = [say(plain[name]) for name, say in _FAILINGS.items() if name in plain and _fails(plain[name])]
    for name, figure in plain.items():
        for prefix, say_of in _OF_A_CLASS.items():
            if name.startswith(prefix):
                k = name.removeprefix(prefix)
                sentences.append(say_of(figure, class_names[int(k)] if class_names else k))
    return sentences


def _fails(figure: Facts) -> bool:
    """Whether a figure is worse than that of reals, or not known to be as good."""
    name, value, of_reals = figure["name"], figure["value"], figure.get("of_reals")
    if name == "sharpness":
        return bool(abs(value - 1) > _SHARPNESS_NEAR)
    if of_reals is None:
        return name in ("class_accuracy", "precision", "coverage")  # which a good generator has near 1
    return bool(value > of_reals if name == "class_max_share" else value < of_reals)


def _weakest(figure: Facts, name: str) -> str:
    return f"Its weakest class is {name}, found in {figure['value']:.1%} of its images{_reals(figure)}."


def _least_varied(figure: Facts, name: str) -> str:
    return f"Its least varied class is {name}: its spread is {figure['value']:.2f} of that of real images."


def _coverage(figure: Facts) -> str:
    return (
        f"It does not make everything: only {figure['value']:.1%} of the real images have one of its images "
        f"in their neighbourhood (coverage{_reals(figure)})."
    )


def _precision(figure: Facts) -> str:
    return (
        f"Only {figure['value']:.1%} of its images are in the neighbourhood of a real one "
        f"(precision{_reals(figure)})."
    )


def _class_accuracy(figure: Facts) -> str:
    return (
        f"In {1 - figure['value']:.1%} of its images the class asked for is not found"
        + (f" (of real images: {1 - figure['of_reals']:.1%})" if "of_reals" in figure else "")
        + "."
    )


def _rarest(figure: Facts) -> str:
    return f"The class that is found least is {figure['value']:.1%} of its images{_reals(figure)}."


def _most(figure: Facts) -> str:
    return f"The class that is found most is {figure['value']:.1%} of its images{_reals(figure)}."


def _sharpness(figure: Facts) -> str:
    kind = "blurred" if figure["value"] < 1 else "harsher than real ones"
    return f"Its images are {kind}: they have {figure['value']:.2f} of the fine detail of real ones."


def _training_distance(figure: Facts) -> str:
    return (
        "It copies in part: its images are nearer to a training image than those are to each other (median "
        f"{figure['value']:.3g} and {figure['of_reals']:.3g})."
    )


_SHARPNESS_NEAR: Final = 0.05
_OF_A_CLASS: Final = {_WEAKEST: _weakest, _LEAST_VARIED: _least_varied}
_FAILINGS: Final = {
    "class_accuracy": _class_accuracy,
    "class_min_share": _rarest,
    "class_max_share": _most,
    "precision": _precision,
    "coverage": _coverage,
    "sharpness": _sharpness,
    "training_distance": _training_distance,
}


def _reals(figure: Facts) -> str:
    return f"; of real images: {figure['of_reals']:.1%}" if "of_reals" in figure else ""


def _table(title: str, group: Sequence[Facts], others: Sequence[Column]) -> str:
    protocol = group[0]["protocol"]
    titles, cells = [title], [[_number(figure, "value") for figure in group]]
    if any("of_reals" in figure for figure in group):
        titles.append("real images")
        cells.append([_number(figure, "of_reals") for figure in group])
    for other in others:
        same = {one["name"]: one for one in other.figures if one["protocol"] == protocol}
        if any(figure["name"] in same for figure in group):
            titles.append(other.title)
            cells.append([_number(same.get(figure["name"], {}), "value") for figure in group])
    rows = [[label(figure["name"]), *row] for figure, *row in zip(group, *cells, strict=True)]
    lines = [["", *titles], ["---"] * (1 + len(titles)), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_protocol(protocol)}\n\n{table}"


def _number(figure: Facts, field: str) -> str:
    if field not in figure:
        return ""
    is_share = figure["name"] in _SHARES or figure["name"].startswith(_WEAKEST)
    return f"{figure[field]:.1%}" if is_share else f"{figure[field]:.4g}"


def _protocol(protocol: Facts) -> str:
    """All of a protocol in one sentence."""
    extractor = f"features: {protocol['extractor']}" + _short(protocol.get("extractor_digest", ""))
    reals = f"reals: {protocol['n_real']:,} of {protocol['data']}, {protocol['split']}"
    others = ", ".join(f"{name} {value}" for name, value in sorted(protocol.items()) if name not in _GROUPED)
    reals += _short(protocol.get("data_digest", ""))
    return f"{protocol['n_fake']:,} images; {reals}; {extractor}; {others}:"


def _short(digest: str) -> str:
    return f" (sha256 {digest[:12]})" if digest else ""
