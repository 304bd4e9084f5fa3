"""German and English word forms: articles, adjectives, nouns, verbs, times of day.

Expected forms are written out here, for a speaker of the language to check.
"""

import pytest

from transformer_jax.data.phrasebook.inflection import (
    adjective,
    clock,
    determiner,
    ing_form,
    noun,
    present,
)
from transformer_jax.data.phrasebook.lexicon import NOUNS, VERBS

NOUN = {word.singular: word for word in NOUNS}

ENDINGS = """
der  nom | der    alte  Mann | die   alte  Frau | das    alte  Kind | die    alten Kinder
der  acc | den    alten Mann | die   alte  Frau | das    alte  Kind | die    alten Kinder
der  dat | dem    alten Mann | der   alten Frau | dem    alten Kind | den    alten Kindern
dies nom | dieser alte  Mann | diese alte  Frau | dieses alte  Kind | diese  alten Kinder
dies dat | diesem alten Mann | dieser alten Frau | diesem alten Kind | diesen alten Kindern
kein nom | kein   alter Mann | keine alte  Frau | kein   altes Kind | keine  alten Kinder
kein acc | keinen alten Mann | keine alte  Frau | kein   altes Kind | keine  alten Kinder
kein dat | keinem alten Mann | keiner alten Frau | keinem alten Kind | keinen alten Kindern
euer nom | euer   alter Mann | eure  alte  Frau | euer   altes Kind | eure   alten Kinder
euer acc | euren  alten Mann | eure  alte  Frau | euer   altes Kind | eure   alten Kinder
euer dat | eurem  alten Mann | eurer alten Frau | eurem  alten Kind | euren  alten Kindern
zwei nom | -                 | -                | -                 | zwei   alte  Kinder
zwei dat | -                 | -                | -                 | zwei   alten Kindern
viel acc | -                 | -                | -                 | viele  alte  Kinder
viel dat | -                 | -                | -                 | vielen alten Kindern
"""  # noqa: E501


@pytest.mark.parametrize("line", ENDINGS.strip().split("\n"))
def test_article_adjective_and_noun_agree(line):
    head, *cells = line.split("|")
    stem, case = head.split()
    nouns = {"m": "Mann", "f": "Frau", "n": "Kind", "p": "Kind"}
    for gender, cell in zip("mfnp", cells, strict=True):
        if cell.strip() != "-":
            made = (
                determiner(stem, case, gender),
                adjective("alt", stem, case, gender),
                noun(NOUN[nouns[gender]], case, gender == "p"),
            )
            assert " ".join(made) == " ".join(cell.split())


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("Junge", "Junge Jungen Jungen Jungen"),
        ("Student", "Student Studenten Studenten Studenten"),
        ("Nachbar", "Nachbar Nachbarn Nachbarn Nachbarn"),
        ("Hund", "Hund Hund Hund Hunden"),
        ("Auto", "Auto Auto Auto Autos"),
        ("Apfel", "Apfel Apfel Apfel Äpfeln"),
        ("Mädchen", "Mädchen Mädchen Mädchen Mädchen"),
    ],
)
def test_nouns_in_nominative_accusative_dative_and_dative_plural(word, forms):
    cases = [("nom", False), ("acc", False), ("dat", False), ("dat", True)]
    made = [noun(NOUN[word], case, plural) for case, plural in cases]
    assert made == forms.split()


@pytest.mark.parametrize(
    ("german", "form"),
    [("teuer", "teures"), ("dunkel", "dunkles"), ("müde", "müdes"), ("rot", "rotes")],
)
def test_adjective_stems(german, form):
    assert adjective(german, "ein", "nom", "n") == form


@pytest.mark.parametrize(
    ("infinitive", "forms"),
    [
        ("kaufen", "kaufe kaufst kauft kauft kaufen kauft kaufen"),
        ("lesen", "lese liest liest liest lesen lest lesen"),
        ("essen", "esse isst isst isst essen esst essen"),
        ("geben", "gebe gibst gibt gibt geben gebt geben"),
        ("laden", "lade lädst lädt lädt laden ladet laden"),
        ("finden", "finde findest findet findet finden findet finden"),
        ("öffnen", "öffne öffnest öffnet öffnet öffnen öffnet öffnen"),
        ("tanzen", "tanze tanzt tanzt tanzt tanzen tanzt tanzen"),
        ("waschen", "wasche wäschst wäscht wäscht waschen wascht waschen"),
        ("haben", "habe hast hat hat haben habt haben"),
        ("möchten", "möchte möchtest möchte möchte möchten möchtet möchten"),
    ],
)
def test_verbs_in_the_present(infinitive, forms):
    changed = {verb.infinitive: verb.changed for verb in VERBS}[infinitive]
    made = [present(infinitive, person, changed) for person in range(7)]
    assert made == forms.split()


def test_ing_forms():
    made = {verb.english[0]: ing_form(verb.english[0]) for verb in VERBS}
    for base, form in {
        "write": "writing",
        "see": "seeing",
        "run": "running",
        "put on": "putting on",
        "get up": "getting up",
        "lie": "lying",
    }.items():
        assert made[base] == form


@pytest.mark.parametrize(
    ("hour", "minutes", "german", "english"),
    [
        (2, 30, "halb drei", "half past two"),
        (12, 30, "halb eins", "half past twelve"),
        (1, 0, "ein Uhr", "one o'clock"),
        (12, 45, "Viertel vor eins", "a quarter to one"),
        (6, 15, "Viertel nach sechs", "a quarter past six"),
        (11, 40, "zwanzig vor zwölf", "twenty to twelve"),
        (1, 5, "fünf nach eins", "five past one"),
    ],
)
def test_times_of_day(hour, minutes, german, english):
    assert clock(hour, minutes) == (german, english)
