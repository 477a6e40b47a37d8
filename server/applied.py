"""From the references of a request to the versions that apply, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from polygraft.adapters.alias_records import AliasRecord
from polygraft.adapters.errors import AdapterIncompatible, InvalidRequest, PolygraftError
from polygraft.adapters.names import namespace_of
from polygraft.adapters.prompt import PromptRecipe
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.server.engine.messages import AdapterShare, FairShare
from polygraft.server.requests import AdapterSelection


@dataclass(frozen=True, slots=True)
class AppliedVersion:
    """A version, what its update is multiplied by, and the alias that chose it, if one did."""

    record: VersionRecord
    weight: float = 1.0
    alias: AliasRecord | None = None


@dataclass(frozen=True, slots=True)
class AppliedAdapters:
    """The versions that apply to one request, in the order it named them. None: the base alone."""

    versions: tuple[AppliedVersion, ...] = ()

    @property
    def shares(self) -> tuple[AdapterShare, ...]:
        """As the engine wants them: by digest."""
        return tuple(sorted(AdapterShare(v.record.digest, v.weight) for v in self.versions))

    @property
    def ranks(self) -> dict[str, int]:
        """The largest rank of each version, by digest."""
        return {v.record.digest: v.record.manifest.format.max_rank for v in self.versions}

    @property
    def num_virtual_tokens(self) -> int:
        """Positions in front of the prompt."""
        return sum(_num_virtual_tokens(v.record) for v in self.versions)

    @property
    def num_prefix_tokens(self) -> int:
        """Of them, those whose keys and values come ready-made."""
        records = (v.record for v in self.versions if v.record.manifest.kind == "prefix")
        return sum(_num_virtual_tokens(record) for record in records)

    @property
    def kind(self) -> str:
        """For metrics: one of `metrics.ADAPTER_KINDS`."""
        match self.versions:
            case []:
                return "base"
            case [one]:
                return one.record.manifest.kind
        return "composition"

    @property
    def salt(self) -> str:
        """Whose prompt it is, until callers have identities: the namespaces of the names."""
        return ",".join(sorted({namespace_of(v.record.adapter_name) for v in self.versions} - {""}))

    @property
    def fair_share(self) -> FairShare:
        """Whose account the request is charged to."""
        names = sorted({v.record.adapter_name for v in self.versions})
        return FairShare(namespace=self.salt, adapter="+".join(names))

    def recipe(self) -> PromptRecipe:
        """The prompt recipe of the one adapter that has one. Raises InvalidRequest."""
        carriers = [v.record for v in self.versions if v.record.manifest.prompt is not None]
        recipes = [record.manifest.prompt for record in carriers]
        if not recipes or recipes[0] is None:
            raise InvalidRequest(
                f"{self._names() or 'the base'} carries no prompt recipe for variables to fill.",
                reason="NO_RECIPE",
                item="variables",
                hint="Send a prompt, messages or token ids.",
            )
        if any(recipe != recipes[0] for recipe in recipes):
            raise InvalidRequest(
                f"{self._names()} carry different prompt recipes, and one prompt is needed.",
                reason="AMBIGUOUS_RECIPE",
                item="variables",
                hint="Send a prompt, messages or token ids.",
            )
        return recipes[0]

    def _names(self) -> str:
        records = [version.record for version in self.versions]
        return " and ".join(f"version {r.number} of {r.adapter_name!r}" for r in records)


def resolve_adapters(
    selection: AdapterSelection,
    registry: Registry,
    fits_together: Callable[[Sequence[int]], str | None],
    request_key: str | None,
) -> AppliedAdapters:
    """The versions that the references name now, without those of weight 0.

    Of an alias with a canary, `request_key` chooses the version; None: the one in charge.

    `fits_together(ranks)` says why LoRAs of these largest ranks can never be on the device at the
    same time, if so. Raises InvalidRequest, AdapterIncompatible, AdapterNotFound or AdapterCorrupt.
    """
    if selection.adapter:
        record, alias = registry.route(selection.adapter, request_key)
        return AppliedAdapters((AppliedVersion(record, alias=alias),))
    versions = []
    for index, share in enumerate(selection.composition):
        try:
            record, alias = registry.route(share.reference, request_key)
            versions.append(AppliedVersion(record, share.weight, alias))
        except PolygraftError as error:
            error.item = f"adapters[{index}].adapter"
            raise
    _check_composition(versions)
    applied = tuple(version for version in versions if version.weight != 0)
    ranks = [version.record.manifest.format.max_rank for version in applied]
    if why := fits_together(ranks):
        raise AdapterIncompatible(
            f"this server can never compute them in one request: {why}.",
            reason="NO_ADAPTER_ROWS",
            item="adapters",
            found=f"ranks {', '.join(map(str, ranks))}",
            hint="Name fewer, or start the server with a larger pool.",
        )
    return AppliedAdapters(applied)


def _check_composition(versions: list[AppliedVersion]) -> None:
    for (first, one), (second, other) in combinations(enumerate(versions), 2):
        if one.record.digest == other.record.digest:
            raise InvalidRequest(
                f"adapters[{first}] and adapters[{second}] are the same version.",
                reason="INVALID_COMPOSITION",
                item=f"adapters[{second}].adapter",
                found=other.record.digest,
                hint="Name it once, with the sum of the weights.",
            )
    _check_others(versions)
    fronts = [
        (index, version)
        for index, version in enumerate(versions)
        if version.weight and _num_virtual_tokens(version.record)
    ]
    if len(fronts) > 1:
        names = " and ".join(repr(version.record.adapter_name) for _, version in fronts)
        raise InvalidRequest(
            f"{names} each put something before the prompt; at most one of a composition may.",
            reason="INVALID_COMPOSITION",
            item="adapters",
            found=len(fronts),
            allowed=1,
        )
    for index, version in fronts:
        if version.weight != 1:
            raise InvalidRequest(
                f"{version.record.adapter_name!r} is no update of the base that could be weighted.",
                reason="INVALID_COMPOSITION",
                item=f"adapters[{index}].weight",
                found=version.weight,
                allowed="1, or 0 to leave it out",
            )


def _check_others(versions: list[AppliedVersion]) -> None:
    """What changes more than low-rank updates do cannot be weighted, nor added to another one:
    two weights of one embedding have no sum, and the norm in DoRA depends on the weight."""
    loras = [v for v in versions if v.weight and v.record.manifest.kind == "lora"]
    for index, version in enumerate(versions):
        features = version.record.manifest.format.features
        if features and version.weight and (version.weight != 1 or len(loras) > 1):
            raise InvalidRequest(
                f"{version.record.adapter_name!r} changes more than low-rank updates do "
                f"({', '.join(features)}), so it is neither weighted nor added to another LoRA.",
                reason="INVALID_COMPOSITION",
                item=f"adapters[{index}].adapter",
                found=version.weight,
                allowed="weight 1, with one soft prompt or prefix at most",
                hint="Name it alone, or beside a soft prompt or prefix.",
            )


def _num_virtual_tokens(record: VersionRecord) -> int:
    return record.manifest.format.virtual_token_count
