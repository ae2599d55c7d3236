"""What a run will need before it starts: requests, tokens, dollars, memory, hours."""
