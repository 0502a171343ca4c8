"""Plain, neutral English prose without end, composed from a seeded generator.

Every document is one small everyday scene in the past tense: a market, a train journey, a repair, a day on a
farm and so on.  It has one main person, a pair, "I", "we", or nobody, and holds no questions.  The text is a
function of the seed alone: only ``random()`` and ``choice`` of :class:`random.Random` are used.
Seeds from :data:`HELD_OUT_SEED` on are kept for :func:`neutral_texts` and :func:`validation_texts`; training text uses
seeds below it.

The word lists and sentence frames are in ``data/prose.json``.  ``<key>`` in a frame or word stands for a word of that
list (``key_season`` when the list depends on the season); ``<key:tag>`` is drawn once per document.  ``$n $m $s $o $p
$z`` stand for the main person: name as subject and as object, subject, object and possessive pronoun, plural ending.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, NamedTuple


class Scene(NamedTuple):
    """One kind of scene.

    ``around`` is where it happens (``out``, ``in`` or ``aboard``), ``local`` whether it stays at one place.
    """

    kind: str
    person: bool
    around: str
    local: bool
    seasons: list[str]
    slots: list[list[str]]


class _Grammar(NamedTuple):
    """The word lists and sentence frames."""

    women: list[str]
    men: list[str]
    words: dict[str, list[str]]
    shared: dict[str, list[str]]
    scenes: list[Scene]


@functools.cache
def _grammar() -> _Grammar:
    text = files("trimtab.datasets").joinpath("data/prose.json").read_text(encoding="utf-8")
    said: dict[str, Any] = json.loads(text)
    return _Grammar(**{**said, "scenes": [Scene(**scene) for scene in said["scenes"]]})


HELD_OUT_SEED: int = 1_000_000_000
MIN_WORDS: int = 80
MAX_WORDS: int = 170

# subject, object and possessive pronoun, ending of a noun the person owns
_FORMS: dict[str, tuple[str, str, str, str]] = {
    "she": ("she", "her", "her", ""),
    "he": ("he", "him", "his", ""),
    "i": ("I", "me", "my", ""),
    "we": ("we", "us", "our", "s"),
    "they": ("they", "them", "their", "s"),
}
_TOKEN = re.compile(r"<(\w+)(?::(\w+))?>|\$([nmsopz])")
# words that stay the same through a document: in the frames of the scene, and in every frame of a local scene
_STEADY: tuple[str, ...] = (
    "box",
    "tool",
    "handtool",
    "gardentool",
    "crops",
    "ware",
    "flowers",
    "part",
    "craft",
    "shorefind",
    "model",
    "folk",
    "room",
)
_STEADY_LOCAL: tuple[str, ...] = ("building", "spot", "road", "stage")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou](?!ne\b|nce\b|se|ni|we\b))")


@dataclass
class _State:
    """What one document has settled so far: season, person, bound words, words and frames already used."""

    rng: random.Random
    season: str
    person: dict[str, str]
    local: bool
    bound: dict[str, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)


def _person(rng: random.Random) -> dict[str, str]:
    """Return the words for the marks ``$n`` .. ``$z`` of a main person drawn at random."""
    draw = rng.random()
    if draw < 0.36:
        kind, name = "she", rng.choice(_grammar().women)
    elif draw < 0.72:
        kind, name = "he", rng.choice(_grammar().men)
    elif draw < 0.80:
        kind, name = "i", "I"
    elif draw < 0.88:
        kind, name = "we", "we"
    else:
        kind, name = "they", f"{rng.choice(_grammar().women)} and {rng.choice(_grammar().men)}"
    subject, object_, possessive, ending = _FORMS[kind]
    as_object = object_ if kind in ("i", "we") else name
    return {"n": name, "m": as_object, "s": subject, "o": object_, "p": possessive, "z": ending}


def _fresh(state: _State, options: Sequence[str]) -> str:
    """Return one of ``options``, avoiding what the document has used where a few tries find another."""
    choice = state.rng.choice(options)
    for _ in range(6):
        if choice not in state.used:
            break
        choice = state.rng.choice(options)
    state.used.append(choice)
    return choice


def _word(state: _State, key: str, tag: str | None) -> str:
    """Return a word of list ``key``; with a ``tag``, the same word each time it is asked for."""
    if key == "season":
        return state.season
    if tag is not None and tag in state.bound:
        return state.bound[tag]
    lower = key.lower()
    words = _grammar().words
    options = words[lower] if lower in words else words[f"{lower}_{state.season}"]
    word = _expand(state, _fresh(state, options))
    if tag is not None:
        state.bound[tag] = word
    return word


def _expand(state: _State, frame: str, steady: Sequence[str] = ()) -> str:
    """Return ``frame`` with its tokens replaced, the first of each ``steady`` key by the word kept for it."""
    seen: list[str] = []

    def replace(match: re.Match[str]) -> str:
        key, tag, mark = match.groups()
        if mark:
            return state.person[mark]
        if tag is None and key in steady and key not in seen:
            tag = f"steady_{key}"
        seen.append(key)
        return _word(state, key, tag)

    return _TOKEN.sub(replace, frame)


def _sentence(state: _State, frames: Sequence[str], own: bool) -> str:
    """Return a finished sentence from one of ``frames``, which are the scene's ``own`` or shared ones."""
    steady = ("trade",) + (_STEADY if own else ()) + (_STEADY_LOCAL if state.local else ())
    text = _ARTICLE.sub(r"\1n ", _expand(state, _fresh(state, frames), steady))
    return text[0].upper() + text[1:]


