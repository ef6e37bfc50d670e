"""The types of decision models that score options themselves, instead of labels.

A type has an ``OptionLayout``: it writes the prompts of questions, and reads the scores of their options. ``LAYOUTS``
lists them.

marked_options.py    "laya": an encoder scores each option at a mark before it
omni_options.py      "lfm2-d1-omni": the same, with another prompt
pointed_options.py   "kev": the query of the last token, times the key of each option's end
joint_options.py     "clef": one prompt for all questions, and a head that scores all options together
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pellucid.decide.joint_options import JointOptions
from pellucid.decide.marked_options import MarkedOptions
from pellucid.decide.omni_options import OmniOptions
from pellucid.decide.pointed_options import PointedOptions
from pellucid.decide.scored_options import DecisionModel, ScoredOptions
from pellucid.model.decision_blocks import LAYA, OMNI
from pellucid.model.joint_head import CLEF
from pellucid.model.pointer_head import KEV


class OptionLayout(Protocol):
    """Makes the layout of a model."""

    def __call__(self, model: DecisionModel) -> ScoredOptions: ...


LAYOUTS: Mapping[str, OptionLayout] = {
    LAYA: MarkedOptions,
    OMNI: OmniOptions,
    KEV: PointedOptions,
    CLEF: JointOptions,
}
