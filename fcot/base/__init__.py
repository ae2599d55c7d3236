"""What every part stands on: errors, records, files, run folders, locks, console, stopping, ranks."""
