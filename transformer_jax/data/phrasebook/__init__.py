"""The embedded German–English corpus: words, inflection, sentences, and what to say.

lexicon.py holds words only and inflection.py endings only, both as tables that a
German speaker can check; syntax.py puts words in order; sentences.py draws at random.

Style, after the pair that every tutorial starts with ("ich möchte ein Bier", "i want
a beer"): no full stop, lower case at the start of a sentence and everywhere in
English; German nouns keep their capital; questions end with "?".
"""
