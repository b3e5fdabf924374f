"""Text corpora as token windows: the same documents, order and evaluation set for every model of a corpus seed."""

from __future__ import annotations

from icl_fast.data.config import DataConfig
from icl_fast.data.corpora import NAMES as CORPUS_NAMES
from icl_fast.data.corpora import Corpus, Document, read_corpus
from icl_fast.data.texts import Mark, Text, default_texts, parallel_text, read_texts, template_text
from icl_fast.data.tokenizer import load_tokenizer, save_tokenizer
from icl_fast.data.windows import EvaluationSet, TextData, load_text

__all__ = [
    "CORPUS_NAMES",
    "Corpus",
    "DataConfig",
    "Document",
    "EvaluationSet",
    "Mark",
    "Text",
    "TextData",
    "default_texts",
    "load_text",
    "load_tokenizer",
    "parallel_text",
    "read_corpus",
    "read_texts",
    "save_tokenizer",
    "template_text",
]
