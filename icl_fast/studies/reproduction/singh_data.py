"""Claims of Singh 2025, chapters 2 and 3: what in the data, and in the model, makes ICL emerge, and stay.

Rules: as in `singh_strategies`; "more" is a difference of means over seeds of 0.1 at least (0.05 of IWL, where it is
small), "the more, the better" besides that no step goes the other way by more than 0.02, the error of an evaluation.
"""

from __future__ import annotations

from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.singh_curves import best_end, compared, highest_of, strategies_learned

_NEW = "held-out-classes"  # ICL of classes never trained on, as in chapter 2
_BURSTY = {
    "none": "chapter2:not bursty",
    "half": "chapter2:half bursty",
    "most": "chapter2:mostly bursty",
    "all": "chapter2:all bursty",
}
_NOISE = {"none": "chapter2:one exemplar", "little": "chapter2:little noise", "more": "chapter2:noise"}
_CLASSES = {"few": "chapter2:100 classes", "some": "chapter2:400 classes", "many": "chapter2:mostly bursty"}
_LABELS = {"one": "multiplicity:1 label", "two": "multiplicity:2 labels", "four": "multiplicity:4 labels"}
_SCALE_2 = "2 attention-only layers, 4 pairs, Gaussian classes; 12 layers with MLPs, 8 pairs, characters in the thesis"

_SCALE_3 = "2 attention-only layers, 2 pairs, Gaussian classes; 12 layers with MLPs, 8 pairs, characters in the thesis"
_LLAMA = (
    "needs the embeddings of LLaMA 1, whose licence lets nobody pass them on; with them 8 runs of the thesis' size "
    "(12 layers, tens of millions of steps), about 300 GPU-hours"
)


def _same(role: str, roles: dict[str, str]) -> dict[str, str]:
    """Every role the trainings of one: nothing is varied."""
    return dict.fromkeys(roles, roles[role])


