"""What models are trained on: text corpora as token windows, and exemplars (classes of images or vectors).

The same documents, order and evaluation set for every model of a corpus seed; the same exemplars for the same files.
"""

from __future__ import annotations

from icl_fast.data.clusters import cluster_embeddings
from icl_fast.data.config import DataConfig
from icl_fast.data.contact_sheet import write_contact_sheet
from icl_fast.data.corpora import NAMES as CORPUS_NAMES
from icl_fast.data.corpora import Corpus, Document, read_corpus
from icl_fast.data.encoders import encode
from icl_fast.data.exemplar_files import read_exemplars, save_exemplars
from icl_fast.data.exemplars import Exemplars, gaussian_classes
from icl_fast.data.fonts import install_advice
from icl_fast.data.glyphs import render_glyphs, script
from icl_fast.data.image_folder import read_images
from icl_fast.data.texts import Mark, Text, default_texts, parallel_text, read_texts, template_text
from icl_fast.data.tokenizer import load_tokenizer, save_tokenizer
from icl_fast.data.transforms import TRANSFORMS, transformed
from icl_fast.data.windows import EvaluationSet, TextData, load_text

__all__ = [
    "CORPUS_NAMES",
    "TRANSFORMS",
    "Corpus",
    "DataConfig",
    "Document",
    "EvaluationSet",
    "Exemplars",
    "Mark",
    "Text",
    "TextData",
    "cluster_embeddings",
    "default_texts",
    "encode",
    "gaussian_classes",
    "install_advice",
    "load_text",
    "load_tokenizer",
    "parallel_text",
    "read_corpus",
    "read_exemplars",
    "read_images",
    "read_texts",
    "render_glyphs",
    "save_exemplars",
    "save_tokenizer",
    "script",
    "template_text",
    "transformed",
    "write_contact_sheet",
]
