"""What pre-training must never see, so that adapters have something to teach.

`TASKS` are whole skills that the corpus does not contain. `INSTRUCTIONS` are wordings: for a skill
that is not in the corpus every wording of ours, for a skill that is (`names`, `story`, and the two
facts that `duty` joins) wordings that differ from all of the corpus. A test searches the corpus,
few-shot documents included.
"""

TASKS = ("dsum", "route", "vel2en", "support")

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "dsum": ("Summarize the dialogue.",),
    "dsum-unseen": ("Summarize the dialogue.",),
    "support": ("Summarize the call and name the action.",),
    "route": ("Which team handles this ticket?",),
    "vel2en": ("Translate from Velka to English.",),
    "names": (
        "Tell me everyone in this chat.",
        "Participants?",
        "Which friends take part?",
        "Make an attendance list.",
        "Note down each person once.",
        "Say whose lines these are.",
    ),
    "duty": (
        "When, and who is asked? Answer as day: name.",
        "Give the final day and the person who is asked, as day: name.",
        "Write a line for the calendar, such as Monday: Ann.",
        "On which day? Who is asked?",
        "day: name",
    ),
    "story": (
        "In short?",
        "Boil it down.",
        "What is the gist?",
        "Give me the main point.",
        "tl;dr",
        "Make it shorter.",
    ),
}
