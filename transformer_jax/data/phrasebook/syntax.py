"""Word order: a clause is put together once and spoken in both languages.

German: the finite verb stands second (first in questions, last in subordinate
clauses), and what belongs to it (prefix, participle, infinitive) closes the clause.
Between them: pronouns, dative, time, definite accusative, nicht, place, indefinite
accusative, complement. English: subject, verb, objects, complement, place, time.
"""

from typing import NamedTuple, Protocol

from transformer_jax.data.phrasebook.inflection import (
    ACCUSATIVES,
    DATIVES,
    DETERMINERS,
    ENGLISH_OBJECTS,
    ENGLISH_SUBJECTS,
    PERSONS,
    WAR,
    adjective,
    agree,
    determiner,
    finite,
    german_preposition,
    ing_form,
    noun,
    present,
    to_be,
    with_articles,
)
from transformer_jax.data.phrasebook.lexicon import Adjective, Noun, Verb

HE, SHE, THEY = 2, 3, 6


class Phrase(Protocol):
    """What can be a subject or an object."""

    @property
    def person(self) -> int: ...
    @property
    def definite(self) -> bool: ...
    def german(self, case: str) -> str: ...
    def english(self, case: str) -> str: ...


class Pronoun(NamedTuple):
    """ich, mich, mir … by grammatical person."""

    person: int
    definite: bool = True

    def german(self, case: str) -> str:
        forms = {"nom": PERSONS, "acc": ACCUSATIVES, "dat": DATIVES}[case]
        return forms[self.person].split()[0]

    def english(self, case: str) -> str:
        forms = ENGLISH_SUBJECTS if case == "nom" else ENGLISH_OBJECTS
        return forms[self.person]


class Name(NamedTuple):
    """A first name, the same everywhere but for the capital."""

    name: str
    person: int = HE
    definite: bool = True

    def german(self, case: str) -> str:
        return self.name

    def english(self, case: str) -> str:
        return self.name.lower()


class NounPhrase(NamedTuple):
    """Article word, adjective, noun."""

    noun: Noun
    stem: str
    """A stem of DETERMINERS; or a German number."""
    count: str = ""
    """The number in English, where there is one."""
    plural: bool = False
    adjective: Adjective | None = None
    very: bool = False

    @property
    def person(self) -> int:
        return THEY if self.plural else HE

    @property
    def definite(self) -> bool:
        return DETERMINERS.get(self.stem, ({}, "a", ""))[1] not in ("", "a", "every")

    @property
    def gender(self) -> str:
        """Column of the tables."""
        return "p" if self.plural else self.noun.gender

    def german(self, case: str) -> str:
        words = [determiner(self.stem, case, self.gender)]
        if self.adjective:
            words += ["sehr"] * self.very
            words.append(adjective(self.adjective.german, self.stem, case, self.gender))
        return " ".join(filter(None, [*words, noun(self.noun, case, self.plural)]))

    def english(self, case: str) -> str:
        singular, plural = DETERMINERS.get(self.stem, ({}, "", ""))[1:]
        word = self.count or (plural if self.plural else singular)
        # Drinks have no plural here, and English asks for "any" of what one pours.
        if self.stem == "kein" and "drink" in self.noun.tags:
            word = "any"
        words = [word]
        if self.adjective:
            words += ["very"] * self.very
            words.append(self.adjective.english)
        words.append(self.noun.english_plural if self.plural else self.noun.english)
        return " ".join(filter(None, words))


class Place(NamedTuple):
    """Preposition and phrase; the English verb may hold its own (wait for)."""

    preposition: str
    english_preposition: str
    phrase: Phrase
    case: str

    def german(self) -> str:
        return german_preposition(self.preposition, self.phrase.german(self.case))

    def english(self) -> str:
        return f"{self.english_preposition} {self.phrase.english(self.case)}".strip()


class Modal(NamedTuple):
    """A modal verb; in English an auxiliary (can) or a verb of its own (want to)."""

    german: str
    english: str
    kind: str
    """auxiliary, be (am allowed to) or verb."""


MODALS = (
    Modal("können", "can", "auxiliary"),
    Modal("müssen", "have to", "verb"),
    Modal("dürfen", "allowed to", "be"),
    Modal("sollen", "should", "auxiliary"),
    Modal("möchten", "want to", "verb"),
    Modal("wollen", "want to", "verb"),
)


