"""Optimization of a field: steps, distillation, reconstruction and the state of a run."""
