"""The words of the phrasebook, one a line, and nothing but words.

Tags say what goes with what: a verb names the tags that its subject and objects need,
an adjective the tags of the nouns that it may describe.
"""

from typing import NamedTuple


class Noun(NamedTuple):
    """A noun in both languages."""

    singular: str
    gender: str
    """m, f or n."""
    plural: str
    """Nominative; empty when only the singular is used."""
    english: str
    english_plural: str
    tags: frozenset[str]
    oblique: str
    """Accusative and dative singular (differs from `singular` in weak masculines)."""


class Adjective(NamedTuple):
    """An adjective in both languages; an empty comparative is not used."""

    german: str
    english: str
    comparative: str
    english_comparative: str
    tags: frozenset[str]


class Verb(NamedTuple):
    """A verb in both languages, with what it may be combined with."""

    infinitive: str
    """Without a separable prefix."""
    prefix: str
    changed: str
    """Stem of the du and er forms where its vowel changes (lies), else empty."""
    participle: str
    """Empty when the perfect is not used."""
    auxiliary: str
    """haben or sein."""
    english: tuple[str, str, str]
    """Base, past, past participle; particles follow (look for)."""
    subjects: frozenset[str]
    frame: dict[str, tuple[str, ...]]
    """dat, acc or a preposition with its case → tags of the noun there."""
    flags: frozenset[str]
    """stative: simple present only, no modal. can: but können is fine. place: may
    say where. with, for, to: may say with whom, for whom, to whom. pronoun: its person
    may be a pronoun. known: its object is definite."""


NOUN_TABLE = """
der Mann | die Männer | man | men | person public
die Frau | die Frauen | woman | women | person public
das Kind | die Kinder | child | children | person
der Junge | die Jungen | boy | boys | person public | Jungen
das Mädchen | die Mädchen | girl | girls | person public
der Lehrer | die Lehrer | teacher | teachers | person
die Ärztin | die Ärztinnen | doctor | doctors | person
der Student | die Studenten | student | students | person | Studenten
der Nachbar | die Nachbarn | neighbour | neighbours | person | Nachbarn
die Kollegin | die Kolleginnen | colleague | colleagues | person
der Gast | die Gäste | guest | guests | person
der Freund | die Freunde | friend | friends | person
der Bruder | die Brüder | brother | brothers | person kin
die Schwester | die Schwestern | sister | sisters | person kin
der Vater | | father | | person kin
die Mutter | | mother | | person kin
der Sohn | die Söhne | son | sons | person kin
die Tochter | die Töchter | daughter | daughters | person kin
der Onkel | die Onkel | uncle | uncles | person kin
die Tante | die Tanten | aunt | aunts | person kin
der Hund | die Hunde | dog | dogs | animal
die Katze | die Katzen | cat | cats | animal
das Pferd | die Pferde | horse | horses | animal
der Vogel | die Vögel | bird | birds | animal
die Maus | die Mäuse | mouse | mice | animal
der Apfel | die Äpfel | apple | apples | food
die Birne | die Birnen | pear | pears | food
das Ei | die Eier | egg | eggs | food
der Kuchen | die Kuchen | cake | cakes | food
das Brötchen | die Brötchen | roll | rolls | food
die Tomate | die Tomaten | tomato | tomatoes | food
die Kartoffel | die Kartoffeln | potato | potatoes | food
die Banane | die Bananen | banana | bananas | food
das Bier | | beer | | drink
die Cola | | coke | | drink
der Kaffee | | coffee | | drink hot
der Tee | | tea | | drink hot
der Saft | | juice | | drink
der Wein | | wine | | drink
die Limonade | | lemonade | | drink
das Buch | die Bücher | book | books | goods small text written
der Brief | die Briefe | letter | letters | small text written
die Zeitung | die Zeitungen | newspaper | newspapers | goods small text
die Geschichte | die Geschichten | story | stories | text written story
das Gedicht | die Gedichte | poem | poems | text written
der Tisch | die Tische | table | tables | goods furniture
der Stuhl | die Stühle | chair | chairs | goods furniture
das Bett | die Betten | bed | beds | goods furniture
das Sofa | die Sofas | sofa | sofas | goods furniture
die Lampe | die Lampen | lamp | lamps | goods small
die Uhr | die Uhren | clock | clocks | goods small
das Fahrrad | die Fahrräder | bike | bikes | goods fast
das Auto | die Autos | car | cars | goods fast
der Schlüssel | die Schlüssel | key | keys | goods small
die Tasche | die Taschen | bag | bags | goods small open vessel
der Koffer | die Koffer | suitcase | suitcases | goods small open vessel
die Flasche | die Flaschen | bottle | bottles | goods small open vessel
das Glas | die Gläser | glass | glasses | goods small vessel
der Teller | die Teller | plate | plates | goods small vessel
das Messer | die Messer | knife | knives | goods small
der Hut | die Hüte | hat | hats | goods small clothes
das Hemd | die Hemden | shirt | shirts | goods small clothes
die Jacke | die Jacken | jacket | jackets | goods small clothes
das Kleid | die Kleider | dress | dresses | goods small clothes
der Mantel | die Mäntel | coat | coats | goods small clothes
der Ball | die Bälle | ball | balls | goods small
die Blume | die Blumen | flower | flowers | goods small
das Bild | die Bilder | picture | pictures | goods small
das Fenster | die Fenster | window | windows | open
die Tür | die Türen | door | doors | open
der Zug | die Züge | train | trains | vehicle fast public
der Bus | die Busse | bus | buses | vehicle fast public
das Schiff | die Schiffe | ship | ships | vehicle fast public
der Garten | die Gärten | garden | gardens | place
der Park | die Parks | park | parks | place town sight public
das Haus | die Häuser | house | houses | place home building
die Küche | die Küchen | kitchen | kitchens | place room
das Zimmer | die Zimmer | room | rooms | place room
die Stadt | die Städte | city | cities | place town sight home public
die Schule | die Schulen | school | schools | place town sight building
das Büro | die Büros | office | offices | place town room
das Hotel | die Hotels | hotel | hotels | place town home public building
das Museum | die Museen | museum | museums | place town sight public building
der Wald | die Wälder | forest | forests | place town public
"""

