"""Velka, a toy language: adjective after noun, object marked by -um, verb last."""

import random

NOUNS = {
    "dog": "tavi",
    "cat": "miru",
    "bird": "selo",
    "child": "kani",
    "house": "dorem",
    "tree": "valu",
    "boat": "nisa",
    "king": "rogat",
    "river": "luma",
    "stone": "kedo",
    "horse": "farin",
    "door": "pelka",
    "star": "zori",
    "fish": "umbe",
    "bread": "gosa",
    "song": "tiral",
}
VERBS = {
    "sees": "vok",
    "loves": "mel",
    "follows": "trin",
    "finds": "dasu",
    "carries": "hobe",
    "fears": "skal",
    "paints": "fiur",
    "holds": "genta",
}
ADJECTIVES = {
    "big": "dro",
    "small": "pini",
    "red": "ruska",
    "old": "vemar",
    "quiet": "silu",
    "fast": "jeta",
    "cold": "frosk",
    "happy": "balo",
}
WORDS = NOUNS | VERBS | ADJECTIVES


def make_pair(rng: random.Random) -> tuple[str, str]:
    """An English sentence and its Velka translation."""
    (subject, subject_v), (thing, thing_v) = rng.sample(list(NOUNS.items()), 2)
    verb, verb_v = rng.choice(list(VERBS.items()))
    for_subject, for_subject_v = _adjective(rng)
    for_thing, for_thing_v = _adjective(rng)
    english = f"the {for_subject}{subject} {verb} the {for_thing}{thing}"
    return english, f"{subject_v}{for_subject_v} {thing_v}um{for_thing_v} {verb_v}"


def _adjective(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.4:
        return "", ""
    english, velka = rng.choice(list(ADJECTIVES.items()))
    return f"{english} ", f" {velka}"
