"""One training run from recipe to run directory: the order of everything, and nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polygraft.trainer.config import RunConfig
from polygraft.trainer.errors import Interrupted, TrainingFailed
from polygraft.trainer.forms import Form
from polygraft.trainer.prepare import Prepared, prepare
from polygraft.trainer.processes import is_first, run_directory
from polygraft.trainer.progress import Observer, Silent
from polygraft.trainer.run_directory import RunDirectory
from polygraft.trainer.scoring import Subject, score_candidate

if TYPE_CHECKING:
    from polygraft.trainer.evaluation import Evaluation
    from polygraft.trainer.forgetting.measure import Knowledge
    from polygraft.trainer.forgetting.record import Forgetting
    from polygraft.trainer.memory_account import MemoryAccount
    from polygraft.trainer.methods.adapted import Adapted


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    directory: Path
    digest: str
    config: RunConfig
    """With every automatic choice made."""
    best: Evaluation
    subjects: list[Subject]
    """Base and adapter on the test split; empty where the run was told not to score it."""
    seconds: float
    """Of the optimiser loop with its validations."""
    forgetting: Forgetting | None = None
    """Where the recipe asked for it."""


def train(
    config: RunConfig,
    observer: Observer | None = None,
    *,
    score_test: bool = True,
    resume: Path | None = None,
) -> RunResult:
    """Train, score on the test split, write the run directory.

    `resume` is the directory that an interrupted run left, whose recipe `config` then is. Raises
    RecipeError, DataError, TrainingFailed (nothing is left behind), Interrupted (the state is).
    Where several processes train together, all but the first return a result without a directory.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        prepared = prepare(config, observer or Silent())
        with run_directory(config, resume) as directory:
            return _guarded(prepared, directory, observer or Silent(), score_test, bool(resume))
    finally:
        torch.set_num_threads(threads)


def _guarded(
    prepared: Prepared,
    directory: RunDirectory,
    observer: Observer,
    score_test: bool,
    resumed: bool,
) -> RunResult:
    """Run; leave a complete directory, a state to go on from, or nothing."""
    from safetensors import SafetensorError

    try:
        return _run(prepared, directory, observer, score_test, resumed=resumed)
    except KeyboardInterrupt:
        raise _interrupted(directory) from None
    except (OSError, SafetensorError) as error:
        _leave(directory, resumed)
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingFailed(
            f"the run could not be written: {reason}; nothing was saved.",
            file=str(directory.final),
            hint="Make room there, or name another place with --output.",
        ) from error
    except RuntimeError as error:
        _leave(directory, resumed)
        if is_out_of_memory(error):
            raise TrainingFailed(
                "out of memory; nothing was saved.",
                item="optim.batch",
                hint="Lower it and raise optim.accumulate alike, or lower data.max_length.",
            ) from error
        raise
    except BaseException:
        _leave(directory, resumed)
        raise


def _leave(directory: RunDirectory, resumed: bool) -> None:
    """After a failure: nothing of a new run, but what was safe before a resumed one."""
    if resumed and directory.has_checkpoint:
        directory.keep_interrupted()
    else:
        directory.discard()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory, on a device or on the host."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _interrupted(directory: RunDirectory) -> Interrupted:
    """Keep what training can go on from; with nothing of the kind, remove the rest."""
    if not directory.has_checkpoint:
        directory.discard()
        return Interrupted("stopped before there was anything to keep.")
    kept = directory.keep_interrupted()
    return Interrupted(
        f"stopped; the state is kept in {kept}.",
        hint=f"Go on with: polygraft train --resume {kept}",
    )


