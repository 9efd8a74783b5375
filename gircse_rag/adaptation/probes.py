"""Sentences of everyday life with graded similarity: they show and prevent forgetting.

They are made from templates, ours, so they may ship with the package. Half of the templates are probes, which are only
measured; the other half is rehearsed during training.

    grade 3   the same in other words
    grade 2   the same statement about another thing
    grade 1   the same statement about other people and things
    grade 0   another statement
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gircse_rag.evaluation.metrics import spearman
from gircse_rag.prompts import INSTRUCTIONS
from gircse_rag.training.data import Row

INSTRUCTION = INSTRUCTIONS["similar_sentence"]
REHEARSAL = "rehearsal"
"""Name of the training task of rehearsed sentences."""
PROBES = 96
"""Sentence pairs that are measured."""

_PEOPLE = ("The teacher", "My neighbour", "A young woman", "The old man", "The engineer", "Her brother")
_TEXT = """\
{who} bought {thing} at the market.
At the market, {who} paid for {thing}.
apples, a lamp, a bicycle, fresh bread

{who} forgot {thing} on the train.
{thing} was left behind on the train by {who}.
an umbrella, a laptop, the keys, a red scarf

{who} is afraid of {thing}.
{thing} frighten {who}.
large dogs, thunderstorms, exams, high bridges

{who} has repaired {thing}.
{thing} works again, because {who} fixed it.
the radio, the boiler, the printer, the tractor

{who} will travel to {thing} in spring.
In spring, {who} is going on a trip to {thing}.
Norway, Brazil, Japan, Morocco

{who} cannot stand {thing}.
{who} dislikes {thing} very much.
jazz music, cold soup, crowded buses, loud neighbours

{who} wrote a letter about {thing}.
{thing} was the subject of a letter from {who}.
the new tax, the harvest, the school, the broken road

{who} teaches {thing} to children.
Children learn {thing} from {who}.
chess, swimming, French, arithmetic

{who} sold {thing} last week.
Last week {who} found a buyer for {thing}.
the house, an old piano, two horses, the company

{who} waited for {thing} for two hours.
It took two hours until {thing} came, and {who} waited.
the bus, the doctor, the plumber, a phone call

{who} complained about {thing}.
{who} was not satisfied with {thing} and said so.
the noise, the hotel, the delay, the bill

{who} is reading a book about {thing}.
{thing} is the topic of the book that {who} reads.
whales, the Roman Empire, volcanoes, gardening

{who} dreams of {thing}.
{who} would love to have {thing} one day.
a sailing boat, a quiet life, fame, a farm

{who} noticed {thing} in the garden.
In the garden, {thing} caught the eye of {who}.
a fox, a strange smell, footprints, smoke

{who} lost {thing} in a bet.
Because of a bet, {who} no longer has {thing}.
a gold watch, a lot of money, the car, a bottle of wine

{who} postponed {thing} until Monday.
{thing} was moved to Monday by {who}.
the meeting, the operation, the concert, the wedding

{who} trained hard for {thing}.
To prepare for {thing}, {who} exercised a lot.
the marathon, the final, the Olympic Games, the climb

{who} apologised for {thing}.
{who} said sorry because of {thing}.
the mistake, being late, the harsh words, the damage

{who} invested the savings in {thing}.
The savings of {who} went into {thing}.
a bakery, shares, solar panels, a vineyard

{who} painted {thing}.
There is a painting of {thing} by {who}.
a harbour, a portrait of the mayor, a winter forest, a bowl of fruit

{who} refused to eat {thing}.
{thing} was served, but {who} did not touch it.
fish, the cake, spinach, raw meat

{who} warned us about {thing}.
We were told by {who} to beware of {thing}.
the ice on the road, pickpockets, the storm, a false website

{who} proved that {thing} is possible.
Thanks to {who} we know that {thing} can be done.
such a flight, the cure, cheap recycling, the shortcut

{who} missed {thing} because of the traffic.
The traffic made {who} too late for {thing}.
the plane, the interview, the start of the film, dinner"""
"""Per template: one wording, another wording, and what {thing} may be."""

_TEMPLATES: list[tuple[str, str, list[str]]] = [
    (one, other, things.split(", "))
    for one, other, things in (paragraph.splitlines() for paragraph in _TEXT.split("\n\n"))
]


@dataclass(frozen=True)
class Probes:
    """Sentence pairs with grades from 0 to 3: n of each."""

    first: list[str]
    second: list[str]
    grades: list[int]


def _say(template: int, wording: int, who: int, thing: int) -> str:
    one, other, things = _TEMPLATES[template]
    text = (one, other)[wording]
    person = _PEOPLE[who]
    if not text.startswith("{who}"):
        person = person[0].lower() + person[1:]
    said = text.format(who=person, thing=things[thing])
    return said[0].upper() + said[1:]


def make_probes(count: int = PROBES, seed: int = 0) -> Probes:
    """Make `count` sentence pairs, from the even templates; 96 have a quarter of each grade."""
    draw = np.random.default_rng(seed)
    templates = list(range(0, len(_TEMPLATES), 2))
    first, second, grades = [], [], []
    for number in range(count):
        template, grade = templates[number % len(templates)], number // len(templates) % 4
        who, thing = int(draw.integers(len(_PEOPLE))), int(draw.integers(4))
        other_who = (who + 1 + int(draw.integers(len(_PEOPLE) - 1))) % len(_PEOPLE)
        other_thing = (thing + 1 + int(draw.integers(3))) % 4
        first.append(_say(template, 0, who, thing))
        other = template if grade else templates[(number + 1 + int(draw.integers(len(templates) - 1))) % len(templates)]
        second.append(_say(other, 1, other_who if grade < 2 else who, other_thing if grade < 3 else thing))
        grades.append(grade)
    return Probes(first, second, grades)


def make_rehearsal(count: int, seed: int = 0) -> list[Row]:
    """Make up to `count` training rows from the odd templates: a sentence, its paraphrase, and one about another thing.

    There are 288 different rows.
    """
    places = [
        (template, who, thing)
        for template in range(1, len(_TEMPLATES), 2)
        for who in range(len(_PEOPLE))
        for thing in range(4)
    ]
    rows = []
    for index in np.random.default_rng(seed).permutation(len(places))[:count]:
        template, who, thing = places[int(index)]
        said = [_say(template, *rest) for rest in ((0, who, thing), (1, who, thing), (1, who, (thing + 1) % 4))]
        rows.append(Row(REHEARSAL, *said))
    return rows


def rank_correlation(similarities: np.ndarray, grades: list[int]) -> float:
    """Spearman's correlation of the pairs' similarities (n,) with their grades."""
    return spearman(np.asarray(similarities, dtype=np.float64), np.asarray(grades, dtype=np.float64), seed=0).value
