"""Commands of the `polygraft` program, one module each, imported only when the command is run.

How to add a command `x`:

1. Add a line to `COMMANDS` (its order is the order of `polygraft --help`).
2. Write `commands/x.py` with `app = typer.Typer(...)`. One `@app.command()` and no callback makes
   the plain command `polygraft x`; for sub-commands (`polygraft x build`) also give the app an
   `@app.callback()`, whose docstring is the help of the group.
3. Import heavy things (torch, transformers, grpc, the trainer) inside the functions, so that
   `polygraft x --help` stays quick.
4. Print results to stdout, all else to stderr. Report failure by raising a `PolygraftError` or
   `commands.failure.CommandFailed`: `cli.py` prints one sentence and sets the exit code.
"""

from __future__ import annotations

from typing import Final

COMMANDS: Final[dict[str, str]] = {
    "serve": "Serve a base model and its adapters over gRPC.",
    "generate": "Generate text with the base or an adapter, streamed to the terminal.",
    "likelihood": "Compare continuations of a text by their log-likelihood.",
    "health": "Ask a server whether it is ready.",
    "adapters": "List, show, push, check, promote and delete adapters.",
    "init": "Write a commented recipe to start from.",
    "data": "Check, split and show training data.",
    "templates": "List, show and apply prompt templates.",
    "store": "Look after the place where adapters are kept.",
    "train": "Train an adapter from a recipe.",
    "compare": "Put ways to adapt a base side by side, with intervals.",
    "sweep": "Train one recipe over a grid of settings.",
    "forget": "Measure what a base forgets under a change, skill by skill.",
    "mix": "Show, or write, what a recipe's mixture trains on.",
    "chain": "Train rounds one after the other, and score what each forgets.",
    "icl": "Score what solved rows in the prompt teach, and what they cost.",
    "memory": "Predict the memory of a training step, by kind.",
    "runs": "List, show and compare training runs.",
    "interpret": "Show what a soft prompt reads like.",
    "merge": "Merge an adapter into the weights of its base.",
    "report": "Write one HTML page about training runs.",
    "push": "Check a run, upload it, compare, gate and promote it.",
    "score": "Score an adapter, or the base, on held-out data.",
    "bench": "Score a base or an adapter on GLUE, SuperGLUE, MMLU, BIG-bench or small stand-ins.",
    "holistic": "Accuracy, calibration, robustness, fairness and efficiency in one report.",
    "base": "Build the bundled base model.",
    "demo": "Show the whole system at work in about a minute.",
}
"""Command name, which is also the module's name, to its line in `polygraft --help`."""
