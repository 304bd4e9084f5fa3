"""Random clauses: what can be said with a verb of the lexicon, and drawn from it.

Choices that could make German say two things are never drawn: objects go to the front
only where their case shows (den, dem), and sie is always a subject.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from transformer_jax.data.phrasebook.inflection import (
    ACCUSATIVES,
    clock,
    english_number,
    number,
)
from transformer_jax.data.phrasebook.lexicon import (
    ADJECTIVES,
    FREQUENCIES,
    FUTURE_TIMES,
    MEN,
    NOUNS,
    PAST_TIMES,
    USUAL_TIMES,
    VERBS,
    WEEKDAYS,
    WOMEN,
    Noun,
    Verb,
)
from transformer_jax.data.phrasebook.syntax import (
    MODALS,
    Clause,
    Modal,
    Name,
    NounPhrase,
    Phrase,
    Place,
    Pronoun,
)

POSSESSIVES = ("mein", "dein", "sein", "unser", "euer")
"""Not ihr: her and their would look the same."""

ANY = ("der",) * 4 + ("ein",) * 4 + ("poss",) * 2 + ("dies",)
DEFINITE = ("der",) * 4 + ("poss",) * 2 + ("dies",)
SUBJECT = (*DEFINITE * 2, "ein", "jed")
DENIED = (*DEFINITE, *("kein",) * 7)
"""Article words to draw from: stems of `DETERMINERS`, and poss for a possessive."""

TAGGED = {
    tag: tuple(noun for noun in NOUNS if tag in noun.tags)
    for tag in sorted(frozenset[str]().union(*(noun.tags for noun in NOUNS)))
}

LOCATIONS = (
    ("in", "in", "place"),
    ("in", "in", "place"),
    ("vor", "in front of", "building"),
    ("hinter", "behind", "building"),
    ("neben", "next to", "furniture"),
)
UNDER = ("unter", "under", "furniture")
"""Where animals are, and people seldom."""


class Limits(NamedTuple):
    """What a clause may have, because of what it stands in."""

    tenses: str = "present progressive future past perfect modal"
    """Names of tenses; modal stands for the present of a modal verb."""
    negation: float = 0.18
    """Probability."""
    adverbs: float = 1.0
    """Factor on the probabilities of places, times and companions."""
    fronting: bool = True
    """Whether something else than the subject may stand first."""


TENSE_WEIGHTS = {
    "present": 6,
    "progressive": 3,
    "future": 3,
    "past": 6,
    "perfect": 2,
    "modal": 6,
}


def chance(rng: Random, probability: float) -> bool:
    """True with this probability."""
    return rng.random() < probability


def pick_noun(rng: Random, tags: Sequence[str], but: Phrase | None = None) -> Noun:
    """A noun with one of the tags, and not the one that `but` has."""
    taken = but.noun if isinstance(but, NounPhrase) else None
    return rng.choice([noun for noun in TAGGED[rng.choice(tags)] if noun != taken])


def noun_phrase(
    rng: Random,
    noun: Noun,
    *,
    stems: Sequence[str] = ANY,
    plural: float = 0.25,
    adjective: float = 0.3,
) -> NounPhrase:
    """A noun with an article word and perhaps an adjective.

    Plurals of ein are bare, numbered, or many. Bare ones need a form of
    their own (not Kuchen). Family is somebody's (my aunt); parks and trains are
    nobody's, and mein Mann is not my man but my husband.
    """
    stem, count = rng.choice(stems), ""
    if "kin" in noun.tags and stem != "der":
        stem = "poss"
    if "public" in noun.tags and stem == "poss":
        stem = "der"
    many = bool(noun.plural) and stem != "jed" and chance(rng, plural)
    if stem == "poss":
        stem = rng.choice(POSSESSIVES)
    if many and stem == "ein":
        value = rng.randint(2, 12)
        bare = "" if noun.plural != noun.singular else "viel"
        stem = rng.choice((bare, "viel", number(value)))
        count = english_number(value) if stem == number(value) else ""
    chosen, very = None, False
    if chance(rng, adjective):
        fitting = [word for word in ADJECTIVES if word.tags & noun.tags]
        chosen = rng.choice(fitting) if fitting else None
        very = bool(chosen and chosen.comparative) and chance(rng, 0.12)
    return NounPhrase(noun, stem, count, many, chosen, very)


def draw_subject(
    rng: Random, tags: Sequence[str], stems: Sequence[str] = SUBJECT
) -> Phrase:
    """A pronoun, a name or a noun with one of the tags."""
    tag = rng.choice(tags)
    if tag == "person" and chance(rng, 0.5):
        return Pronoun(rng.randrange(7))
    if tag == "person" and chance(rng, 0.2):
        return Name(rng.choice(WOMEN + MEN))
    noun = rng.choice(TAGGED[tag])
    return noun_phrase(rng, noun, stems=stems, plural=0.3, adjective=0.2)


def draw_object(
    rng: Random,
    subject: Phrase,
    tags: Sequence[str],
    *,
    pronoun: bool,
    accusative: bool = False,
    stems: Sequence[str] = ANY,
) -> Phrase:
    """An object; never the speaker or listener that the subject already holds."""
    if "person" in tags and pronoun and chance(rng, 0.3):
        same = {0: (0, 4), 4: (0, 4), 1: (1, 5), 5: (1, 5)}.get(subject.person, ())
        persons = [p for p in range(7) if p not in same]
        if accusative:
            persons = [p for p in persons if ACCUSATIVES[p]]
        return Pronoun(rng.choice(persons))
    if "person" in tags and chance(rng, 0.1):
        name = subject.name if isinstance(subject, Name) else ""
        return Name(rng.choice([n for n in WOMEN + MEN if n != name]))
    return noun_phrase(rng, pick_noun(rng, tags, subject), stems=stems)


def draw_location(rng: Random, subject: Phrase | None = None) -> Place:
    """Where something happens: in, in front of, next to … with the dative."""
    animal = isinstance(subject, NounPhrase) and "animal" in subject.noun.tags
    german, english, tag = (
        UNDER if animal and chance(rng, 0.4) else rng.choice(LOCATIONS)
    )
    return Place(german, english, _spot(rng, tag), "dat")


def _spot(rng: Random, tag: str) -> NounPhrase:
    noun = rng.choice(TAGGED[tag])
    return noun_phrase(rng, noun, stems=DEFINITE, plural=0.0, adjective=0.15)


def draw_clock(rng: Random) -> tuple[str, str]:
    """A time of day with um; the o'clock times come more often."""
    minutes = rng.choice((0, 0, 0, 30, 30, 15, 45, 5, 10, 20, 40, 50, 55))
    german, english = clock(rng.randint(1, 12), minutes)
    return f"um {german}", f"at {english}"