CLAIMS = (
    Claim(
        name="burstiness-makes-icl",
        source="2.3.1, Figure 2.2a",
        statement="The more sequences are bursty, the more ICL; without bursty sequences there is none.",
        runs=_BURSTY,
        measure=compared,
        arguments={"evaluator": _NEW},
        rule="none < 0.6 and all >= 0.75 and rise >= 0.1 and least_step > -0.02",
        without=_same("none", _BURSTY),
        note=_SCALE_2,
    ),
    Claim(
        name="burstiness-costs-iwl",
        source="2.3.1, Figure 2.2b",
        statement="The more sequences are bursty, the less is learned in weights.",
        runs=_BURSTY,
        measure=compared,
        arguments={"evaluator": "iwl", "at": "end"},
        rule="rise <= -0.1 and greatest_step < 0.02",
        without=_same("all", _BURSTY),
        note=_SCALE_2,
    ),
    Claim(
        name="variation-makes-icl",
        source="2.3.2, Figure 2.3a",
        statement="Where all exemplars of a class are the same there is no ICL; noise on them brings it back.",
        runs=_NOISE,
        measure=compared,
        arguments={"evaluator": _NEW},
        rule="none < 0.6 and rise >= 0.1 and least_step > -0.02",
        without=_same("none", _NOISE),
        note=_SCALE_2,
    ),
    Claim(
        name="variation-costs-iwl",
        source="2.3.2, Figure 2.3b",
        statement="The more a class varies, the less is learned in weights.",
        runs=_NOISE,
        measure=compared,
        arguments={"evaluator": "iwl", "at": "end"},
        rule="rise <= -0.05 and greatest_step < 0.02",
        without=_same("more", _NOISE),
        note=_SCALE_2,
    ),
    Claim(
        name="multiplicity-makes-icl",
        source="2.3.3, Figure 2.4",
        statement="The more labels a class has, the more ICL.",
        runs=_LABELS,
        measure=compared,
        arguments={"evaluator": _NEW, "at": "end"},
        rule="rise >= 0.1 and least_step > -0.02",
        without=_same("one", _LABELS),
        note=_SCALE_2,
    ),
    Claim(
        name="classes-make-icl",
        source="2.3.4, Figure 2.5a",
        statement="The more classes, the more ICL; with 100 there is none.",
        runs=_CLASSES,
        measure=compared,
        arguments={"evaluator": _NEW},
        rule="few < 0.6 and many >= 0.75 and least_step > -0.02",
        without=_same("few", _CLASSES),
        note=_SCALE_2,
    ),
    Claim(
        name="classes-cost-iwl",
        source="2.3.4, Figure 2.5b",
        statement="The more classes, the less is learned in weights.",
        runs=_CLASSES,
        measure=compared,
        arguments={"evaluator": "iwl", "at": "end"},
        rule="rise <= -0.1 and greatest_step < 0.02",
        without=_same("many", _CLASSES),
        note=_SCALE_2,
    ),
    Claim(
        name="zipf-1-has-both",
        source="2.3.5, Figure 2.6c-d",
        statement="At a Zipf exponent of 1 ICL and, of the ten commonest classes, IWL are both at a high level.",
        runs={"run": "zipf:zipf 1"},
        measure=strategies_learned,
        arguments={"evaluators": (_NEW, "iwl-common")},
        rule="held_out_classes_end >= 0.75 and iwl_common_end >= 0.5",
        without={"run": "zipf:zipf 2"},
        note=_SCALE_2,
    ),
    Claim(
        name="strong-skew-has-iwl-only",
        source="2.3.5, Figure 2.6c-d; 3.4.4, Figure 3.7",
        statement="At an exponent of 2 ICL does not emerge, and common classes are learned in weights.",
        runs={"run": "zipf:zipf 2"},
        measure=strategies_learned,
        arguments={"evaluators": (_NEW, "iwl-common")},
        rule="held_out_classes_highest < 0.6 and iwl_common_end >= 0.5",
        without={"run": "zipf:zipf 0.5"},
        note=_SCALE_2,
    ),
    Claim(
        name="rare-classes-are-never-stored",
        source="2.3.5, Figure 2.6e",
        statement="Rare classes are never memorised, whatever the exponent.",
        runs={"half": "zipf:zipf 0.5", "one": "zipf:zipf 1", "more": "zipf:zipf 1.5", "two": "zipf:zipf 2"},
        measure=compared,
        arguments={"evaluator": "iwl-rare", "at": "end"},
        rule="half < 0.05 and one < 0.05 and more < 0.05 and two < 0.05",
        without_arguments={"evaluator": "iwl-common"},
        note=_SCALE_2,
    ),
    Claim(
        name="recurrent-models-have-no-icl",
        source="2.3.6, Figure 2.7",
        statement="An RNN and an LSTM of the same depth and width show no ICL on the data where a transformer does.",
        runs={"rnn": "rnn", "lstm": "lstm"},
        measure=highest_of,
        arguments={"evaluator": _NEW},
        rule="rnn < 0.6 and lstm < 0.6",
        without={"rnn": "chapter2:mostly bursty", "lstm": "chapter2:mostly bursty"},
        note="three learning rates each; " + _SCALE_2,
    ),
    Claim(
        name="recurrent-models-store-less-too",
        source="2.3.6; A.2.2, Figure A.2",
        statement="A transformer learns more in weights, too, than an RNN or an LSTM of its size.",
        runs={"rnn": "rnn", "lstm": "lstm", "transformer": "chapter2:mostly bursty"},
        measure=best_end,
        arguments={"evaluator": "iwl"},
        rule="rnn_behind > 0 and lstm_behind > 0",
        without={"transformer": "chapter2:all bursty"},
        note="three learning rates each, the best of them; " + _SCALE_2,
    ),
    Claim(
        name="more-classes-higher-peak",
        source="3.4.2, Figure 3.5a",
        statement="With more classes ICL peaks higher.",
        runs={"fewer": "classes_1600", "more": "transience"},
        measure=compared,
        arguments={"evaluator": "icl"},
        rule="rise > 0.02",
        without={"more": "classes_1600"},
        note=_SCALE_3,
    ),
    Claim(
        name="more-classes-slower-decay",
        source="3.4.2, Figure 3.5a",
        statement="With more classes ICL fades more slowly.",
        runs={"fewer": "classes_1600", "more": "transience"},
        measure=compared,
        arguments={"evaluator": "icl", "at": "decay"},
        rule="rise > 0.02",
        without={"more": "classes_1600"},
        note="accuracy lost per million sequences; " + _SCALE_3,
    ),
    Claim(
        name="more-exemplars-higher-peak",
        source="3.4.2, Figure 3.4a",
        statement="With more exemplars of a class ICL peaks higher.",
        runs={"fewer": "exemplars_5", "more": "transience@0.36"},
        measure=compared,
        arguments={"evaluator": "icl"},
        rule="rise > 0.02",
        without={"more": "exemplars_5"},
        note="5 and 20 exemplars; " + _SCALE_3,
    ),
    Claim(
        name="zipf-1-delays-icl",
        source="3.4.4, Figure 3.7a",
        statement="At a Zipf exponent of 1 ICL peaks later.",
        runs={"uniform": "chapter2:mostly bursty", "skewed": "zipf:zipf 1"},
        measure=compared,
        arguments={"evaluator": "icl", "at": "peak"},
        rule="rise > 0.01 and skewed > 0",
        without={"skewed": "chapter2:mostly bursty"},
        note=_SCALE_2,
    ),
    Claim(
        name="language-model-embeddings",
        source="3.4.3, Figure 3.6",
        statement="On clusters of the token embeddings of LLaMA models ICL is transient, too.",
        runs={"run": "transience"},
        measure=strategies_learned,
        rule="icl_highest >= 0.75 and mean icl_lost >= 0.5",
        untested={"tiny": _LLAMA, "small": _LLAMA, "paper": _LLAMA},
    ),
    Claim(
        name="transient-at-other-depths",
        source="3.4.1, Figure 3.3",
        statement="ICL is transient whatever the depth.",
        runs={"run": "layers_4"},
        measure=strategies_learned,
        rule="icl_highest >= 0.75 and mean icl_lost >= 0.5",
        without={"run": "variants:matched"},
        note="4 attention-only layers, one seed; up to 18 with MLPs in the thesis",
    ),
    Claim(
        name="l2-keeps-icl",
        source="3.5, Figure 3.8",
        statement="With L2 regularization ICL does not fade.",
        runs={"run": "l2:all"},
        measure=strategies_learned,
        rule="icl_highest >= 0.75 and icl_lost < 0.2",
        without={"run": "transience"},
        note=_SCALE_3,
    ),
    Claim(
        name="l2-on-attention-does-not",
        source="3.6.1, Figure 3.10",
        statement="Where only attention is regularized ICL fades all the same.",
        runs={"run": "l2:attention"},
        measure=strategies_learned,
        rule="icl_highest >= 0.75 and mean icl_lost >= 0.5",
        without={"run": "variants:matched"},
        note=_SCALE_3,
    ),
    Claim(
        name="l2-on-embeddings-keeps-icl",
        source="3.6.1, Figure 3.10",
        statement="Where only the embedding is regularized it fades less.",
        runs={"attention": "l2:attention", "embedding": "l2:embedding"},
        measure=compared,
        arguments={"evaluator": "icl", "at": "lost"},
        rule="rise < -0.1",
        without={"embedding": "l2:attention"},
        note="embeddings of exemplars and labels; of the ResNet alone in the thesis; " + _SCALE_3,
    ),
    Claim(
        name="wider-models-keep-icl",
        source="3.6, Figure 3.9a",
        statement="The wider the model, the higher the peak of ICL.",
        runs={"narrow": "width_32", "middle": "transience@0.36", "wide": "width_128"},
        measure=compared,
        arguments={"evaluator": "icl"},
        rule="rise > 0.02 and least_step > -0.02",
        without={"middle": "width_32", "wide": "width_32"},
        note=_SCALE_3,
    ),
)
