"""Data sets: fetching, importing, encoding and one in-memory form for any size.

May know ``meta`` (what a catalogue and a log are); knows nothing of Flower, privacy or policies.
"""

from .build import build_dataset
from .dataset import Dataset
from .features import FeatureOptions
from .fetching import fetch
from .importing import import_dataset
from .registry import describe, list_datasets, load
from .split import Split, filter_positive, held_out_devices, leave_two_out, sample_negatives
from .synthetic import SyntheticOptions, SyntheticWorld, synthetic_world

__all__ = [
    "Dataset",
    "FeatureOptions",
    "Split",
    "SyntheticOptions",
    "SyntheticWorld",
    "build_dataset",
    "describe",
    "fetch",
    "filter_positive",
    "held_out_devices",
    "import_dataset",
    "leave_two_out",
    "list_datasets",
    "load",
    "sample_negatives",
    "synthetic_world",
]
