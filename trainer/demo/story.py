"""The order of the demonstration, and what is said about each step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from polygraft.client import AdapterVersion, Client
from polygraft.trainer.base.skills import NAMES_WORDINGS
from polygraft.trainer.config import Data
from polygraft.trainer.demo.page import (
    Told,
    complete_run,
    keep_reading,
    short,
    write_demo_page,
)
from polygraft.trainer.demo.prometheus import scrape
from polygraft.trainer.demo.recipes import NAMES, SUMMARY, THREADS, demo_recipe
from polygraft.trainer.demo.scores import (
    Boards,
    highlights,
    same_as_alone,
    score_base,
    score_shots,
    score_version,
)
from polygraft.trainer.demo.server_process import ServerProcess
from polygraft.trainer.demo.tables import answer_table, metric_table, score_columns
from polygraft.trainer.demo.traffic import Request, Swap, mixed_load, swap_under_load
from polygraft.trainer.forgetting.general import MIX, load_general
from polygraft.trainer.forgetting.measure import forget
from polygraft.trainer.forgetting.record import Forgetting
from polygraft.trainer.metrics import rouge_l
from polygraft.trainer.progress import ProgressBar
from polygraft.trainer.push.pipeline import PushResult, PushRun, push
from polygraft.trainer.remote import make_request, server_asker
from polygraft.trainer.run import RunResult, train
from polygraft.trainer.scoring import (
    Prompt,
    Subject,
    best_base_prompt,
    literal_text,
)
from polygraft.trainer.source import Source, load_source

START_SECONDS = 120.0
LOAD_ROWS = 16
"""Rows of each task in the mixed load; each is asked of the base and of the adapter."""
STREAMS = 4
"""Requests in flight while the alias moves."""
SKILL_ROWS = 4
"""Of each old skill."""
SHOWN_ROWS = 2
"""Rows of each task in the table of answers: simply the first of the test split."""


@dataclass
class Demo:
    """One demonstration: what it works with, and what it has measured so far."""

    console: Console
    output: Path
    base: str
    keep: bool
    """Whether `output` outlives the demonstration."""
    page: Path
    """The HTML that outlives it in any case."""
    process: ServerProcess
    """Started already; it loads torch while we do."""
    started: float
    """When the demonstration began, on the monotonic clock."""
    server: str = ""
    metrics: str = ""
    told: list[Told] = field(default_factory=list)
    forgetting: Forgetting | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Show everything, stop the server, return what was measured."""
        self._step("Start a server")
        self.sources = {
            name: load_source(Data(task=f"builtin:{name}")) for name in (SUMMARY, NAMES)
        }
        rouge_l(["loads nltk"], ["while we wait"])
        addresses = self.process.wait_ready(START_SECONDS)
        self.server, self.metrics = addresses.grpc, addresses.metrics
        self._say(f"{self.base} on gRPC {self.server}, metrics on {self.metrics}")
        self._show()
        self._step("Stop the server")
        code = self.process.stop()
        seconds = time.monotonic() - self.started
        self.measured |= {"server_exit_code": code, "seconds": round(seconds, 1)}
        kept = f"in {self.output}" if self.keep else "with --keep"
        self._say(f"exit code {code}; {seconds:.0f} s in all. Adapters, plots and logs: {kept}.")
        self._say(f"The report, with pictures and answers side by side: {self.page}")
        return self.measured

    def _show(self) -> None:
        """Everything that needs the running server."""
        self._step("Train a LoRA in haste, and a soft prompt")
        hasty, names = self._train("hasty"), self._train("names")
        self._step("Upload both to the running server")
        first, named = self._upload(hasty, SUMMARY), self._upload(names, NAMES)
        self._step("Ask base, LoRA and soft prompt all at once")
        prompts = {name: self._base_prompt(name) for name in self.sources}
        self._mixed_load(prompts)
        self._step("Train the LoRA properly")
        full = self._train("full")
        self._step(f"Push it to {SUMMARY}@live, through every check, while requests stream")
        swap = self._swap(full)
        pushed = swap.push.version
        assert pushed is not None  # `push` raises otherwise
        self._step("Score on held-out rows, through the server")
        boards = self._score(prompts, {SUMMARY: [first, pushed], NAMES: [named]})
        self._compare_with_alone(swap, dict(enumerate(boards[SUMMARY][2:], 1)))
        self._show_scores(boards)
        self._ask_in_a_known_wording()
        self._step("Ask what became of the base's old skills")
        self._forget(full)
        self._step("Read the soft prompt")
        self._read(names)
        self._step("What the server counted")
        self.console.print(metric_table(scrape(self.metrics)))
        self._write_page(boards, swap, {SUMMARY: full, NAMES: names})

    def _train(self, recipe: str) -> RunResult:
        config = demo_recipe(recipe, base=self.base, output=self.output / "runs", threads=THREADS)
        with ProgressBar(self.console, f"{config.name:<10}") as progress:
            result = train(config, progress, score_test=False)
        if self.keep:
            self._say(f"loss curve: {result.directory / 'loss.png'}")
        self.measured.setdefault("training_seconds", {})[config.name] = round(result.seconds, 1)
        return result

    def _upload(self, run: RunResult, name: str) -> AdapterVersion:
        with Client(self.server) as client:
            version = client.upload_adapter(run.directory, name).version
        self._say_published(version)
        return version

    def _base_prompt(self, name: str) -> Prompt:
        """What to ask the base: the task's instruction in the wording it understands best."""
        source = self.sources[name]
        ask = server_asker(self.server, "", by_variables=False)
        prompt = best_base_prompt(source, source.metric, ask)
        choice = f", best of {n} wordings" if (n := len(source.base_prompts())) > 1 else ""
        self._say(f'for {name} the base is asked "{literal_text(prompt)}"{choice}')
        return prompt

    def _mixed_load(self, prompts: dict[str, Prompt]) -> None:
        requests: list[Request] = []
        for name, source in self.sources.items():
            for row in source.splits.validation[:LOAD_ROWS]:
                requests.append(make_request(prompts[name], row, "", by_variables=False))
                requests.append(make_request(source.prompt, row, name, by_variables=True))
        load = asyncio.run(mixed_load(self.server, requests))
        self._say(
            f"{len(load.answered)} of {len(requests)} answered in {load.seconds:.1f} s, "
            f"{load.tokens_per_second:.0f} tokens/s, first text after "
            f"{1000 * load.median_first_text:.0f} ms (median)"
        )
        self.measured["mixed_load"] = {
            "requests": len(requests),
            "failed": len(load.failed),
            "tokens_per_second": round(load.tokens_per_second),
            "median_first_text_ms": round(1000 * load.median_first_text),
        }

    def _swap(self, run: RunResult) -> Swap:
        source = self.sources[SUMMARY]
        requests = [
            make_request(source.prompt, row, SUMMARY, by_variables=True)
            for row in source.splits.test
        ]
        wanted = PushRun(
            run.directory,
            self.server,
            SUMMARY,
            promote="live",
            reason="trained on all rows",
            done=lambda step, text: self._say(f"✓ {step:<8} {text}"),
        )
        push_it: Callable[[], PushResult] = partial(push, wanted)
        swap = asyncio.run(swap_under_load(self.server, requests, push_it, streams=STREAMS))
        counts = ", ".join(f"{count} by @{number}" for number, count in swap.by_version())
        self._say(
            f"{len(swap.load.answered)} answers, {counts}; {len(swap.load.failed)} failed. "
            "Each names the one version that made it."
        )
        self.measured["swap"] = {
            "answers": len(swap.load.answered),
            "failed": len(swap.load.failed),
            "by_version": {str(number): count for number, count in swap.by_version()},
        }
        return swap

    def _score(
        self, prompts: dict[str, Prompt], versions: dict[str, list[AdapterVersion]]
    ) -> Boards:
        """Base, base behind solved rows and adapters on the test rows of each task."""
        return {
            name: [
                score_base(self.server, name, source, prompts[name]),
                score_shots(self.server, name, source, prompts[name]),
                *(score_version(self.server, source, version) for version in versions[name]),
            ]
            for name, source in self.sources.items()
        }

    def _compare_with_alone(self, swap: Swap, alone: dict[int, Subject]) -> None:
        """Each answer given during the swap against what its version says without one."""
        same = same_as_alone(swap, alone, self.sources[SUMMARY].splits.test)
        self.measured["swap"]["same_as_alone"] = same
        self._say(
            f"{same} of the {len(swap.load.answered)} answers of the swap are word for word what "
            "their version answers without one"
        )

    def _show_scores(self, boards: Boards) -> None:
        shown = [
            (
                row,
                {"base": board[0].answers[n].text, board[-1].name: board[-1].answers[n].text},
            )
            for name, board in boards.items()
            for n, row in enumerate(self.sources[name].splits.test[:SHOWN_ROWS])
        ]
        self.console.print(answer_table(shown))
        columns = [subject for board in boards.values() for subject in board]
        self.console.print(score_columns(columns))
        self._say(f"{columns[0].rows} rows each, about people whom no training row names")
        self.measured["scores"] = {
            subject.name: {score.metric: score.value for score in subject.scores}
            for subject in columns
        }

    def _ask_in_a_known_wording(self) -> None:
        """What a soft prompt is: it finds a skill that the base has, it does not add one."""
        source, wording = self.sources[NAMES], NAMES_WORDINGS[0]
        segments = [{"text": f"{wording}\n"}, *source.prompt["segments"]]
        prompt = {**source.prompt, "segments": segments}
        subject = score_base(self.server, NAMES, source, prompt)
        value = subject.value("exact_match")
        self._say(
            f'Asked in the words of its pre-training, "{wording}", the base has {value:.1f} exact '
            f"matches: {NAMES} calls up a skill of the base, {SUMMARY} teaches one."
        )
        self.measured["names_in_known_wording"] = value

    def _forget(self, run: RunResult) -> None:
        """Old skills with the LoRA attached and detached."""
        self.forgetting = forget(run.directory, load_general(MIX, per_skill=SKILL_ROWS))
        self._say(self.forgetting.sentence())
        self.measured["old_skills"] = short(self.forgetting)

    def _read(self, run: RunResult) -> None:
        """The words nearest to the virtual tokens."""
        reading = keep_reading(run.directory)
        for sentence in reading.sentences():
            self._say(sentence)
        words = [f"{word!r} x{count}" for word, count in reading.words()[:6]]
        self._say(f"read most often: {', '.join(words) or 'nothing'}")
        self.measured["soft_prompt_words"] = dict(reading.words())

    def _write_page(self, boards: Boards, swap: Swap, runs: dict[str, RunResult]) -> None:
        """The runs' own reports with what the server answered, and the page about all of it."""
        for name, run in runs.items():
            forgetting = self.forgetting if name == SUMMARY else None
            rows = self.sources[name].splits.test
            complete_run(run.directory, boards[name], rows, forgetting)
        write_demo_page(
            self.page,
            told=self.told,
            boards=boards,
            runs=[run.directory for run in runs.values()],
            highlights=highlights(boards, swap),
        )

    def _step(self, title: str) -> None:
        self.told.append(Told(title))
        self.console.print(f"\n[bold]{len(self.told)}. {title}[/]", highlight=False)

    def _say(self, text: str) -> None:
        self.told[-1].lines.append(text)
        self.console.print(f"   {text}", markup=False, highlight=False, soft_wrap=True)

    def _say_published(self, version: AdapterVersion) -> None:
        kind = f"LoRA of rank {version.max_rank}"
        if version.virtual_tokens:
            kind = f"soft prompt of {version.virtual_tokens} tokens"
        self._say(
            f"{version.adapter_name}@{version.number}: {kind}, "
            f"{version.size_bytes / 1024:.0f} KiB, {version.digest[:19]}"
        )
