"""Preference data: read from every common form into one record, and written."""
