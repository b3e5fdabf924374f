"""What models are trained on: text corpora as token windows, and sequences of exemplars (images or vectors) and labels.

The same documents, order and evaluation set for every model of a corpus seed; the same exemplars for the same files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_fast.data.clusters import cluster_embeddings
from icl_fast.data.config import DataConfig
from icl_fast.data.corpora import NAMES as CORPUS_NAMES
from icl_fast.data.corpora import Corpus, Document, read_corpus, read_text
from icl_fast.data.encoders import encode
from icl_fast.data.evaluation_sequences import EVALUATORS, EvaluationSequences, evaluation_sequences, evaluators
from icl_fast.data.evaluation_text import EvaluationText
from icl_fast.data.exemplar_files import read_exemplars, save_exemplars
from icl_fast.data.exemplars import Exemplars, gaussian_classes
from icl_fast.data.fonts import install_advice
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import Sequences, describe, output_labels, training_sequences
from icl_fast.data.splits import Split, split
from icl_fast.data.strokes import draw_strokes
from icl_fast.data.texts import Mark, Text, default_texts, parallel_text, read_texts, template_text
from icl_fast.data.tokenizer import load_tokenizer, save_tokenizer
from icl_fast.data.transforms import TRANSFORMS, transformed
from icl_fast.data.windows import EvaluationSet, TextData, load_text
from icl_fast.extras import on_use

if TYPE_CHECKING:
    from icl_fast.data.contact_sheet import write_contact_sheet
    from icl_fast.data.glyphs import render_glyphs, script
    from icl_fast.data.image_folder import read_images

__all__ = [
    "CORPUS_NAMES",
    "EVALUATORS",
    "TRANSFORMS",
    "Corpus",
    "DataConfig",
    "Document",
    "EvaluationSequences",
    "EvaluationSet",
    "EvaluationText",
    "Exemplars",
    "Mark",
    "SequenceConfig",
    "Sequences",
    "Split",
    "Text",
    "TextData",
    "cluster_embeddings",
    "default_texts",
    "describe",
    "draw_strokes",
    "encode",
    "evaluation_sequences",
    "evaluators",
    "gaussian_classes",
    "install_advice",
    "load_text",
    "load_tokenizer",
    "output_labels",
    "parallel_text",
    "read_corpus",
    "read_exemplars",
    "read_images",
    "read_text",
    "read_texts",
    "render_glyphs",
    "save_exemplars",
    "save_tokenizer",
    "script",
    "split",
    "template_text",
    "training_sequences",
    "transformed",
    "write_contact_sheet",
]

__getattr__ = on_use(  # images: text does without
    __name__,
    {
        "write_contact_sheet": "contact_sheet",
        "render_glyphs": "glyphs",
        "script": "glyphs",
        "read_images": "image_folder",
    },
)
