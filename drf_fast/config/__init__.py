"""Every setting once, what it means, and how flags, files and recipes become one configuration."""
