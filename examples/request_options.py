"""Every option of a request, one by one, on whatever base the server has.

Start a server first (`polygraft serve`), then: `python examples/request_options.py [HOST:PORT]`.
"""

import sys
from collections.abc import Callable

from polygraft.client import Client, InvalidRequest, ScoreItem

PROMPT = "Anna: Are you at home? Ben: No, at work."


def sampling(client: Client) -> None:
    """Temperature and what limits it; a seed makes it repeatable."""
    answer = client.generate(PROMPT, temperature=0.9, top_p=0.95, top_k=40, min_p=0.05, seed=7)
    print(answer.text, f"(seed {answer.seed})")


def penalties(client: Client) -> None:
    """Against repetition: of prompt and answer, of the answer, and one token for all."""
    answer = client.generate(
        PROMPT,
        repetition_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias={client.tokenize(" work")[-1]: -100.0},
        max_output_tokens=16,
    )
    print(answer.text)


def choices(client: Client) -> None:
    """Several answers of one request; their prompt is computed once."""
    answer = client.generate(PROMPT, n=3, temperature=1.0, max_output_tokens=12)
    for choice in answer.choices:
        print(choice.index, repr(choice.text), choice.finish_reason)


def choices_as_they_come(client: Client) -> None:
    """The same as a stream: every piece says whose it is."""
    for piece in client.stream(PROMPT, n=2, temperature=1.0, max_output_tokens=6):
        print(f"[{piece.index}]{piece.text}", end=" ")
    print()


def stopping(client: Client) -> None:
    """At least four tokens, at most forty, no further than a full stop, for five seconds."""
    answer = client.generate(
        PROMPT, min_output_tokens=4, max_output_tokens=40, stop=[".", "\n"], time_limit=5.0
    )
    print(repr(answer.text), answer.finish_reason, answer.usage.output_tokens)


def on_and_on(client: Client) -> None:
    """Past the end-of-sequence token, to a token of one's own or the longest length."""
    answer = client.generate(
        PROMPT, ignore_eos=True, stop_token_ids=client.model().eos_token_ids, max_output_tokens=8
    )
    print(repr(answer.text), answer.finish_reason)


def log_probabilities(client: Client) -> None:
    """Of the output with the two likeliest tokens at each place, and of the prompt."""
    answer = client.generate(PROMPT, top_logprobs=2, prompt_logprobs=0, max_output_tokens=3)
    for entry in answer.logprobs:
        others = [(token.token_id, round(token.logprob, 2)) for token in entry.top]
        print(entry.token_id, round(entry.logprob, 2), f"rank {entry.rank} beside {others}")
    print("the prompt:", round(sum(entry.logprob for entry in answer.prompt_logprobs), 1))


def tokens_in_and_out(client: Client) -> None:
    """Token ids instead of text, on both sides; echo puts the prompt in front."""
    ids = client.tokenize(PROMPT)
    answer = client.generate(token_ids=ids, return_token_ids=True, echo=True, max_output_tokens=8)
    assert answer.text.startswith(client.detokenize(ids))
    print(answer.token_ids, repr(client.detokenize(answer.token_ids)))


def scores(client: Client) -> None:
    """Which continuation is likeliest; the context is sent and computed once."""
    continuations = [" Who is at work?", " Is it late?", " zq"]
    for text, score in zip(
        continuations, client.score(ScoreItem.each(continuations, prompt=PROMPT)), strict=True
    ):
        print(f"{score.logprob:8.2f} {text!r}")


def urgency(client: Client) -> None:
    """A class to be served in, a time to be served by."""
    print(client.generate(PROMPT, priority="high", timeout=30.0, max_output_tokens=8).text)


def speculation(client: Client) -> None:
    """Text that repeats itself is guessed, several tokens in one step; the answer is the same."""
    prompt = "one two three four " * 6
    answers = [
        client.generate(prompt, speculation=wanted, ignore_eos=True, max_output_tokens=24).text
        for wanted in (True, False)
    ]
    assert answers[0] == answers[1]
    print(repr(answers[0]))


def composition(client: Client) -> None:
    """Adapters by weight in one request; nothing is merged."""
    names = [adapter.name for adapter in client.list_adapters() if adapter.version is not None]
    if not names:
        print("no adapters here: polygraft adapters push DIR NAME")
        return
    answer = client.generate(PROMPT, adapters=dict.fromkeys(names[:2], 0.5), max_output_tokens=8)
    print(answer.text, [(version.adapter_name, version.weight) for version in answer.versions])


def refusals(client: Client) -> None:
    """What cannot be is refused, with the field, the value and the limit."""
    try:
        client.generate(PROMPT, temperature=11.0)
    except InvalidRequest as error:
        print(error.code, error.metadata["item"], error.metadata["allowed"])


EXAMPLES: tuple[Callable[[Client], None], ...] = (
    sampling,
    penalties,
    choices,
    choices_as_they_come,
    stopping,
    on_and_on,
    log_probabilities,
    tokens_in_and_out,
    scores,
    urgency,
    speculation,
    composition,
    refusals,
)


def main(address: str) -> None:
    """All of them."""
    with Client(address) as client:
        for example in EXAMPLES:
            print(f"--- {example.__name__}: {example.__doc__}")
            example(client)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