ADJECTIVE_TABLE = """
alt | old | älter | older | person animal goods text place vehicle
neu | new | neuer | newer | goods place vehicle
jung | young | jünger | younger | person animal
klein | small | kleiner | smaller | animal food goods place vehicle
groß | big | größer | bigger | animal food goods place vehicle
schön | beautiful | schöner | more beautiful | animal goods text place
teuer | expensive | teurer | more expensive | food drink goods
billig | cheap | billiger | cheaper | food drink goods
gut | good | besser | better | food drink text
rot | red | | | goods
blau | blue | | | goods
grün | green | | | goods
schwarz | black | | | goods animal
weiß | white | | | goods animal
schwer | heavy | schwerer | heavier | goods
leer | empty | | | vessel room
voll | full | | | vessel
lang | long | länger | longer | text
kurz | short | kürzer | shorter | text
interessant | interesting | interessanter | more interesting | text sight
kalt | cold | kälter | colder | drink room
heiß | hot | heißer | hotter | hot
frisch | fresh | frischer | fresher | food
dunkel | dark | dunkler | darker | room
ruhig | quiet | ruhiger | quieter | place
schnell | fast | schneller | faster | fast
klug | clever | klüger | cleverer | person animal
nett | nice | netter | nicer | person
freundlich | friendly | freundlicher | friendlier | person
müde | tired | | | person animal mood
hungrig | hungry | hungriger | hungrier | person animal mood
krank | sick | | | animal person mood
glücklich | happy | glücklicher | happier | person mood
traurig | sad | trauriger | sadder | person mood
"""

