"""Endings: German articles, adjectives, nouns and verbs; the little English has.

Tables are read across m, f, n and plural (written p), down the cases nom, acc, dat.
"""

import re

from transformer_jax.data.phrasebook.lexicon import (
    ENGLISH_NUMBERS,
    ENGLISH_TENS,
    NUMBERS,
    TENS,
    Noun,
    Verb,
)


def _table(text: str) -> dict[str, dict[str, str]]:
    """Lines of a case and four cells → case → gender → cell; "-" is an empty cell."""
    rows = [line.split() for line in text.strip().split("\n")]
    return {
        case: dict(zip("mfnp", [c.strip("-") for c in cells], strict=True))
        for case, *cells in rows
    }


DEFINITE = _table("""
nom der die das die
acc den die das die
dat dem der dem den
""")

EIN_WORD = _table("""
nom -  e  -  e
acc en e  -  e
dat em er em en
""")
"""ein, kein, mein, dein, sein, unser, euer."""

DIESER_WORD = _table("""
nom er e  es e
acc en e  es e
dat em er em en
""")
"""dieser, jeder, welcher, viele."""

WEAK = _table("""
nom e  e  e  en
acc en e  e  en
dat en en en en
""")
"""After der, dieser, jeder, welcher."""

MIXED = _table("""
nom er e  es en
acc en e  es en
dat en en en en
""")
"""After ein, kein and possessives."""

STRONG = _table("""
nom er e  es e
acc en e  es e
dat em er em en
""")
"""With no article, and after numbers and viele."""

DETERMINERS: dict[str, tuple[dict[str, dict[str, str]], str, str]] = {
    "ein": (MIXED, "a", ""),
    "kein": (MIXED, "a", "any"),
    "mein": (MIXED, "my", "my"),
    "dein": (MIXED, "your", "your"),
    "sein": (MIXED, "his", "his"),
    "unser": (MIXED, "our", "our"),
    "euer": (MIXED, "your", "your"),
    "der": (WEAK, "the", "the"),
    "dies": (WEAK, "this", "these"),
    "jed": (WEAK, "every", ""),
    "welch": (WEAK, "which", "which"),
    "viel": (STRONG, "", "many"),
    "": (STRONG, "", ""),
}
"""Stem → endings of the adjective after it, English singular, English plural. Numbers
come besides, with strong endings."""


def determiner(stem: str, case: str, gender: str) -> str:
    """A German article word, agreeing.

    >>> determiner("euer", "acc", "m"), determiner("dies", "nom", "n")
    ('euren', 'dieses')
    """
    if stem == "der":
        return DEFINITE[case][gender]
    if stem in ("dies", "jed", "welch", "viel"):
        return stem + DIESER_WORD[case][gender]
    if stem in DETERMINERS and stem:
        ending = EIN_WORD[case][gender]
        return ("eur" if stem == "euer" and ending else stem) + ending
    return stem


def adjective(german: str, stem: str, case: str, gender: str) -> str:
    """An adjective before its noun, agreeing with the article word before it.

    >>> adjective("teuer", "ein", "nom", "n"), adjective("müde", "der", "dat", "f")
    ('teures', 'müden')
    """
    endings = DETERMINERS[stem][0] if stem in DETERMINERS else STRONG
    base = re.sub(r"(?<=eu)er$|(?<=[^e])el$", lambda m: m[0][1], german)
    return base.removesuffix("e") + endings[case][gender]


def noun(word: Noun, case: str, plural: bool) -> str:
    """A noun in a case: dative plurals end in n (but Autos), weak masculines in n."""
    if not plural:
        return word.singular if case == "nom" else word.oblique
    if case == "dat" and not word.plural.endswith(("n", "s")):
        return word.plural + "n"
    return word.plural


PERSONS = ("ich", "du", "er", "sie", "wir", "ihr", "sie plural")
"""Grammatical persons are numbers: places in this row and in those below."""
ENGLISH_SUBJECTS = ("i", "you", "he", "she", "we", "you", "they")
ACCUSATIVES = ("mich", "dich", "ihn", "", "uns", "euch", "")
"""Not sie: she and they would look the same."""
DATIVES = ("mir", "dir", "ihm", "ihr", "uns", "euch", "ihnen")
ENGLISH_OBJECTS = ("me", "you", "him", "her", "us", "you", "them")

IRREGULAR = {
    infinitive: forms.split()
    for infinitive, forms in {
        "sein": "bin bist ist ist sind seid sind",
        "haben": "habe hast hat hat haben habt haben",
        "können": "kann kannst kann kann können könnt können",
        "müssen": "muss musst muss muss müssen müsst müssen",
        "dürfen": "darf darfst darf darf dürfen dürft dürfen",
        "sollen": "soll sollst soll soll sollen sollt sollen",
        "wollen": "will willst will will wollen wollt wollen",
        "möchten": "möchte möchtest möchte möchte möchten möchtet möchten",
        "mögen": "mag magst mag mag mögen mögt mögen",
        "wissen": "weiß weißt weiß weiß wissen wisst wissen",
    }.items()
}
WAR = ["war", "warst", "war", "war", "waren", "wart", "waren"]


