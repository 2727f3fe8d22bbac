"""Claims: what a caption says of numbers, places, relations and attributes, and what boxes say of that."""
