"""Other people's models, opened as a `Transformer`; see docs/models.md for what loads."""

from icl_fast.models.foreign.load import describe, foreign_config, is_foreign, load_foreign, weight_files

__all__ = ["describe", "foreign_config", "is_foreign", "load_foreign", "weight_files"]
