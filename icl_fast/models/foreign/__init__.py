"""Other people's models, opened as a `Transformer`; see docs/models.md for what loads."""

from icl_fast.models.foreign.export import export_model
from icl_fast.models.foreign.gguf_format import gguf_file
from icl_fast.models.foreign.gguf_tokenizer import gguf_bos, gguf_tokenizer, why_no_tokenizer
from icl_fast.models.foreign.load import describe, foreign_config, is_foreign, load_foreign, weight_files

__all__ = [
    "describe",
    "export_model",
    "foreign_config",
    "gguf_bos",
    "gguf_file",
    "gguf_tokenizer",
    "is_foreign",
    "load_foreign",
    "weight_files",
    "why_no_tokenizer",
]
