"""How good a generator is: figures that say how they were taken.

`measure(reference, fakes)` is the whole of it, where images are at hand:

    from training.data import open_dataset
    from training.metrics import Reference, draw, measure, open_extractor

    dataset = open_dataset(None, img_resolution=32, split="test")
    images, class_idx = draw(dataset, 10_000, seed=0)    # uint8 [N, H, W, C], never the first of an order
    reals = Reference(
        images=images,
        extractor=open_extractor("fashion-mnist"),       # a name, or an ONNX file
        data=dataset.name, data_digest=dataset.digest, split="test", num_classes=dataset.num_classes, seed=0,
    )
    plain = measure(reals, fakes, figures=("frechet_distance", "coverage"))   # fakes uint8 [M, H, W, C]
    chosen = measure(reals, others, sampler="mh, 12 proposals")
    plain[0].value, plain[0].to_json()                   # {"name", "value", "protocol": {…}}

The reals are asked once, so one `Reference` serves for many sets of fakes. `distances`, `neighbours`,
`classes` and `sharpness` are the mathematics on arrays; `protocol` is what a figure carries; `extractor` what
makes features. Needs NumPy and ONNX Runtime; torch only for networks of torch and to train one.
"""

from training.metrics.extractor_files import open_extractor
from training.metrics.measure import (
    Reference,
    class_accuracies,
    class_variety,
    draw,
    measure,
    training_distance,
    with_reals,
)
from training.metrics.protocol import Figure, Protocol

__all__ = [
    "Figure",
    "Protocol",
    "Reference",
    "class_accuracies",
    "class_variety",
    "draw",
    "measure",
    "open_extractor",
    "training_distance",
    "with_reals",
]
