"""Train a soft prompt in Python, push it to a running server, and ask it.

Start a server first (`polygraft serve`), then: `python examples/train_and_ask.py [HOST:PORT]`.
"""

import sys

from polygraft.client import Client
from polygraft.trainer.recipe import parse_recipe
from polygraft.trainer.run import train

CHAT = "Ada: Are you coming to swim on Friday?\nOmar: Sure!\nPia: Me too."


def main(address: str) -> None:
    """A skill of the base, called up by twenty trained vectors instead of an instruction."""
    recipe = {
        "name": "names",
        "data": {"task": "builtin:names", "rows": 200},
        "method": {"kind": "prompt", "virtual_tokens": 20},
        "optim": {"epochs": 2},
    }
    result = train(parse_recipe(recipe))
    for subject in result.subjects:
        print(f"{subject.name}: exact match {subject.value('exact_match'):.0f} %")

    with Client(address) as client:
        version = client.upload_adapter(result.directory, "names", alias="live").version
        print(f"serving names@{version.number} {version.digest[:19]}")
        answer = client.generate(adapter="names", variables={"dialogue": CHAT})
        print(answer.text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
