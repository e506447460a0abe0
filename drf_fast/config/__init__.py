"""The settings, what each means, and merging flags, files and recipes into a configuration."""
