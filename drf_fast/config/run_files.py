"""The files in the folder of a run and of a sweep: what ``--force`` replaces, and nothing else."""

from __future__ import annotations

CHECKPOINT = "checkpoint.pt"
SETTINGS = "config.json"
METRICS = "metrics.jsonl"
EVENTS = "tensorboard"  # a folder
TEACHER_VOTES = "smoothed.npy"
CERTIFICATES, CERTIFICATES_SETTINGS = "certificates.tsv", "certificates.json"
CURVE = "curve.png"
PAGE = "page.html"
OF_A_RUN = (
    CHECKPOINT, SETTINGS, METRICS, TEACHER_VOTES, CERTIFICATES, CERTIFICATES_SETTINGS, CURVE, PAGE,
)  # fmt: skip

SWEEP = "sweep.json"
SUMMARY_TABLE, SUMMARY, RUNS = "summary.tsv", "summary.json", "runs.tsv"
CURVES = "certified_accuracy.png"
ACR_OF = "acr-{}.png"  # by a varied setting
# Beside the folders of the runs, and sweep.json, which goes last.
OF_A_SWEEP = (PAGE, SUMMARY_TABLE, SUMMARY, RUNS, CURVES, ACR_OF.format("*"))
