"""Used by all other packages: errors, records, files, locks, run folders, console, stopping, ranks, fields of schemas."""
