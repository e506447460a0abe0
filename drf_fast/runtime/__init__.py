"""What every part stands on: files, processes, progress, the machine."""
