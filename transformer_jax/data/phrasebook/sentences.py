"""Kinds of sentences, each a function that draws one, and the corpus made of them."""

import itertools
from collections.abc import Callable, Iterator
from random import Random

from transformer_jax.data.phrasebook.drawing import (
    DEFINITE,
    TAGGED,
    Limits,
    chance,
    draw_clause,
    draw_clock,
    draw_location,
    draw_subject,
    noun_phrase,
    pick_noun,
)
from transformer_jax.data.phrasebook.inflection import english_number, number
from transformer_jax.data.phrasebook.lexicon import (
    ADJECTIVES,
    CLASSIC_PAIRS,
    FREQUENCIES,
    MEN,
    NOUNS,
    SAYING_VERBS,
    VERBS,
    WOMEN,
    Adjective,
)
from transformer_jax.data.phrasebook.syntax import (
    HE,
    SHE,
    Clause,
    Name,
    NounPhrase,
    Phrase,
    Predicate,
    Pronoun,
    question,
    statement,
    with_subordinate,
)

SPLIT_SIZES = {"train": 38_000, "validation": 1_000, "test": 1_000}
MIN_WORDS, MAX_WORDS = 3, 14

BARE = Limits(adverbs=0.4, fronting=False)
"""For clauses inside longer sentences."""
PRESENT = Limits(tenses="present", negation=0.1, adverbs=0.3, fronting=False)
"""For wenn and bevor, and for what happens then."""


def _draw_statement(rng: Random) -> tuple[str, str]:
    return statement(draw_clause(rng))


def _draw_yes_no(rng: Random) -> tuple[str, str]:
    return question(draw_clause(rng, Limits(negation=0, adverbs=0.6, fronting=False)))


def _asking(clause: Clause) -> list[tuple[tuple[str, str], Clause]]:
    """Question words that a clause can answer, with what is then left of it."""
    verb, accusative, dative = clause.verb, clause.accusative, clause.dative
    asking = []
    if isinstance(accusative, NounPhrase) and accusative.stem != "kein":
        rest = clause._replace(accusative=None)
        person = "person" in accusative.noun.tags
        asking.append((("wen", "who") if person else ("was", "what"), rest))
        if not person and not accusative.adjective:
            which = NounPhrase(accusative.noun, "welch", plural=accusative.plural)
            words = which.german("acc"), which.english("acc")
            asking.append((words, rest))
        if not person and accusative.plural:
            many = NounPhrase(accusative.noun, "", plural=True)
            words = many.german("acc"), many.english("acc")
            asking.append(((f"wie viele {words[0]}", f"how many {words[1]}"), rest))
    if dative:
        rest = clause._replace(dative=None)
        if accusative:
            rest = rest._replace(predicate=Predicate("", "to"))
        asking.append((("wem", "who"), rest))
    if clause.complement and not clause.complement.english_preposition:
        form = {"acc": "wen", "dat": "wem"}[clause.complement.case]
        word = f"{clause.complement.preposition} {form}", "who"
        asking.append((word, clause._replace(complement=None)))
    if clause.complement and clause.complement.english_preposition == "to":
        word = "zu wem" if clause.complement.preposition == "zu" else "wohin"
        if word == "wohin":
            asking.append(((word, "where"), clause._replace(complement=None)))
    if verb and "place" in verb.flags and clause.tense != "perfect":
        asking.append((("wo", "where"), clause._replace(place=None)))
    momentary = verb is not None and "stative" not in verb.flags
    if momentary and clause.tense in ("present", "past") and not clause.frequency:
        asking.append((("wann", "when"), clause._replace(time=None)))
    return asking


def _draw_wh_question(rng: Random) -> tuple[str, str]:
    limits = Limits(negation=0, adverbs=0.5, fronting=False)
    clause = draw_clause(rng, limits)
    kind = rng.random()
    if kind < 0.15 and clause.verb and "person" in clause.verb.subjects:
        clause = clause._replace(subject=Name("wer"))
        return question(clause, ("wer", "who"), asks_subject=True)
    if kind < 0.3:
        clause = draw_clause(rng, limits._replace(negation=0.3))
        return question(clause, ("warum", "why"))
    asking = _asking(clause)
    if not asking:
        return question(clause, ("warum", "why"))
    words, rest = rng.choice(asking)
    return question(rest, words)


def _fitting_adjectives(subject: Phrase) -> list[Adjective]:
    tags = subject.noun.tags if isinstance(subject, NounPhrase) else {"person"}
    return [word for word in ADJECTIVES if word.tags & tags]