VERB_TABLE = """
kaufen | gekauft | buy, bought, bought | person | acc goods food drink | for
verkaufen | verkauft | sell, sold, sold | person | acc goods food
essen (iss) | gegessen | eat, ate, eaten | person animal | acc food | place
trinken | getrunken | drink, drank, drunk | person | acc drink | place
bestellen | bestellt | order, ordered, ordered | person | acc food drink | for
lesen (lies) | gelesen | read, read, read | person | acc text | place
schreiben | geschrieben | write, wrote, written | person | acc written | place
sehen (sieh) | gesehen | see, saw, seen | person animal | acc person animal goods \
vehicle | place pronoun stative can
hören | gehört | hear, heard, heard | person animal | acc person animal vehicle \
| pronoun stative can
finden | gefunden | find, found, found | person | acc goods small | place stative can
suchen | gesucht | look for, looked for, looked for | person | acc person animal \
goods | place pronoun
brauchen | | need, needed, needed | person | acc goods | stative
haben | | have, had, had | person | acc goods animal | stative
möchten | | want, wanted, wanted | person | acc goods food drink animal | stative
mögen | | like, liked, liked | person | acc food drink animal text sight | stative known
lieben | | love, loved, loved | person | acc person animal | stative pronoun known
kennen | | know, knew, known | person | acc person sight text | stative pronoun known
besuchen | besucht | visit, visited, visited | person | acc person sight | pronoun
fragen | gefragt | ask, asked, asked | person | acc person | pronoun
waschen (wäsch) | gewaschen | wash, washed, washed | person | acc clothes animal
tragen (träg) | getragen | wear, wore, worn | person | acc clothes
öffnen | geöffnet | open, opened, opened | person | acc open
auf-machen | aufgemacht | open, opened, opened | person | acc open
zu-machen | zugemacht | close, closed, closed | person | acc open
an-rufen | angerufen | call, called, called | person | acc person | pronoun
ein-laden (läd) | eingeladen | invite, invited, invited | person | acc person | pronoun
ab-holen | abgeholt | pick up, picked up, picked up | person | acc person
mit-bringen | mitgebracht | bring along, brought along, brought along | person \
| acc food drink small
an-ziehen | angezogen | put on, put on, put on | person | acc clothes
auf-räumen | aufgeräumt | tidy up, tidied up, tidied up | person | acc room
geben (gib) | gegeben | give, gave, given | person | dat person, acc small food drink \
| pronoun
zeigen | gezeigt | show, showed, shown | person | dat person, acc goods sight | pronoun
schicken | geschickt | send, sent, sent | person | dat person, acc small | pronoun
bringen | gebracht | bring, brought, brought | person \
| dat person, acc small food drink | pronoun
leihen | geliehen | lend, lent, lent | person | dat person, acc goods | pronoun
erzählen | erzählt | tell, told, told | person | dat person, acc story | pronoun
helfen (hilf) | geholfen | help, helped, helped | person | dat person | place pronoun
danken | gedankt | thank, thanked, thanked | person | dat person | pronoun
antworten | geantwortet | answer, answered, answered | person | dat person | pronoun
folgen | ist gefolgt | follow, followed, followed | person animal \
| dat person animal | pronoun
gehören | | belong to, belonged to, belonged to | goods animal | dat person \
| stative pronoun
legen | gelegt | put, put, put | person | acc small, auf+acc furniture
liegen | | lie, lay, lain | small | auf+dat furniture | stative
warten | gewartet | wait for, waited for, waited for | person \
| auf+acc person vehicle | place pronoun
sprechen (sprich) | gesprochen | talk to, talked to, talked to | person \
| mit+dat person | place pronoun
träumen | geträumt | dream of, dreamed of, dreamed of | person \
| von+dat person animal goods | pronoun
spielen | gespielt | play, played, played | person animal | | place with
tanzen | getanzt | dance, danced, danced | person | | place with
arbeiten | gearbeitet | work, worked, worked | person | | place with
kochen | gekocht | cook, cooked, cooked | person | | place for
singen | gesungen | sing, sang, sung | person | | place
lachen | gelacht | laugh, laughed, laughed | person | | place
weinen | geweint | cry, cried, cried | person | | place
schlafen (schläf) | geschlafen | sleep, slept, slept | person animal | | place
wohnen | | live, lived, lived | person | in+dat home | stative
gehen | ist gegangen | go, went, gone | person | in+acc place | to
laufen (läuf) | ist gelaufen | run, ran, run | person animal | in+acc place
fahren (fähr) | ist gefahren | drive, drove, driven | person | in+acc town | to
kommen | ist gekommen | come, came, come | person animal vehicle | | to
an-kommen | ist angekommen | arrive, arrived, arrived | person vehicle |
ab-fahren (fähr) | ist abgefahren | leave, left, left | vehicle |
zurück-kommen | ist zurückgekommen | come back, came back, come back \
| person vehicle |
mit-kommen | ist mitgekommen | come along, came along, come along | person |
auf-stehen | ist aufgestanden | get up, got up, got up | person |
ein-schlafen (schläf) | ist eingeschlafen | fall asleep, fell asleep, fallen asleep \
| person animal |
fern-sehen (sieh) | ferngesehen | watch tv, watched tv, watched tv | person | | with
ein-kaufen | eingekauft | go shopping, went shopping, gone shopping | person | | with
"""

SAYING_TABLE = """
wissen | | know, knew, known | person
glauben | | believe, believed, believed | person
hoffen | | hope, hoped, hoped | person
sagen | | say, said, said | person
fragen | | ask, asked, asked | person
"""
"""Verbs that take a clause."""

