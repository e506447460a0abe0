"""Flags of the published smoothing code: an error names our flag that does the same."""

from __future__ import annotations

from collections.abc import Collection

from drf_fast.errors import InputError

_OURS = {
    "N": "n",
    "N0": "n0",
    "noise": "sigma",
    "noise_sd": "sigma",
    "batch": "batch_size",
    "max": "max_images",
    "lbd": "consistency_lam",
    "outfile": "out",
    "outdir": "out",
    "num_noise_vec": "num_samples",
    "num_steps": "steps",
}
_MORE = {
    "max": " (--max counts images of the data set, --max-images those that are certified: with "
    "--skip K, --max M is --max-images M/K)",
    "lbd": " with --method consistency, or --macer-lam with --method macer, --stability-lam with "
    "--method stability, --mix-eta with --method smoothmix, --catrs-lam with --method catrs",
}


def refuse(words: list[str], fields: Collection[str]) -> None:
    """Raise if ``words`` contain a flag of the published code.

    Args:
        words: of the command line.
        fields: the settings of the command; published flags without a setting here are ignored.

    Raises:
        InputError: names our flag, with the given value.
    """
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        ours = _OURS.get(name)
        if not flag.startswith("--") or name in fields or ours is None or ours not in fields:
            continue
        following = words[i + 1] if i + 1 < len(words) else ""
        value = value if equals else "" if following.startswith("--") else following
        ours = f"--{ours.replace('_', '-')}"
        # Where another value or another flag may be right, the sentence itself says which.
        fix = " ".join(filter(None, (ours, value)))
        fix = "write what you need" if name in _MORE else f"write {fix}"
        raise InputError(
            f"{flag} is a flag of the published code: expected {ours}{_MORE.get(name, '')}, got "
            f"{flag}; {fix}"
        )