def _draw_being(rng: Random, *, bare: bool = False, past: float = 0.35) -> Clause:
    """A clause with the verb be: what somebody or something is like, or where."""
    tags = ("person", "person", "person", "animal", "food", "drink", "goods", "text")
    subject = draw_subject(rng, (*tags, "place", "vehicle"), DEFINITE)
    if isinstance(subject, NounPhrase):
        subject = subject._replace(adjective=None, very=False)
    clause = Clause(
        subject,
        tense="past" if chance(rng, past) else "present",
        negative=chance(rng, 0.15),
    )
    movable = not isinstance(subject, NounPhrase) or (
        subject.noun.tags & {"animal", "small"}
    )
    if movable and chance(rng, 0.15):
        place = draw_location(rng)
        words = Predicate(place.german(), place.english())
        return clause._replace(predicate=words)
    chosen = rng.choice(_fitting_adjectives(subject))
    degrees = [("", ""), ("", ""), ("sehr ", "very "), ("zu ", "too ")]
    german, english = rng.choice(degrees if chosen.comparative else degrees[:1])
    words = Predicate(german + chosen.german, english + chosen.english)
    clause = clause._replace(predicate=words)
    if "mood" not in chosen.tags or clause.negative or bare:
        return clause
    if clause.tense == "past" and chance(rng, 0.4):
        return clause._replace(time=("gestern", "yesterday"), front="time")
    if chance(rng, 0.3):
        return clause._replace(frequency=rng.choice(list(FREQUENCIES.items())))
    return clause


def _draw_description(rng: Random) -> tuple[str, str]:
    clause = _draw_being(rng)
    asks = chance(rng, 0.2) and not clause.negative
    return question(clause._replace(front="subject")) if asks else statement(clause)


def _draw_comparison(rng: Random) -> tuple[str, str]:
    """X is older than Y, both of one kind."""
    tag = rng.choice(("person", "animal", "food", "drink", "goods", "text", "vehicle"))
    subject = noun_phrase(rng, rng.choice(TAGGED[tag]), stems=DEFINITE, adjective=0)
    other = noun_phrase(
        rng, pick_noun(rng, (tag,), subject), stems=DEFINITE, adjective=0
    )
    words = [
        word
        for word in _fitting_adjectives(subject)
        if word.comparative and word.tags & other.noun.tags
    ]
    chosen = rng.choice(words)
    predicate = Predicate(
        f"{chosen.comparative} als {other.german('nom')}",
        f"{chosen.english_comparative} than {other.english('nom')}",
    )
    return statement(Clause(subject, predicate=predicate, negative=chance(rng, 0.15)))


PROFESSIONS = (
    (("Lehrer", "teacher"), ("Student", "student"), ("Koch", "cook")),
    (("Lehrerin", "teacher"), ("Studentin", "student"), ("Ärztin", "doctor")),
)
"""For men and for women; German says them with no article."""


def _draw_profession(rng: Random) -> tuple[str, str]:
    woman = chance(rng, 0.5)
    nouns = ("Schwester", "Mutter", "Tante") if woman else ("Bruder", "Vater", "Onkel")
    noun = rng.choice([noun for noun in NOUNS if noun.singular in nouns])
    subject = rng.choice(
        (
            Pronoun(rng.choice((0, 1, SHE if woman else HE))),
            Name(rng.choice(WOMEN if woman else MEN)),
            noun_phrase(rng, noun, stems=("poss",), plural=0, adjective=0.2),
        )
    )
    german, english = rng.choice(PROFESSIONS[woman])
    return statement(Clause(subject, predicate=Predicate(german, f"a {english}")))


def _draw_number(rng: Random) -> tuple[str, str]:
    """Prices, ages and the time of day."""
    amount, kind = rng.randint(2, 99), rng.random()
    if kind < 0.4:
        noun = pick_noun(rng, ("food", "drink", "goods"))
        thing = noun_phrase(rng, noun, stems=DEFINITE)
        german, english = thing.german("nom"), thing.english("nom")
        if chance(rng, 0.15):
            verb, do = ("kosten", "do") if thing.plural else ("kostet", "does")
            return f"wie viel {verb} {german}?", f"how much {do} {english} cost?"
        verb, cost = ("kosten", "cost") if thing.plural else ("kostet", "costs")
        price = f"{number(amount)} Euro", f"{english_number(amount)} euros"
        return f"{german} {verb} {price[0]}", f"{english} {cost} {price[1]}"
    if kind < 0.85:
        subject = draw_subject(rng, ("person", "person", "animal"), DEFINITE)
        if isinstance(subject, NounPhrase) and "animal" in subject.noun.tags:
            amount = rng.randint(2, 20)
        if chance(rng, 0.15):
            return question(Clause(subject), ("wie alt", "how old"))
        predicate = Predicate(
            f"{number(amount)} Jahre alt", f"{english_number(amount)} years old"
        )
        return statement(Clause(subject, predicate=predicate))
    german, english = draw_clock(rng)
    now = rng.choice((("", ""), ("schon ", "already "), ("erst ", "only ")))
    time = german.removeprefix("um "), english.removeprefix("at ")
    return f"es ist {now[0]}{time[0]}", f"it is {now[1]}{time[1]}"