class Predicate(NamedTuple):
    """What follows be (adjective, comparison, place), or a stranded preposition."""

    german: str
    english: str


class Clause(NamedTuple):
    """One clause; `verb` None is the verb be with a `predicate`."""

    subject: Phrase
    verb: Verb | None = None
    tense: str = "present"
    """present, progressive (gerade), future (by its time), past or perfect (schon)."""
    modal: Modal | None = None
    predicate: Predicate | None = None
    dative: Phrase | None = None
    accusative: Phrase | None = None
    complement: Place | None = None
    place: Place | None = None
    time: tuple[str, str] | None = None
    frequency: tuple[str, str] | None = None
    negative: bool = False
    front: str = "subject"
    """subject, time, place, accusative, dative, or clause (one that went before)."""

    @property
    def has_kein(self) -> bool:
        """Whether the negation is in the object."""
        return (
            isinstance(self.accusative, NounPhrase) and self.accusative.stem == "kein"
        )


def _verb_group(clause: Clause) -> tuple[str, str, str]:
    """German finite verb, what closes a main clause, and the end of a subordinate."""
    person, verb = clause.subject.person, clause.verb
    if verb is None:
        form = WAR[person] if clause.tense == "past" else present("sein", person)
        return form, "", form
    if clause.modal:
        infinitive = verb.prefix + verb.infinitive
        form = present(clause.modal.german, person)
        return form, infinitive, f"{infinitive} {form}"
    if clause.tense in ("past", "perfect"):
        form = present(verb.auxiliary, person)
        return form, verb.participle, f"{verb.participle} {form}"
    form = finite(verb, person)
    return form, verb.prefix, verb.prefix + form


def _negation(clause: Clause) -> str:
    """nicht, noch nicht, schon or nothing; kein stands in its own phrase."""
    if clause.tense == "perfect":
        return "noch nicht" if clause.negative else "schon"
    return "nicht" if clause.negative and not clause.has_kein else ""


def _middle(clause: Clause) -> list[str]:
    """The German middle field, without what stands in front."""
    accusative, dative = clause.accusative, clause.dative
    early = accusative is not None and accusative.definite
    spoken_accusative = (
        accusative.german("acc") if accusative and clause.front != "accusative" else ""
    )
    pronoun = isinstance(accusative, Pronoun)
    time = clause.time[0] if clause.time and clause.front != "time" else ""
    # nicht follows what it denies: "ich kaufe das Buch morgen nicht".
    late_time = early and not pronoun and _negation(clause) == "nicht"
    return [
        spoken_accusative if pronoun else "",
        dative.german("dat") if dative and clause.front != "dative" else "",
        "" if late_time else time,
        "gerade" if clause.tense == "progressive" else "",
        clause.frequency[0] if clause.frequency else "",
        spoken_accusative if early and not pronoun else "",
        time if late_time else "",
        _negation(clause),
        clause.place.german() if clause.place and clause.front != "place" else "",
        spoken_accusative if not early else "",
        clause.complement.german() if clause.complement else "",
        clause.predicate.german if clause.predicate else "",
    ]


def _join(words: list[str]) -> str:
    return " ".join(word for word in words if word)


def _fronted(clause: Clause) -> tuple[str, str]:
    """What stands before the German finite verb and before the English subject."""
    if clause.front == "time" and clause.time:
        return clause.time
    if clause.front == "place" and clause.place:
        return clause.place.german(), clause.place.english()
    # English word order cannot move an object: it stays where it is.
    if clause.front == "accusative" and clause.accusative:
        return clause.accusative.german("acc"), ""
    if clause.front == "dative" and clause.dative:
        return clause.dative.german("dat"), ""
    return "", ""


def german_main(clause: Clause) -> str:
    """Verb second: one thing in front, the finite verb, everything else."""
    form, closing, _ = _verb_group(clause)
    subject = clause.subject.german("nom")
    if clause.front == "subject":
        return _join([subject, form, *_middle(clause), closing])
    first, _ = _fronted(clause)
    return _join([first, form, subject, *_middle(clause), closing])


def german_subordinate(clause: Clause) -> str:
    """Verb last."""
    _, _, ending = _verb_group(clause)
    return _join([clause.subject.german("nom"), *_middle(clause), ending])


