"""`petseg models`."""

from __future__ import annotations

from typing import Annotated

import typer

from petseg.cli.options import checked_size


def models(
    size: Annotated[int, typer.Option(help="Side of the image in pixels, 16 to 2048.")] = 128,
    classes: Annotated[int, typer.Option(min=2, max=255, help="Classes of the output.")] = 3,
) -> None:
    """List the models with parameters, multiply-accumulates and peak activation memory for one image."""
    from rich.console import Console
    from rich.table import Table

    from petseg.config import ModelConfig
    from petseg.evaluation.cost import count_cost
    from petseg.models import MODELS, title_of
    from petseg.units import byte_size, count

    table = Table(title=f"one image of {size} x {size} px, {classes} classes, float32")
    for column in ("model", "", "parameters", "MACs", "activations", "each further image, training"):
        table.add_column(column, justify="left" if column in ("model", "") else "right")
    for name in MODELS:
        cost = count_cost(ModelConfig(name=name), classes, checked_size(size))
        table.add_row(
            name,
            title_of(name),
            count(cost.parameters),
            count(cost.macs),
            byte_size(cost.activation_bytes),
            byte_size(cost.training_activation_bytes_per_image),
        )
    Console().print(table)
