"""Data sets: files become `Dataset`, resident as uint8. NumPy and Pillow only, no torch.

`open_dataset` finds out what a path holds; `fashion_mnist` knows where that data set is to be had.
"""

from training.data.dataset import DataOrder, Dataset, DataShape, Split
from training.data.open import open_dataset, splits

__all__ = ["DataOrder", "DataShape", "Dataset", "Split", "open_dataset", "splits"]
