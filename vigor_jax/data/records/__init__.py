"""The artifacts of a run: rows in sealed Parquet parts, and the JSON files that people bring."""
