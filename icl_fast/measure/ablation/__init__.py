"""Ablations: heads removed from a model, by definition and fast, and swept over snapshots."""