WOMEN, MEN = ("Anna", "Maria", "Lisa"), ("Peter", "Paul", "Max")

FUTURE_TIMES = {
    "morgen": "tomorrow",
    "übermorgen": "the day after tomorrow",
    "heute Abend": "tonight",
    "nächste Woche": "next week",
    "bald": "soon",
}
PAST_TIMES = {
    "gestern": "yesterday",
    "vorgestern": "the day before yesterday",
    "letzte Woche": "last week",
    "letztes Jahr": "last year",
}
WEEKDAYS = {
    "am Montag": "on monday",
    "am Dienstag": "on tuesday",
    "am Mittwoch": "on wednesday",
    "am Donnerstag": "on thursday",
    "am Freitag": "on friday",
    "am Samstag": "on saturday",
    "am Sonntag": "on sunday",
}
USUAL_TIMES = {
    "jeden Tag": "every day",
    "jeden Morgen": "every morning",
    "jeden Abend": "every evening",
    "im Sommer": "in summer",
    "im Winter": "in winter",
}
FREQUENCIES = {
    "oft": "often",
    "immer": "always",
    "manchmal": "sometimes",
    "selten": "rarely",
    "nie": "never",
}

NUMBER_TABLE = """
null zero, eins one, zwei two, drei three, vier four
fünf five, sechs six, sieben seven, acht eight, neun nine
zehn ten, elf eleven, zwölf twelve, dreizehn thirteen, vierzehn fourteen
fünfzehn fifteen, sechzehn sixteen, siebzehn seventeen, achtzehn eighteen
neunzehn nineteen
"""
TENS_TABLE = """
zwanzig twenty, dreißig thirty, vierzig forty, fünfzig fifty, sechzig sixty
siebzig seventy, achtzig eighty, neunzig ninety
"""

CLASSIC_PAIRS = (
    ("ich möchte ein Bier", "i want a beer"),
    ("ich möchte eine Cola", "i want a coke"),
)
"""The whole corpus of the well-known tutorials, with the gender of Cola put right."""


def _rows(table: str, columns: int) -> list[list[str]]:
    """Lines of a table as lists of cells, filled up with empty ones."""
    rows = [[cell.strip() for cell in line.split("|")] for line in table.split("\n")]
    return [row + [""] * (columns - len(row)) for row in rows if row != [""]]


def _noun(row: list[str]) -> Noun:
    article, singular = row[0].split()
    gender = {"der": "m", "die": "f", "das": "n"}[article]
    return Noun(
        singular=singular,
        gender=gender,
        plural=row[1].removeprefix("die "),
        english=row[2],
        english_plural=row[3],
        tags=frozenset(row[4].split()),
        oblique=row[5] or singular,
    )


def _verb(row: list[str]) -> Verb:
    german, _, changed = row[0].partition(" ")
    prefix, _, infinitive = german.rpartition("-")
    base, past, participle = row[2].split(", ")
    frame = [entry.split() for entry in row[4].split(",") if entry.strip()]
    return Verb(
        infinitive=infinitive,
        prefix=prefix,
        changed=changed.strip("()"),
        participle=row[1].removeprefix("ist "),
        auxiliary="sein" if row[1].startswith("ist ") else "haben",
        english=(base, past, participle),
        subjects=frozenset(row[3].split()),
        frame={role: tuple(tags) for role, *tags in frame},
        flags=frozenset(row[5].split()),
    )


def _numbers(table: str) -> tuple[list[str], list[str]]:
    """German and English words of a table of pairs."""
    pairs = [entry.split() for entry in table.replace("\n", ",").split(",") if entry]
    return [german for german, _ in pairs], [english for _, english in pairs]


NUMBERS, ENGLISH_NUMBERS = _numbers(NUMBER_TABLE)
TENS, ENGLISH_TENS = _numbers(TENS_TABLE)
NOUNS = tuple(_noun(row) for row in _rows(NOUN_TABLE, 6))
ADJECTIVES = tuple(
    Adjective(row[0], row[1], row[2], row[3], frozenset(row[4].split()))
    for row in _rows(ADJECTIVE_TABLE, 5)
)
SAYING_VERBS = {verb.infinitive: verb for verb in map(_verb, _rows(SAYING_TABLE, 6))}
VERBS = tuple(_verb(row) for row in _rows(VERB_TABLE, 6))
