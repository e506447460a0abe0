"""Basics used by all other packages: files, processes, progress, the machine."""
