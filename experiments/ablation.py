"""An ablation: a base experiment, rows that each change some of its keys, and seeds. One row at one seed is a run.

claim: FZ in the encoder and FB in the decoder is the most accurate pairing.
source: Table 4
cost: 15 runs of 300 epochs on 4 V100
base: penn_action
seeds: 3
reference: FZ/FB
rows:
  - {name: FF/FF, set: {model.encoder: FF, model.decoder: FF}, paper: 96.1}
  - {name: FZ/FB, set: {model.encoder: FZ, model.decoder: FB}, paper: 98.7}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlab.experiments.catalog import SpecError
from starlab.experiments.overrides import read_layers, set_key
from starlab.experiments.paths import PATH_KEYS, absolute
from starlab.experiments.spec import Spec, spec_from_dict
from starlab.experiments.strict import read_section

_KEYS = ("claim", "source", "cost", "metric", "reference", "seeds", "rows", "published")
"""Keys of an ablation's file that are not sections of its base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row: what it changes in the base."""

    name: str
    set: dict[str, Any] = field(default_factory=dict)
    """Values over the base, by dotted key."""
    paper: float | None = None
    """The paper's number for the ablation's metric, in percent; null where the paper gives none."""

    def __post_init__(self) -> None:
        if not self.name.strip() or "," in self.name or not self.name.isprintable():
            raise ValueError(f"name is {self.name!r}; a row's name must have a character, and no comma or line break")
        if self.paper is not None and not 0 <= self.paper <= 100:
            raise ValueError(f"paper is {self.paper} in row {self.name!r}; it must be in [0, 100], in percent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Numbers of another method, as the paper cites them. Nothing is trained for them."""

    name: str
    input: str = ""
    """What the method sees, for example "RGB, annotated pose"."""
    numbers: dict[str, float]
    """In percent, by the name of the row that they stand beside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """The keys of an ablation's file, except its rows and the sections of its base."""

    claim: str
    source: str = ""
    cost: str
    metric: str = "top1"
    reference: str
    seeds: int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationSpec:
    """A base experiment, and the rows and seeds to run around it."""

    base: Spec
    claim: str
    """What the rows are to show, in one sentence."""
    source: str
    """Table or figure of the paper; empty if it has none."""
    cost: str
    """What all cells cost together, and on which machine."""
    metric: str
    """Test metric of the comparison."""
    reference: str
    """Name of the row that the others are compared with."""
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    published: tuple[Published, ...] = ()

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.base.name

    def spec_of(self, row: Row, seed: int) -> Spec:
        """The experiment of one cell.

        Raises:
            SpecError: the row's changes do not make a valid experiment.
        """
        raw = self.base.to_dict()
        for key in self.base.fixed_by_data():  # decided again, because a row may change data.dataset or data.frames
            del raw["model"][key]
        for key, value in row.set.items():
            set_key(raw, key, value)
        set_key(raw, "train.seed", seed)
        spec = spec_from_dict(raw, f"{self.name}: row {row.name!r}")
        return replace(spec, tracking=self.base.tracking)  # with its password, which `to_dict` left out

    def twins(self) -> tuple[str, str] | None:
        """The names of two rows that are the same experiment; None if there are none.

        Raises:
            SpecError: as `spec_of`.
        """
        names: dict[str, str] = {}
        for row in self.rows:
            other = names.setdefault(self.spec_of(row, self.seeds[0]).run_id(""), row.name)
            if other != row.name:
                return other, row.name
        return None

    def to_dict(self) -> dict[str, Any]:
        """The ablation in plain JSON types, without passwords, in the form of its YAML file."""
        rows = [{"name": row.name, "set": dict(row.set), "paper": row.paper} for row in self.rows]
        published = [{"name": other.name, "input": other.input, "numbers": dict(other.numbers)} for other in self.published]
        words = {"claim": self.claim, "source": self.source, "cost": self.cost, "metric": self.metric}
        numbers = {"reference": self.reference, "seeds": list(self.seeds), "rows": rows, "published": published}
        return self.base.to_dict() | words | numbers


def load_ablation(experiment: str, overrides: Sequence[str] = ()) -> AblationSpec:
    """Read an ablation: a packaged one by name, or a YAML file by path, with dotted overrides.

    Args:
        experiment: "table4", or a path that ends in .yaml.
        overrides: for example ["seeds=2", "train.epochs=4"]; they change the base of every row.

    Raises:
        SpecError: as `load_spec`; also no rows, no seeds, a row with an unknown key, two rows that are the same, or a
            reference that is not a row.
    """
    raw, where = read_layers(experiment, overrides)
    if "rows" not in raw:
        verb = "search" if "space" in raw else "train"
        raise SpecError(f"{where}: no 'rows', so it is not an ablation; run it with: starlab {verb} {experiment}")
    own = {key: raw.pop(key) for key in _KEYS if key in raw}
    _refuse_base_seed(raw, where)
    rows = tuple(_with_absolute_paths(row) for row in _read_list(Row, own.pop("rows"), "rows", where))
    published = _read_list(Published, own.pop("published", []), "published", where)
    if not rows:
        raise SpecError(f"{where}: rows is empty, so there is nothing to compare; write a row as {{name: FF, set: {{…}}}}")
    if "seeds" not in own:
        raise SpecError(f"{where}: seeds is missing; write a number of seeds (seeds: 3) or a list of them")
    form = read_section(_Form, own, "", where)
    spec = AblationSpec(
        base=spec_from_dict(raw, where),
        claim=form.claim,
        source=form.source,
        cost=form.cost,
        metric=form.metric,
        reference=form.reference,
        rows=rows,
        seeds=_seeds(form.seeds, where),
        published=published,
    )
    _check_rows(spec, where)
    return spec


def select_rows(spec: AblationSpec, names: Sequence[str]) -> tuple[Row, ...]:
    """The rows with these names, in the ablation's order; all rows if `names` is empty.

    Raises:
        SpecError: a name is not a row.
    """
    known = [row.name for row in spec.rows]
    for name in names:
        if name not in known:
            raise SpecError(f"{spec.name} has no row {name!r}; its rows: {', '.join(known)}")
    return tuple(row for row in spec.rows if not names or row.name in names)


def _read_list(kind: type[Any], raw: object, key: str, where: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise SpecError(f"{where}: {key} must be a list, not {raw!r}")
    return tuple(read_section(kind, entry, f"{key}.{number}", where) for number, entry in enumerate(raw))


def _with_absolute_paths(row: Row) -> Row:
    paths = {key: absolute(value) for key, value in row.set.items() if key in PATH_KEYS and isinstance(value, str)}
    return replace(row, set={**row.set, **paths})


def _refuse_base_seed(raw: Mapping[str, Any], where: str) -> None:
    train = raw.get("train")
    if isinstance(train, Mapping) and "seed" in train:
        raise SpecError(
            f"{where}: train.seed is {train['seed']!r}, but an ablation gives every row its seeds; use seeds: [3, 4]"
        )


def _seeds(seeds: int | tuple[int, ...], where: str) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    if not found:
        raise SpecError(f"{where}: seeds is {seeds!r}, so there is no run; use 1 or more seeds")
    twice = [seed for seed, count in Counter(found).items() if count > 1]
    if twice or min(found) < 0:
        raise SpecError(f"{where}: seeds is {list(found)}; they must be 0 or more, and each only once")
    return found


def _check_rows(spec: AblationSpec, where: str) -> None:
    names: set[str] = set()
    for row in spec.rows:
        if row.name in names:
            raise SpecError(f"{where}: two rows have the name {row.name!r}; rename one of them")
        names.add(row.name)
        if "train.seed" in row.set:
            raise SpecError(f"{where}: row {row.name!r} sets train.seed, but every row runs at the same seeds; use seeds: […]")
        if "name" in row.set:
            raise SpecError(f"{where}: row {row.name!r} sets 'name', which is the ablation's; remove the key")
    try:
        twins = spec.twins()
    except SpecError as error:
        raise SpecError(f"{where}: {str(error).removeprefix(f'{spec.name}: ')}") from None
    if twins:
        raise SpecError(
            f"{where}: rows {twins[0]!r} and {twins[1]!r} are the same experiment; remove one, or change a key of "
            "data, model or train in it"
        )
    if spec.reference not in names:
        raise SpecError(f"{where}: reference is {spec.reference!r}, which is not a row; rows: {', '.join(sorted(names))}")
    for other in spec.published:
        for name in other.numbers:
            if name not in names:
                raise SpecError(f"{where}: published {other.name!r} has a number for {name!r}, which is not a row")
