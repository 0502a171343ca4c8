"""Questions with true and false answers: what ships, what the field uses, and the user's own files."""

from trimtab.datasets.behaviours import Behaviour, behaviour
from trimtab.datasets.choices import capability, choices
from trimtab.datasets.facts import Fact, FactSet, Neighbour, atlas, facts_from_file
from trimtab.datasets.files import contrast_pairs, from_file, from_list
from trimtab.datasets.folklore import folklore
from trimtab.datasets.labelled_texts import LabelledTexts, labelled_texts
from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.datasets.prompt_set import PromptSet
from trimtab.datasets.prose import neutral_texts, validation_texts
from trimtab.datasets.questions import Question, QuestionSet
from trimtab.datasets.statements import SftExample, Statement, one_line, plain
from trimtab.datasets.truthfulqa import iti_folds, truthfulqa

__all__ = [
    "Behaviour",
    "ContrastPair",
    "Fact",
    "FactSet",
    "LabelledTexts",
    "Neighbour",
    "PairSet",
    "PromptSet",
    "Question",
    "QuestionSet",
    "SftExample",
    "Statement",
    "atlas",
    "behaviour",
    "capability",
    "choices",
    "contrast_pairs",
    "facts_from_file",
    "folklore",
    "from_file",
    "from_list",
    "iti_folds",
    "labelled_texts",
    "neutral_texts",
    "one_line",
    "plain",
    "truthfulqa",
    "validation_texts",
]
