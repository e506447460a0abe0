"""Figures of single images: noisy and adversarial versions, and the votes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drf_fast.report import style
from drf_fast.runtime.text import rounded_down

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from drf_fast.attacks.gallery import Card

_CELL = 1.25  # inches
_BARS = 3  # classes with most votes


def draw_cards(cards: Sequence[Card], title: str, path: Path) -> None:
    """Draw one row per image: clean, noisy, adversarial, scaled difference, votes of both.

    Raises:
        InputError: the folder cannot be written.
        OSError: the disk is full.
    """
    columns = ["image", "a noisy copy", "adversarial", "difference", "votes"]
    drawn, grid = style.grid(len(cards), [1, 1, 1, 1, 1.7], _CELL, left=1.1, below=0.2)
    for name, axes in zip(columns, grid[0], strict=True):
        axes.set_title(name, fontsize=8, color="0.35")
    for card, row in zip(cards, grid, strict=True):
        change, scale = scaled(card.adversarial - card.clean)
        for axes, picture in zip(
            row, (card.clean, card.noisy, card.adversarial, change), strict=False
        ):
            _image(axes, picture)
        row[0].set_ylabel(
            style.literal(_about(card)), rotation=0, ha="right", va="center", fontsize=7.5
        )
        row[2].set_xlabel(
            style.literal(f"{card.class_name(card.attacked)}, L2 {card.distance:.2f}"),
            fontsize=7.5,
            fontweight="bold" if card.broken else "normal",
        )
        row[3].set_xlabel(f"\N{MULTIPLICATION SIGN} {scale:.1f}", fontsize=7.5)
        _votes(row[4], card)
    style.heading(drawn, title)
    style.save(drawn, path)


def draw_noise(pictures: np.ndarray, sigmas: Sequence[float], title: str, path: Path) -> None:
    """Draw images under several noise levels: one row per image, one column per sigma.

    Args:
        pictures: (images, sigmas, C, H, W) float32 in pixel units; sigma 0 is the image itself.
        sigmas: the noise levels.
        title: of the figure.
        path: PNG, PDF or SVG.

    Raises:
        InputError: the folder cannot be written.
        OSError: the disk is full.
    """
    drawn, grid = style.grid(len(pictures), [1] * len(sigmas), _CELL)
    for sigma, axes in zip(sigmas, grid[0], strict=True):
        axes.set_title("image" if sigma == 0 else f"σ = {sigma:g}", fontsize=9, color="0.35")
    for row, of_image in zip(grid, pictures, strict=True):
        for axes, picture in zip(row, of_image, strict=True):
            _image(axes, picture)
    style.heading(drawn, title)
    style.save(drawn, path)


def scaled(change: np.ndarray) -> tuple[np.ndarray, float]:
    """A difference around mid-grey, scaled to fill [0, 1], and the factor."""
    largest = float(np.abs(change).max())
    scale = 0.5 / largest if largest > 0 else 1.0
    return 0.5 + scale * change, scale


def _about(card: Card) -> str:
    wrong = "" if card.predict in (-1, card.label) else " (wrong)"
    said = "abstains" if card.predict == -1 else f"certified {card.class_name(card.predict)}{wrong}"
    radius = "" if card.predict == -1 else f"\nradius {rounded_down(card.radius, 3)}"
    return f"#{card.idx}\ntrue {card.class_name(card.label)}\n{said}{radius}"


def _image(axes: Axes, picture: np.ndarray) -> None:
    shown = np.clip(picture, 0, 1).transpose(1, 2, 0)
    if shown.shape[2] == 1:
        axes.imshow(shown[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(shown, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _votes(axes: Axes, card: Card) -> None:
    """Bars of the classes with most votes: above for the image, below for the adversarial one."""
    most = np.argsort(-np.maximum(card.votes, card.attacked_votes), kind="stable")[:_BARS]
    most = [int(k) for k in most if card.votes[k] + card.attacked_votes[k] > 0]
    at = np.arange(len(most))
    style_of = (("image", card.votes, -0.2, "0.35", ""), ("attacked", card.attacked_votes, 0.2,
                "white", "////"))  # fmt: skip
    for label, votes, shift, colour, hatch in style_of:
        axes.barh(at + shift, 100 * votes[most], 0.38, color=colour, edgecolor="0.35", hatch=hatch,
                  linewidth=0.6, label=label)  # fmt: skip
    names = [style.literal(card.class_name(k)[:12]) for k in most]
    axes.set_yticks(at, names, fontsize=7)
    axes.set_ylim(_BARS - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100], ["0", "50", "100 %"], fontsize=6.5)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_subplotspec().rowspan.start == 0:  # type: ignore[union-attr]
        axes.legend(fontsize=6, frameon=False, loc="lower right", handlelength=1.2)
