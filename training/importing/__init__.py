"""A generator trained elsewhere becomes an artifact: read, understood, freed, wrapped, proved, published.

`reading` takes the file in, `interface` finds what goes in and comes out, `batch` frees a static batch,
`wrapping` adds what serving wants, `evidence` runs the file as it came, `publishing` does it all.
Needs the extras `cpu` and `onnx`; torch is imported for its own archives only (`archive`).
"""

from training.importing.interface import Choices
from training.importing.publishing import Imported, import_graph

__all__ = ["Choices", "Imported", "import_graph"]
