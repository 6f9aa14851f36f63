"""The commands that can be submitted to a cluster: the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlab.experiments.ablation import load_ablation
from starlab.experiments.paths import absolute, resolve_overrides
from starlab.experiments.spec import load_search, load_spec
from starlab.platform.errors import UserError


@dataclass(frozen=True, slots=True)
class Verb:
    """What `submit` has to know about a command."""

    load: Callable[[str, list[str]], object] | None = None
    """Reads the experiment and the overrides that follow the command, so that a mistake in them is found before it is sent."""
    needs: int = 0
    """How many arguments it has at least."""
    has_paths: bool = False
    """What follows its first argument are paths, which mean the user's own folders as typed."""
    flags: tuple[str, ...] = ()
    """Options of such a command that take no value."""


VERBS = {
    "train": Verb(load=load_spec, needs=1),
    "search": Verb(load=load_search, needs=1),
    "ablate": Verb(load=load_ablation, needs=1),
    "evaluate": Verb(needs=1),
    "prepare": Verb(needs=3, has_paths=True, flags=("--retry",)),
    "doctor": Verb(),
}


def check_command(arguments: Sequence[str], *, load: bool = True) -> Verb:
    """Check that a command can be submitted and, with `load`, that its experiment can be read with its overrides.

    Raises:
        UserError: there is no command, or it cannot be submitted.
        SpecError: the experiment or an override is wrong.
    """
    if not arguments:
        raise UserError("nothing to submit: write the command after --, e.g. starlab submit -- train penn_action")
    verb = VERBS.get(arguments[0])
    if verb is None:
        raise UserError(
            f"'{arguments[0]}' is not a command that can be submitted; these are: {', '.join(VERBS)}. Run the others where "
            "the runs folder is"
        )
    if load and len(arguments) <= verb.needs:
        raise UserError(f"'{' '.join(arguments)}' lacks arguments: starlab {arguments[0]} --help names them")
    if load and verb.load and not arguments[1].startswith("-"):
        verb.load(arguments[1], [one for one in arguments[2:] if "=" in one and not one.startswith("-")])
    return verb


def with_absolute_paths(arguments: Sequence[str], verb: Verb) -> list[str]:
    """The arguments with the paths in them made absolute, as they are typed here."""
    if not verb.has_paths:
        return resolve_overrides(arguments)
    resolved, before = list(arguments[:2]), ""
    for argument in arguments[2:]:
        takes_value = before.startswith("-") and "=" not in before and before not in verb.flags
        resolved.append(argument if takes_value or argument.startswith("-") else absolute(argument))
        before = argument
    return resolved
