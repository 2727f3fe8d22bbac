"""What people compare: preference data in the forms that are about, read into one record, and written."""