def present(infinitive: str, person: int, changed: str = "") -> str:
    """A German verb in the present.

    >>> [present("lesen", p, "lies") for p in range(7)]
    ['lese', 'liest', 'liest', 'liest', 'lesen', 'lest', 'lesen']
    >>> [present("arbeiten", p) for p in (0, 1, 2, 5)]
    ['arbeite', 'arbeitest', 'arbeitet', 'arbeitet']
    """
    if infinitive in IRREGULAR:
        return IRREGULAR[infinitive][person]
    stem = infinitive.removesuffix("n").removesuffix("e")
    if person in (4, 6):
        return infinitive
    if person == 0:
        return stem + "e"
    singular = person != 5
    stem = changed if changed and singular else stem
    if person == 1 and stem.endswith(("s", "ß", "z")):
        return stem + "t"
    linked = stem.endswith(("t", "d", "ffn")) and not (changed and singular)
    return stem + ("e" if linked else "") + ("st" if person == 1 else "t")


def to_be(person: int, past: bool = False) -> str:
    """The English verb be."""
    if past:
        return "was" if person in (0, 2, 3) else "were"
    return "am" if person == 0 else "is" if person in (2, 3) else "are"


def third_person(base: str) -> str:
    """The English he-form of a verb, particles kept.

    >>> third_person("look for"), third_person("carry"), third_person("wash")
    ('looks for', 'carries', 'washes')
    """
    word, space, particle = base.partition(" ")
    if word == "have":
        word = "has"
    elif re.search(r"[^aeiou]y$", word):
        word = word[:-1] + "ies"
    else:
        word += "es" if word.endswith(("s", "sh", "ch", "x", "o")) else "s"
    return word + space + particle


DOUBLING = ("get", "put", "run")


def ing_form(base: str) -> str:
    """The English ing-form of a verb, particles kept.

    >>> ing_form("get up"), ing_form("write"), ing_form("see")
    ('getting up', 'writing', 'seeing')
    """
    word, space, particle = base.partition(" ")
    if word in DOUBLING:
        word += word[-1]
    elif word.endswith("ie"):
        word = word[:-2] + "y"
    elif word.endswith("e") and not word.endswith("ee"):
        word = word[:-1]
    return word + "ing" + space + particle


def agree(base: str, person: int) -> str:
    """An English verb in the simple present."""
    return third_person(base) if person in (2, 3) else base


def number(n: int) -> str:
    """German number words below 100, as before a noun in the plural.

    >>> number(7), number(16), number(21), number(35)
    ('sieben', 'sechzehn', 'einundzwanzig', 'fünfunddreißig')
    """
    if n < 20:
        return NUMBERS[n]
    ten, unit = TENS[n // 10 - 2], n % 10
    return f"{'ein' if unit == 1 else NUMBERS[unit]}und{ten}" if unit else ten


def english_number(n: int) -> str:
    """English number words below 100.

    >>> english_number(12), english_number(40), english_number(35)
    ('twelve', 'forty', 'thirty-five')
    """
    if n < 20:
        return ENGLISH_NUMBERS[n]
    ten, unit = ENGLISH_TENS[n // 10 - 2], n % 10
    return f"{ten}-{ENGLISH_NUMBERS[unit]}" if unit else ten


def clock(hour: int, minutes: int) -> tuple[str, str]:
    """A time of day on the twelve-hour clock; German halves look to the next hour.

    >>> clock(2, 30), clock(2, 50)
    (('halb drei', 'half past two'), ('zehn vor drei', 'ten to three'))
    >>> clock(1, 0), clock(12, 15)
    (('ein Uhr', "one o'clock"), ('Viertel nach zwölf', 'a quarter past twelve'))
    """
    following = hour % 12 + 1
    if minutes == 0:
        return f"{'ein' if hour == 1 else NUMBERS[hour]} Uhr", (
            f"{english_number(hour)} o'clock"
        )
    if minutes == 30:
        return f"halb {NUMBERS[following]}", f"half past {english_number(hour)}"
    late = minutes > 30
    distance = 60 - minutes if late else minutes
    german, english = (
        ("Viertel", "a quarter")
        if distance == 15
        else (number(distance), english_number(distance))
    )
    if late:
        return (
            f"{german} vor {NUMBERS[following]}",
            f"{english} to {english_number(following)}",
        )
    return f"{german} nach {NUMBERS[hour]}", f"{english} past {english_number(hour)}"


CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "von dem": "vom",
    "zu dem": "zum",
    "zu der": "zur",
}


def german_preposition(preposition: str, phrase: str) -> str:
    """Preposition and noun phrase, drawn together where German does.

    >>> german_preposition("in", "dem Garten"), german_preposition("in", "den Wald")
    ('im Garten', 'in den Wald')
    """
    article, _, rest = phrase.partition(" ")
    joined = CONTRACTIONS.get(f"{preposition} {article}")
    return f"{joined} {rest}" if joined else f"{preposition} {phrase}"


def with_articles(english: str) -> str:
    """Write a before consonants and an before vowels.

    >>> with_articles("a old man eats a apple"), with_articles("a red apple")
    ('an old man eats an apple', 'a red apple')
    """
    return re.sub(r"\ba (?=[aeiou])", "an ", english)


def finite(verb: Verb, person: int) -> str:
    """A German verb of the lexicon in the present, without its prefix."""
    return present(verb.infinitive, person, verb.changed)