def draw_time(rng: Random, days: dict[str, str]) -> tuple[str, str]:
    """A day, or a day and a time of day."""
    day = rng.choice(list(days.items()))
    if day[0].endswith(("Abend", "Woche", "Jahr", "bald")) or chance(rng, 0.8):
        return day
    hour = draw_clock(rng)
    return f"{day[0]} {hour[0]}", f"{day[1]} {hour[1]}"


def _draw_tense(rng: Random, verb: Verb, limits: Limits) -> str:
    allowed = limits.tenses.split()
    if "stative" in verb.flags:
        fitting = ["present"] + ["modal"] * ("can" in verb.flags)
        fitting += ["past"] * bool(verb.participle)
        allowed = [tense for tense in allowed if tense in fitting] or ["present"]
    if not verb.participle:
        allowed = [t for t in allowed if t not in ("past", "perfect")] or ["present"]
    return rng.choices(allowed, [TENSE_WEIGHTS[tense] for tense in allowed])[0]


def _draw_modal(rng: Random, verb: Verb, subject: Phrase) -> Modal:
    """Any for people and animals; things do not want, and need no permission."""
    if "can" in verb.flags:
        return MODALS[0]
    alive = not isinstance(subject, NounPhrase) or subject.noun.tags & {
        "person",
        "animal",
    }
    lifeless = [m for m in MODALS if m.german in ("können", "müssen", "sollen")]
    return rng.choice(MODALS if alive else lifeless)


def _add_objects(rng: Random, clause: Clause, verb: Verb) -> Clause:
    """Draw what the verb's frame asks for."""
    pronoun, subject = "pronoun" in verb.flags, clause.subject
    settled = clause.negative or clause.tense == "perfect"
    known = clause.tense == "perfect" or "known" in verb.flags
    stems = DEFINITE if known else DENIED if clause.negative else ANY
    for role, tags in verb.frame.items():
        if role == "acc":
            thing = draw_object(
                rng, subject, tags, pronoun=pronoun, accusative=True, stems=stems
            )
            clause = clause._replace(accusative=thing)
        elif role == "dat":
            person = draw_object(
                rng,
                subject,
                tags,
                pronoun=pronoun,
                stems=DEFINITE if settled else (*DEFINITE * 2, "ein"),
            )
            clause = clause._replace(dative=person)
        else:
            clause = clause._replace(complement=_complement(rng, clause, role, tags))
    return clause


def _complement(
    rng: Random, clause: Clause, role: str, tags: Sequence[str]
) -> Place | None:
    """What the verb asks for by preposition; goals may be people (zu, to)."""
    verb = clause.verb
    if verb is None:
        return None
    preposition, case = role.split("+")
    if verb.english[0].split()[-1] in ("for", "to", "of"):
        phrase = draw_object(
            rng, clause.subject, tags, pronoun=True, accusative=case == "acc"
        )
        return Place(preposition, "", phrase, case)
    if "to" in verb.flags and chance(rng, 0.25):
        return _company(rng, clause, "zu", "to", "dat")
    english = {"in+acc": "to", "in+dat": "in"}.get(role, "on")
    return Place(preposition, english, _spot(rng, rng.choice(tags)), case)


