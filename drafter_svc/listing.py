"""What `paceline drafter methods` shows: each way of drafting, what it needs, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterator

import click

from drafter_svc import methods, registry
from drafter_svc.config import DrafterSettings
from drafter_svc.factory import TeachableFactory
from drafter_svc.methods.base import MethodFactory, Needs, UnfitError

# Most weights that are named one by one.
_NAMED = 4


def show(settings: DrafterSettings) -> None:
    """Print every method, those that the settings choose marked."""
    chosen = settings.method.split("+")
    for name, factory in _found(settings):
        click.echo(f"{'*' if name in chosen else ' '} {name}")
        for line in _lines(factory):
            click.echo(f"    {line}")
    click.echo("* is part of --method as set here; several are joined by +.")


def _found(settings: DrafterSettings) -> Iterator[tuple[str, MethodFactory | str]]:
    """Each method's name, with its factory, or with why there is none."""
    for name in methods.SOURCES:
        yield name, TeachableFactory(settings, name)
    for name, entry in registry.installed().items():
        try:
            yield name, registry.make(entry, settings)
        except UnfitError as error:
            yield name, str(error)


def _lines(factory: MethodFactory | str) -> Iterator[str]:
    if isinstance(factory, str):
        yield f"cannot be used: {factory}"
        return
    yield f"drafts {'with a model' if factory.computes else 'from the text, on any processor'}"
    yield f"needs {', '.join(_needs(factory.needs)) or 'committed ids only'}"
    weights = factory.weights
    more = f" and {len(weights) - _NAMED} more" if len(weights) > _NAMED else ""
    yield f"found {', '.join(weights[:_NAMED]) or 'nothing to begin with'}{more}"


def _needs(needs: Needs) -> Iterator[str]:
    if needs.feedback_top_k:
        yield f"the target's {needs.feedback_top_k} likeliest ids of each verified row"
    if needs.vocab_fingerprint:
        yield f"the vocabulary {needs.vocab_fingerprint}"
    for want in needs.features:
        layers = ",".join(map(str, want.layers))
        whose = (
            f"the model with weights {want.weights_fingerprint}" if want.weights_fingerprint else "any model"
        )
        yield f"hidden states of layers {layers} of {whose}"