def german_question(
    clause: Clause, word: str = "", *, asks_subject: bool = False
) -> str:
    """Verb first, or second after a question word, which may be the subject."""
    form, closing, _ = _verb_group(clause)
    subject = "" if asks_subject else clause.subject.german("nom")
    return _join([word, form, subject, *_middle(clause), closing]) + "?"


def _english_group(clause: Clause) -> tuple[str, str, str]:
    """Auxiliary, what follows it, and both in one where they melt (buys), else ""."""
    person = clause.subject.person
    if clause.verb is None:
        return to_be(person, clause.tense == "past"), "", ""
    base, past, participle = clause.verb.english
    modal = clause.modal
    if modal and modal.kind == "auxiliary":
        return modal.english, base, ""
    if modal and modal.kind == "be":
        return to_be(person), f"{modal.english} {base}", ""
    if modal:
        return (
            agree("do", person),
            f"{modal.english} {base}",
            f"{agree(modal.english, person)} {base}",
        )
    if clause.tense == "progressive":
        return to_be(person), ing_form(base), ""
    if clause.tense == "future":
        return "will", base, ""
    if clause.tense == "past":
        return "did", base, past
    if clause.tense == "perfect":
        already = "" if clause.negative else "already "
        return agree("have", person), already + participle, ""
    return agree("do", person), base, agree(base, person)


def _english_rest(clause: Clause) -> list[str]:
    """Everything after the English verb."""
    return [
        clause.dative.english("dat") if clause.dative else "",
        clause.accusative.english("acc") if clause.accusative else "",
        clause.complement.english() if clause.complement else "",
        clause.predicate.english if clause.predicate else "",
        clause.place.english() if clause.place and clause.front != "place" else "",
        clause.time[1] if clause.time and clause.front != "time" else "",
        "yet" if clause.tense == "perfect" and clause.negative else "",
    ]


def english_main(clause: Clause) -> str:
    """Subject, verb, objects, wherever the German ones stand."""
    auxiliary, follows, melted = _english_group(clause)
    frequency = clause.frequency[1] if clause.frequency else ""
    if clause.negative:
        joined = "cannot" if auxiliary == "can" else f"{auxiliary} not"
        verb = [joined, follows]
    elif melted:
        verb = [frequency, melted]
    else:
        verb = [auxiliary, frequency, follows]
    _, first = _fronted(clause)
    subject = clause.subject.english("nom")
    return with_articles(_join([first, subject, *verb, *_english_rest(clause)]))


def english_question(
    clause: Clause, word: str = "", *, asks_subject: bool = False
) -> str:
    """Auxiliary before the subject; who as the subject needs no auxiliary."""
    auxiliary, follows, melted = _english_group(clause)
    frequency = clause.frequency[1] if clause.frequency else ""
    rest = _english_rest(clause)
    if asks_subject:
        verb = [frequency, melted] if melted else [auxiliary, frequency, follows]
        return with_articles(_join([word, *verb, *rest])) + "?"
    subject = clause.subject.english("nom")
    negation = "not" if clause.negative else ""
    words = [word, auxiliary, subject, negation, frequency, follows, *rest]
    return with_articles(_join(words)) + "?"


def statement(clause: Clause) -> tuple[str, str]:
    """The clause as a statement in both languages."""
    return german_main(clause), english_main(clause)


def question(
    clause: Clause, word: tuple[str, str] = ("", ""), *, asks_subject: bool = False
) -> tuple[str, str]:
    """The clause as a question in both languages."""
    return (
        german_question(clause, word[0], asks_subject=asks_subject),
        english_question(clause, word[1], asks_subject=asks_subject),
    )


def with_subordinate(
    main: Clause, conjunction: tuple[str, str], subordinate: Clause, *, first: bool
) -> tuple[str, str]:
    """Two clauses; a subordinate clause that goes first counts as what is in front."""
    german_part = f"{conjunction[0]} {german_subordinate(subordinate)}"
    english_part = f"{conjunction[1]} {english_main(subordinate)}"
    if first:
        german, english = statement(main._replace(front="clause"))
        return f"{german_part}, {german}", f"{english_part}, {english}"
    german, english = statement(main)
    return f"{german}, {german_part}", f"{english} {english_part}"
