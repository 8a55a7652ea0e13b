"""Many runs, one question: what do epsilon, unit and population cost? Specification, cells, workers, tables, report."""

from .run import Sweep, SweepListener, run_sweep
from .spec import Cell, SweepSpec, load_spec, plan_cells

__all__ = ["Cell", "Sweep", "SweepListener", "SweepSpec", "load_spec", "plan_cells", "run_sweep"]