def _company(
    rng: Random, clause: Clause, preposition: str, english: str, case: str
) -> Place:
    phrase = draw_object(
        rng,
        clause.subject,
        ("person",),
        pronoun=True,
        accusative=case == "acc",
        stems=DEFINITE,
    )
    return Place(preposition, english, phrase, case)


def _is_person(phrase: Phrase) -> bool:
    return not isinstance(phrase, NounPhrase) or "person" in phrase.noun.tags


def _add_company(rng: Random, clause: Clause, verb: Verb) -> Clause:
    """With whom, without whom, for whom, to whom, where the verb leaves it open."""
    if clause.complement or clause.negative or not _is_person(clause.subject):
        return clause
    options = []
    if "with" in verb.flags:
        options += [("mit", "with", "dat"), ("ohne", "without", "acc")]
    if "for" in verb.flags:
        options += [("für", "for", "acc")]
    if "to" in verb.flags:
        options += [("zu", "to", "dat")]
    if not options:
        return clause
    return clause._replace(complement=_company(rng, clause, *rng.choice(options)))


def _add_time(rng: Random, clause: Clause, verb: Verb, adverbs: float) -> Clause:
    """When or how often, as tense allows; the future needs its time."""
    tense = clause.tense
    if tense == "future":
        return clause._replace(time=draw_time(rng, FUTURE_TIMES | WEEKDAYS))
    if tense in ("progressive", "perfect") or (
        tense == "present" and "stative" in verb.flags
    ):
        return clause
    if not chance(rng, 0.45 * adverbs):
        return clause
    if tense == "past":
        return clause._replace(time=draw_time(rng, PAST_TIMES | WEEKDAYS))
    if clause.modal:
        return clause._replace(time=draw_time(rng, FUTURE_TIMES | WEEKDAYS))
    if clause.negative or chance(rng, 0.4):
        return clause._replace(time=draw_clock(rng))
    if chance(rng, 0.5):
        return clause._replace(frequency=rng.choice(list(FREQUENCIES.items())))
    return clause._replace(time=rng.choice(list(USUAL_TIMES.items())))


def _shows_case(phrase: Phrase | None) -> bool:
    """Whether it is plain from the article that this is no subject."""
    return (
        isinstance(phrase, NounPhrase)
        and phrase.stem in ("der", "dies", *POSSESSIVES)
        and not phrase.plural
    )


def _draw_front(rng: Random, clause: Clause) -> str:
    if clause.time and chance(rng, 0.45):
        return "time"
    if clause.place and not clause.negative and chance(rng, 0.25):
        return "place"
    accusative, dative = clause.accusative, clause.dative
    if not chance(rng, 0.25) or clause.tense == "perfect":
        return "subject"
    if isinstance(accusative, NounPhrase) and _shows_case(accusative):
        return "accusative" if accusative.gender == "m" else "subject"
    if accusative is None and isinstance(dative, NounPhrase) and _shows_case(dative):
        return "dative" if dative.gender in "mn" else "subject"
    return "subject"


def draw_clause(
    rng: Random, limits: Limits | None = None, verb: Verb | None = None
) -> Clause:
    """A clause around a verb of the lexicon."""
    limits = limits or Limits()
    verb = verb or rng.choice(VERBS)
    tense = _draw_tense(rng, verb, limits)
    negative = chance(rng, limits.negation * (2 if tense == "perfect" else 1))
    negative = negative and tense != "progressive"
    # A doubtful reading ("jeder … nicht", "kein … nicht") is left out.
    settled = negative or "stative" in verb.flags or bool(verb.frame.keys() == {"dat"})
    subject = draw_subject(
        rng, sorted(verb.subjects), stems=DEFINITE if settled else SUBJECT
    )
    modal = _draw_modal(rng, verb, subject) if tense == "modal" else None
    tense = "present" if modal else tense
    clause = Clause(subject, verb, tense=tense, modal=modal, negative=negative)
    clause = _add_objects(rng, clause, verb)
    if chance(rng, 0.25 * limits.adverbs):
        clause = _add_company(rng, clause, verb)
    if "place" in verb.flags and tense != "perfect" and not clause.complement:
        where = chance(rng, 0.3 * limits.adverbs)
        clause = clause._replace(place=draw_location(rng, subject) if where else None)
    clause = _add_time(rng, clause, verb, limits.adverbs)
    if limits.fronting:
        clause = clause._replace(front=_draw_front(rng, clause))
    return clause
