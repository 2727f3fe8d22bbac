"""Where images are, and how they are read."""