def _frames(name: str, scene: Scene) -> Sequence[str]:
    """Return the shared frames called ``name`` that fit ``scene``: without a person, those that name none."""
    if scene.around == "aboard":
        name = "aboard"
    elif scene.around == "in" and name == "detail":
        name = "indoors"
    frames = _grammar().shared[name]
    return frames if scene.person else tuple(frame for frame in frames if "$" not in frame)


def _words(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _plan(scene: Scene) -> list[tuple[Sequence[str], float, bool]]:
    """Return the steps of ``scene`` in order: frames, chance of being kept, frames its own or not."""
    opening, first, then, after, closing = scene.slots
    person, aboard = scene.person, scene.around == "aboard"
    return [
        (opening, 1.0, True),
        (_frames("weather", scene), 0.4 if aboard else 0.75, False),
        (first, 1.0, True),
        (_frames("detail", scene), 0.5, False),
        (then, 1.0, True),
        (_frames("more", scene) if person else then, 0.3 if aboard else 0.5, not person),
        (then if person else first, 0.4, True),
        (_frames("meal", scene) if person else after, 0.45, not person),
        (after, 1.0, True),
        (_frames("detail", scene), 0.2, False),
        (closing, 1.0, True),
        (_frames("end" if person else "still", scene), 0.0 if aboard else 0.45, False),
    ]


def _compose(state: _State, scene: Scene) -> list[str]:
    """Return the sentences of one scene in order, the optional ones only while there is room for them."""
    kept = [step for step in _plan(scene) if state.rng.random() < step[1]]
    sentences = [_sentence(state, frames, own) for frames, _, own in kept]
    optional = [index for index, step in enumerate(kept) if step[1] < 1.0]
    while _words(sentences) > MAX_WORDS and optional:
        del sentences[optional.pop()]
    while _words(sentences) < MIN_WORDS:
        sentences.insert(2, _sentence(state, _frames("detail", scene), False))
    return sentences


@functools.lru_cache(maxsize=1024)
def prose(seed: int) -> str:
    """Return one document: a single block of 80 to 170 words, the same for the same ``seed`` everywhere."""
    rng = random.Random(seed)
    scene = rng.choice(_grammar().scenes)
    state = _State(rng, rng.choice(scene.seasons), _person(rng), scene.local)
    return " ".join(_compose(state, scene))


def neutral_texts(n: int = 240, *, first_seed: int = HELD_OUT_SEED) -> list[str]:
    """Return ``n`` held-out documents, those of the seeds ``first_seed`` .. ``first_seed + n - 1``."""
    return [prose(first_seed + offset) for offset in range(n)]


def validation_texts(n: int = 64) -> list[str]:
    """Return held-out documents that :func:`neutral_texts` does not give by default, for choosing strengths on."""
    return neutral_texts(n, first_seed=HELD_OUT_SEED + 1_000_000)