def _inner(rng: Random, main: Clause, limits: Limits = BARE) -> Clause:
    """A clause to go with `main`: doing something or being somehow, and of another."""
    if chance(rng, 0.25):
        past = 0.35 if "past" in limits.tenses else 0.0
        clause = _draw_being(rng, bare=True, past=past)
    else:
        clause = draw_clause(rng, limits)
    same = clause.subject == main.subject and not isinstance(main.subject, Pronoun)
    return _inner(rng, main, limits) if same else clause


def _draw_reason(rng: Random) -> tuple[str, str]:
    """weil and obwohl: any tense on either side."""
    conjunction = rng.choice(
        (("weil", "because"), ("weil", "because"), ("obwohl", "although"))
    )
    main = draw_clause(rng, BARE._replace(negation=0.1))
    return with_subordinate(
        main, conjunction, _inner(rng, main), first=chance(rng, 0.4)
    )


def _draw_condition(rng: Random) -> tuple[str, str]:
    """wenn and bevor: present on both sides."""
    main = draw_clause(rng, PRESENT._replace(tenses="present modal"))
    if chance(rng, 0.3):
        doing = [verb for verb in VERBS if "stative" not in verb.flags]
        limits = PRESENT._replace(negation=0, adverbs=0)
        before = draw_clause(rng, limits, rng.choice(doing))
        main = draw_clause(rng, PRESENT, rng.choice(doing))
        return with_subordinate(
            main, ("bevor", "before"), before, first=chance(rng, 0.4)
        )
    condition = _inner(rng, main, PRESENT)
    return with_subordinate(main, ("wenn", "when"), condition, first=chance(rng, 0.6))


def _draw_report(rng: Random) -> tuple[str, str]:
    """Clauses with dass, ob and question words, after verbs of saying and knowing."""
    subject = draw_subject(rng, ("person",), DEFINITE)
    kind = rng.random()
    if kind < 0.65:
        verb = rng.choice(("wissen", "glauben", "hoffen", "sagen"))
        main = Clause(subject, SAYING_VERBS[verb])
        return with_subordinate(main, ("dass", "that"), _inner(rng, main), first=False)
    if chance(rng, 0.5):
        main = Clause(subject, SAYING_VERBS["fragen"])
    else:
        main = Clause(subject, SAYING_VERBS["wissen"], negative=True)
    if kind < 0.8:
        return with_subordinate(main, ("ob", "whether"), _inner(rng, main), first=False)
    clause = draw_clause(rng, BARE._replace(negation=0))
    words = [(("warum", "why"), clause)]
    words += [pair for pair in _asking(clause) if pair[0][0] != "wem"]
    word, rest = rng.choice(words)
    return with_subordinate(main, word, rest, first=False)


KINDS: dict[Callable[[Random], tuple[str, str]], float] = {
    _draw_statement: 40,
    _draw_yes_no: 9,
    _draw_wh_question: 11,
    _draw_description: 9,
    _draw_comparison: 4,
    _draw_profession: 0.6,
    _draw_number: 5,
    _draw_reason: 9,
    _draw_condition: 7,
    _draw_report: 9,
}
"""What is drawn, and how often."""


def draw_pairs(seed: int = 0) -> Iterator[tuple[str, str]]:
    """Endless German–English pairs, 3 to 14 words a side, repetitions included."""
    rng = Random(seed)
    kinds, cumulative = list(KINDS), list(itertools.accumulate(KINDS.values()))
    while True:
        pair = rng.choices(kinds, cum_weights=cumulative)[0](rng)
        if all(MIN_WORDS <= len(side.split()) <= MAX_WORDS for side in pair):
            yield pair


def phrasebook_pairs(seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """The corpus by split: no German and no English sentence comes twice, anywhere.

    The classic pairs open the training split.
    """
    total = sum(SPLIT_SIZES.values())
    pairs = list(CLASSIC_PAIRS)
    sources, targets = (set(side) for side in zip(*pairs, strict=True))
    for source, target in draw_pairs(seed):
        if len(pairs) == total:
            break
        if source in sources or target in targets:
            continue
        sources.add(source)
        targets.add(target)
        pairs.append((source, target))
    remaining = iter(pairs)
    return {
        split: list(itertools.islice(remaining, size))
        for split, size in SPLIT_SIZES.items()
    }
