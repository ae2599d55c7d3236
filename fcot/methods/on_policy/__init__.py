"""On-policy distillation: the student writes samples, and a local teacher's distributions on their tokens are its targets."""
