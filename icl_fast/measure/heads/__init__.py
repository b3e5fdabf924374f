"""What single heads of a text model do: scores, circuits, attributions, and what they read on texts."""

from icl_fast.measure.heads.attribution import Attribution, logit_attribution
from icl_fast.measure.heads.circuits import (
    composition_scores,
    copying_eigenvalue_score,
    copying_eigenvalues,
    qk_trace,
    why_undefined,
)
from icl_fast.measure.heads.evaluate import evaluate
from icl_fast.measure.heads.idealised_patterns import (
    PATTERNS,
    idealised_losses,
    matching_pattern,
    measure_idealised,
    previous_token_pattern,
)
from icl_fast.measure.heads.reading import (
    TokenisedText,
    head_views,
    template_attention,
    text_dataset,
    token_losses,
    tokenise,
)
from icl_fast.measure.heads.scores import (
    copying,
    copying_scores,
    distinct_random_tokens,
    prefix_matching,
    prefix_matching_scores,
    previous_token,
    previous_token_scores,
    repeated_random_tokens,
)
from icl_fast.measure.heads.templates import TemplateScores, measure_templates, template_scores

# over the snapshots of a series
__all__ = ["evaluate", "measure_idealised", "measure_templates"]
# scores of every head of a model, from its activations
__all__ += ["copying_scores", "prefix_matching_scores", "previous_token_scores"]
# the same of given patterns, and the tokens to take these on
__all__ += ["copying", "distinct_random_tokens", "prefix_matching", "previous_token", "repeated_random_tokens"]
# circuits of every head of a model, from its weights
__all__ += ["composition_scores", "copying_eigenvalue_score", "copying_eigenvalues", "qk_trace", "why_undefined"]
# heads that attend by an ideal instead
__all__ += ["PATTERNS", "idealised_losses", "matching_pattern", "previous_token_pattern"]
# one text
__all__ += ["Attribution", "TokenisedText", "head_views", "logit_attribution", "template_attention"]
__all__ += ["TemplateScores", "template_scores", "text_dataset", "token_losses", "tokenise"]