def _run(
    prepared: Prepared,
    directory: RunDirectory,
    observer: Observer,
    score_test: bool,
    *,
    resumed: bool,
) -> RunResult:
    from peft import PeftModel

    from polygraft.trainer import methods
    from polygraft.trainer.best import trainable_tensors
    from polygraft.trainer.divergence import check_trained
    from polygraft.trainer.forgetting.measure import ask_base
    from polygraft.trainer.interpret import save_start
    from polygraft.trainer.optimise import optimise
    from polygraft.trainer.plots import plot_loss
    from polygraft.trainer.probes import save_probes
    from polygraft.trainer.push.witness import save_witnesses
    from polygraft.trainer.report.pages import write_pages
    from polygraft.trainer.reporting import write_manifest, write_report
    from polygraft.trainer.saved import save_adapter

    directory.write_config(prepared.config)
    remembered = ask_base(prepared.base, prepared.general) if prepared.general else None
    peft_model = methods.attach(prepared.base, prepared.config, prepared.source.prompt_text)
    parent = _take_up_earlier(prepared, peft_model, observer)
    _make_ready(prepared, peft_model, observer)
    if is_first():
        save_start(peft_model, directory.work)
    untrained = trainable_tensors(peft_model)
    account = _predict_memory(prepared, peft_model, observer)
    started = time.monotonic()
    best = optimise(peft_model, prepared, directory, observer, resumed=resumed)
    seconds = time.monotonic() - started
    check_trained(untrained, trainable_tensors(peft_model))
    if not is_first():
        return RunResult(directory.final, "", prepared.config, best, [], seconds)
    save_adapter(peft_model, prepared.base, directory.work / "adapter")
    num_probes = None
    if isinstance(peft_model, PeftModel):  # what no server computes needs no witness
        probes = save_probes(peft_model, prepared, directory.work / "adapter")
        save_witnesses(peft_model, prepared, probes, directory.work)
        num_probes = probes.count
    subjects = []
    if score_test:  # the first and only time that the test split is answered
        subjects = _score(prepared, peft_model)
    manifest = write_manifest(
        prepared,
        directory,
        subjects,
        seconds,
        num_probes=num_probes,
        trained_parameters=sum(tensor.numel() for tensor in untrained.values()),
        parent=parent,
    )
    forgetting = _forgetting(prepared, peft_model, remembered, observer)
    if account is not None:  # last, because its steps change the adapter
        account = _measure_memory(account, prepared, peft_model, observer)
    write_report(prepared, directory, manifest, best, subjects, seconds, account, forgetting)
    plot_loss(directory.work / "metrics.jsonl", directory.work / "loss.png", prepared.config.name)
    if score_test:  # without scores there is nothing to read
        write_pages(directory.work)
    final = directory.complete()
    return RunResult(final, manifest.digest, prepared.config, best, subjects, seconds, forgetting)


def _take_up_earlier(prepared: Prepared, peft_model: Adapted, observer: Observer) -> str | None:
    """Start from `init_from`, if the recipe says so; the digest of what was there."""
    from polygraft.trainer.methods.continuing import continue_from

    if prepared.config.init_from is None:
        return None
    digest = continue_from(peft_model, prepared.config.init_from, prepared.geometry)
    observer.note(f"goes on from {prepared.config.init_from.name} ({digest[:19]}...)")
    return digest


def _make_ready(prepared: Prepared, peft_model: Adapted, observer: Observer) -> None:
    """What a recipe asks of the model before its first step."""
    from polygraft.trainer.methods.adapted import ChangedModel
    from polygraft.trainer.methods.fisher import weigh_by_fisher
    from polygraft.trainer.packing import check_packing

    if prepared.config.data.packing:
        check_packing(peft_model, len(prepared.base.tokenizer))
    ewc: float = getattr(prepared.config.method, "ewc", 0.0)
    if ewc and isinstance(peft_model, ChangedModel):
        weigh_by_fisher(peft_model, prepared, observer)


def _predict_memory(
    prepared: Prepared, peft_model: Adapted, observer: Observer
) -> MemoryAccount | None:
    from polygraft.trainer.memory_account import predict_account

    if not prepared.config.runtime.account_memory:
        return None
    try:
        account = predict_account(peft_model, prepared)
    except (RuntimeError, NotImplementedError) as error:
        observer.note(f"the memory of a step could not be predicted: {error}")
        return None
    observer.note(account.sentence())
    return account


def _measure_memory(
    account: MemoryAccount, prepared: Prepared, peft_model: Adapted, observer: Observer
) -> MemoryAccount:
    from polygraft.trainer.memory_account import measure_account

    try:
        account = measure_account(account, peft_model, prepared)
    except RuntimeError as error:  # the adapter is trained and saved; this shall not lose it
        observer.note(f"the memory of a step could not be measured: {error}")
    observer.note(account.sentence())
    return account


def _forgetting(
    prepared: Prepared, peft_model: Adapted, before: Knowledge | None, observer: Observer
) -> Forgetting | None:
    from polygraft.trainer.forgetting.measure import with_change

    if prepared.general is None or before is None:
        return None
    name = prepared.config.name
    forgetting = with_change(name, prepared.base, peft_model, prepared.general, before)
    observer.note(forgetting.sentence())
    return forgetting


def _score(prepared: Prepared, peft_model: Adapted) -> list[Subject]:
    """Answers of base and adapter on the test split; of plain text, how likely it is."""
    from polygraft.trainer.local import make_candidate
    from polygraft.trainer.perplexity import score_likelihood

    if prepared.source.form is Form.TEXT:
        return score_likelihood(prepared, peft_model)
    return score_candidate(make_candidate(prepared.base, peft_model), prepared.source, "test")
