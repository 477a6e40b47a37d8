"""From references to versions: weights, duplicates, recipes, whose share and whose cache it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from server_support.service import DSUM_RECIPE, Service

from polygraft.adapters.errors import AdapterNotFound, InvalidRequest
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.client import InvalidRequest as ClientInvalidRequest
from polygraft.server.applied import AppliedAdapters, resolve_adapters
from polygraft.server.engine.messages import AdapterShare
from polygraft.server.requests import AdapterSelection, WeightedReference


class Names:
    """Stands in for a registry: versions by reference."""

    def __init__(self, **records: VersionRecord) -> None:
        self._records = records

    def route(self, reference: str, request_key: str | None) -> tuple[VersionRecord, None]:
        if reference not in self._records:
            raise AdapterNotFound(f"no {reference}.")
        return self._records[reference], None


def select(names: Names, *shares: tuple[str, float]) -> AppliedAdapters:
    composition = tuple(WeightedReference(*share) for share in shares)
    return resolve_adapters(
        AdapterSelection(composition=composition), cast(Registry, names), lambda ranks: None, None
    )


@pytest.fixture
async def records(service: Service, tmp_path: Path) -> dict[str, VersionRecord]:
    """Two LoRAs, one of them with a recipe, and what stands for a soft prompt and a prefix."""
    one = service.publish("team/one", tmp_path / "one", seed=1)
    two = service.publish("two", tmp_path / "two", seed=2, recipe=DSUM_RECIPE)
    front = replace_kind(service.publish("soft", tmp_path / "soft", seed=3), "soft_prompt", 5)
    prefix = replace_kind(service.publish("prefix", tmp_path / "prefix", seed=4), "prefix", 7)
    return {"one": one, "two": two, "soft": front, "prefix": prefix}


def replace_kind(record: VersionRecord, kind: str, num_virtual: int) -> VersionRecord:
    changed: dict[str, Any] = {"virtual_token_count": num_virtual}
    made = record.manifest.format.model_copy(update=changed)
    manifest = record.manifest.model_copy(update={"kind": kind, "format": made})
    return replace(record, read_manifest=lambda digest: manifest)


def test_nothing_is_the_base_alone() -> None:
    names = cast(Registry, Names())
    applied = resolve_adapters(AdapterSelection(), names, lambda ranks: None, None)
    assert applied == AppliedAdapters()
    assert (applied.kind, applied.shares, applied.salt) == ("base", (), "")


def test_the_order_of_a_request_is_kept_but_not_shown_to_the_engine(
    records: dict[str, VersionRecord],
) -> None:
    names = Names(**records)
    applied = select(names, ("two", 0.5), ("one", -2.0))
    assert [v.record.adapter_name for v in applied.versions] == ["two", "team/one"]
    other = select(names, ("one", -2.0), ("two", 0.5))
    assert applied.shares == other.shares
    weights = {records["two"].digest: 0.5, records["one"].digest: -2.0}
    assert set(applied.shares) == {AdapterShare(*share) for share in weights.items()}
    assert applied.fair_share == other.fair_share
    assert (applied.fair_share.namespace, applied.fair_share.adapter) == ("team", "team/one+two")
    assert applied.salt == other.salt == "team"
    assert applied.kind == "composition"


def test_what_has_no_weight_takes_no_part(records: dict[str, VersionRecord]) -> None:
    applied = select(Names(**records), ("two", 0.0), ("one", 1.0), ("soft", 0.0))
    assert [v.record.adapter_name for v in applied.versions] == ["team/one"]
    assert (applied.kind, applied.num_virtual_tokens) == ("lora", 0)


def test_what_has_no_weight_must_exist_nevertheless(records: dict[str, VersionRecord]) -> None:
    with pytest.raises(AdapterNotFound) as caught:
        select(Names(**records), ("one", 1.0), ("typo", 0.0))
    assert caught.value.item == "adapters[1].adapter"


def test_the_same_version_by_two_names_is_refused(records: dict[str, VersionRecord]) -> None:
    names = Names(**records, alias=records["one"])
    with pytest.raises(InvalidRequest) as caught:
        select(names, ("one", 1.0), ("two", 1.0), ("alias", 1.0))
    assert (caught.value.code, caught.value.item) == ("INVALID_COMPOSITION", "adapters[2].adapter")


def test_one_soft_prompt_goes_with_loras(records: dict[str, VersionRecord]) -> None:
    applied = select(Names(**records), ("one", 0.5), ("soft", 1.0))
    assert (applied.num_virtual_tokens, applied.num_prefix_tokens) == (5, 0)
    applied = select(Names(**records), ("one", 0.5), ("prefix", 1.0))
    assert (applied.num_virtual_tokens, applied.num_prefix_tokens) == (7, 7)


def test_two_things_before_the_prompt_are_refused(records: dict[str, VersionRecord]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        select(Names(**records), ("soft", 1.0), ("prefix", 1.0))
    assert (caught.value.code, caught.value.item) == ("INVALID_COMPOSITION", "adapters")


def test_virtual_tokens_cannot_be_weighted(records: dict[str, VersionRecord]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        select(Names(**records), ("one", 0.5), ("soft", 0.5))
    assert (caught.value.code, caught.value.item) == ("INVALID_COMPOSITION", "adapters[1].weight")


def test_the_recipe_is_that_of_the_one_that_has_one(records: dict[str, VersionRecord]) -> None:
    applied = select(Names(**records), ("one", 1.0), ("two", 1.0))
    assert applied.recipe() == records["two"].manifest.prompt


def test_two_different_recipes_are_refused(service: Service, tmp_path: Path) -> None:
    other = {**DSUM_RECIPE, "stop_sequences": ["."]}
    names = Names(
        one=service.publish("one", tmp_path / "1", seed=1, recipe=DSUM_RECIPE),
        same=service.publish("same", tmp_path / "2", seed=2, recipe=DSUM_RECIPE),
        other=service.publish("other", tmp_path / "3", seed=3, recipe=other),
    )
    assert select(names, ("one", 1.0), ("same", 1.0)).recipe().stop_sequences == ("\n\n",)
    with pytest.raises(InvalidRequest) as caught:
        select(names, ("one", 1.0), ("other", 1.0)).recipe()
    assert caught.value.code == "AMBIGUOUS_RECIPE"


async def test_an_answer_names_every_version_and_its_weight(
    service: Service, tmp_path: Path
) -> None:
    for index, name in enumerate(("one", "two")):
        service.publish(name, tmp_path / name, seed=index)
    answer = await service.client.generate("Hi", adapters={"two": 0.5, "one@1": 1.0})
    assert [(v.adapter_name, v.weight) for v in answer.versions] == [("two", 0.5), ("one", 1.0)]
    assert answer.version == answer.versions[0]
    request = service.engine.requests[-1]
    assert {share.weight for share in request.adapters} == {0.5, 1.0}


async def test_a_composition_fills_the_recipe_of_one_member(
    service: Service, tmp_path: Path
) -> None:
    service.publish("one", tmp_path / "one", seed=1)
    service.publish("dsum", tmp_path / "two", seed=2, recipe=DSUM_RECIPE)
    adapters = {"one": 0.5, "dsum": 1.0}
    variables = {"dialogue": "A: hi"}
    ids = await service.client.tokenize(variables=variables, adapters=adapters)
    answer = await service.client.generate(variables=variables, adapters=adapters)
    assert service.engine.requests[-1].prompt_token_ids == tuple(ids)
    assert service.engine.requests[-1].sampling.temperature == 0.5
    assert len(answer.versions) == 2


async def test_adapter_and_adapters_exclude_each_other(service: Service) -> None:
    with pytest.raises(ClientInvalidRequest) as caught:
        await service.client.generate("Hi", adapter="a", adapters={"b": 1.0})
    assert caught.value.metadata["item"] == "adapters"


@pytest.mark.parametrize(
    ("shares", "item"),
    [
        ([("dora", 0.5)], "adapters[0].adapter"),
        ([("one", 1.0), ("dora", 1.0)], "adapters[1].adapter"),
        ([("soft", 1.0), ("dora", 2.0)], "adapters[1].adapter"),
    ],
)
def test_what_changes_more_than_low_rank_updates_is_neither_weighted_nor_added(
    shares: list[tuple[str, float]], item: str, records: dict[str, VersionRecord]
) -> None:
    names = Names(**records, dora=with_features(records["two"]))
    with pytest.raises(InvalidRequest, match="use_dora") as caught:
        select(names, *shares)
    assert (caught.value.code, caught.value.item) == ("INVALID_COMPOSITION", item)


def test_it_goes_alone_or_behind_virtual_tokens(records: dict[str, VersionRecord]) -> None:
    names = Names(**records, dora=with_features(records["two"]))
    assert len(select(names, ("dora", 1.0)).versions) == 1
    assert len(select(names, ("dora", 1.0), ("soft", 1.0), ("one", 0.0)).versions) == 2


def with_features(record: VersionRecord) -> VersionRecord:
    made = record.manifest.format.model_copy(update={"features": ("use_dora",)})
    manifest = record.manifest.model_copy(update={"format": made})
    return replace(record, read_manifest=lambda digest: manifest)
